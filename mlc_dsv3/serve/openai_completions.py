"""`/v1/completions`: text that the model continues, with the prompt's own logprobs where `echo` asks for them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from mlc_dsv3.runtime.sampling import MAX_LOGPROBS
from mlc_dsv3.serve.answer_form import AnswerForm
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.formats import Content, Event
from mlc_dsv3.serve.generation import Generation, Job
from mlc_dsv3.serve.json_response import JsonResponse
from mlc_dsv3.serve.openai_objects import MOST_CHOICES, StreamOptions, chunk, error_frames, stream_end, whole_object
from mlc_dsv3.serve.request import Bookkeeping, Items, Sampling
from mlc_dsv3.serve.service import CurrentService, Service
from mlc_dsv3.serve.sse import EventStream, whole_unless_left
from mlc_dsv3.serve.token_names import CompletionLogprobs

router = APIRouter()
_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_MOST_PROMPTS = 1024

Prompt = str | list[int]


class CompletionRequest(Bookkeeping, Sampling, AnswerForm):
    """The body of a request for completions."""

    model: str | None = None
    prompt: str | Items[int] | Items[str] | Items[Items[int]]
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=0, description="0 generates nothing, for a prompt that `echo` returns.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None

    def prompts(self) -> list[Prompt]:
        """Each prompt, text or token ids."""
        several = not isinstance(self.prompt, str) and bool(self.prompt) and not isinstance(self.prompt[0], int)
        prompts = self.prompt if several else [self.prompt]
        if len(prompts) > _MOST_PROMPTS:
            raise ApiError(400, f"there are {len(prompts)} prompts; {_MOST_PROMPTS} may be", param="prompt")
        return prompts


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request, service: CurrentService) -> Response:
    """Continue each prompt."""
    service.check_model(body.model)
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens is 0, which only echo has a use for", param="max_tokens")
    most = body.max_tokens if body.max_tokens is not None else service.defaults.max_tokens or _DEFAULT_MAX_TOKENS
    params = body.params(service.defaults, max_tokens=most or 1, logprobs=body.logprobs, grammar=body.grammar())
    prompts, choices = body.prompts(), body.n or 1

    def job() -> Job:
        return Job([service.llm.prompt_tokens(prompt) for prompt in prompts], params, choices, _PlainReader)

    generation = await Generation.prepare(service, len(prompts) * choices, job)
    answer = _Answer(service, generation, body, prompts)
    if body.stream:
        return EventStream(answer.chunks(), error_frames=error_frames, ended=generation.close)
    return JsonResponse(await whole_unless_left(request, answer.whole(), generation.close))


class _PlainReader:
    """Text as it is."""

    def feed(self, text: str) -> list[Event]:
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        return []


class _Answer:
    """Pieces of a generation as OpenAI's objects."""

    def __init__(
        self, service: Service, generation: Generation, body: CompletionRequest, prompts: list[Prompt]
    ) -> None:
        self._llm, self._generation, self._body = service.llm, generation, body
        self._prompts = prompts
        identity = f"cmpl-{uuid.uuid4().hex}"
        self._head = {
            "id": identity,
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model.id,
        }
        # One an answer: it counts the characters of the text so far.
        self._logprobs: list[CompletionLogprobs | None] = [None] * generation.job.answers
        if body.logprobs is not None:
            self._logprobs = [CompletionLogprobs(self._llm.tokenizer) for _ in self._logprobs]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        options = self._body.stream_options
        async for choice in self._choices():
            yield chunk(self._head, choice, options)
        yield stream_end(self._head, self._generation.usage, options)

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        parts: list[list[dict[str, Any]]] = [[] for _ in self._logprobs]
        async for choice in self._choices():
            parts[choice["index"]].append(choice)
        return whole_object(self._head, [_joined(own) for own in parts], self._generation.usage)

    async def _choices(self) -> AsyncGenerator[dict[str, Any], None]:
        """What each piece adds to its choice: first what is echoed, then what is generated."""
        generates = self._body.max_tokens != 0
        if self._body.echo:
            for number in range(len(self._logprobs)):
                yield await self._echoed(number, None if generates else "length")
        if generates:
            async for piece in self._generation.pieces():
                text = "".join(each.text for each in piece.events if isinstance(each, Content))
                shown = self._logprobs[piece.choice]
                logprobs = shown.generated(piece.logprobs or []) if shown is not None else None
                yield _choice(piece.choice, text, logprobs, piece.finish_reason)

    async def _echoed(self, number: int, finish_reason: str | None) -> dict[str, Any]:
        place = number // self._generation.job.choices
        prompt, tokens = self._prompts[place], self._generation.job.prompts[place]
        text = prompt if isinstance(prompt, str) else self._llm.tokenizer.decode(prompt)
        shown, logprobs = self._logprobs[number], None
        if shown is not None:
            entries = await asyncio.to_thread(self._llm.prompt_logprobs, tokens, self._body.logprobs or 0)
            logprobs = shown.prompt(tokens[0], entries)
        return _choice(number, text, logprobs, finish_reason)


def _choice(index: int, text: str, logprobs: dict[str, list[Any]] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The choice that all of its parts make up."""
    logprobs = parts[-1]["logprobs"]
    if logprobs is not None:
        logprobs = {name: [entry for part in parts for entry in part["logprobs"][name]] for name in logprobs}
    text = "".join(part["text"] for part in parts)
    return _choice(parts[-1]["index"], text, logprobs, parts[-1]["finish_reason"])
