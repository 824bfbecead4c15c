"""`/v1/chat/completions`: OpenAI's chat, whole or streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from mlc_dsv3.runtime.sampling import MAX_LOGPROBS
from mlc_dsv3.serve.answer import Piece
from mlc_dsv3.serve.answer_form import AnswerForm
from mlc_dsv3.serve.chat_prompt import ChatPrompt, chat_job, openai_tool_choice
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.formats import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from mlc_dsv3.serve.generation import Generation
from mlc_dsv3.serve.json_response import JsonResponse
from mlc_dsv3.serve.openai_objects import MOST_CHOICES, StreamOptions, chunk, error_frames, stream_end, whole_object
from mlc_dsv3.serve.request import Bookkeeping, Items, Sampling
from mlc_dsv3.serve.service import CurrentService, Service
from mlc_dsv3.serve.sse import EventStream, whole_unless_left
from mlc_dsv3.serve.token_names import chat_logprobs

router = APIRouter()


class ChatRequest(Bookkeeping, Sampling, AnswerForm):
    """The body of a chat request."""

    model: str | None = None
    messages: Items[dict[str, Any]] = Field(min_length=1)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="Needs `logprobs`.")
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    parse_control_tokens: bool = Field(False, description="Control tokens in messages act as such, and are not text.")
    modalities: Items[Literal["text"]] | None = None

    def alternatives(self) -> int | None:
        """How many alternatives to report with each token; None reports no logprobs. ApiError for alternatives
        alone."""
        if not self.logprobs:
            if self.top_logprobs:
                raise ApiError(400, "top_logprobs has no effect without logprobs: true", param="top_logprobs")
            return None
        return self.top_logprobs or 0


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request, service: CurrentService) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    params = body.params(
        service.defaults,
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        logprobs=body.alternatives(),
        grammar=body.grammar(),
    )
    prompt = ChatPrompt(
        body.messages,
        tools=body.tools,
        tool_choice=openai_tool_choice(body.tool_choice),
        parallel=body.parallel_tool_calls is not False,
        variables=body.chat_template_kwargs,
        reasoning_effort=body.reasoning_effort,
        parse_control_tokens=body.parse_control_tokens,
    )
    choices = body.n or 1
    generation = await Generation.prepare(service, choices, lambda: chat_job(service, prompt, params, choices))
    answer = _Answer(service, generation, body)
    if body.stream:
        return EventStream(answer.chunks(), error_frames=error_frames, ended=generation.close)
    return JsonResponse(await whole_unless_left(request, answer.whole(), generation.close))


class _Answer:
    """Pieces of a generation as OpenAI's objects."""

    def __init__(self, service: Service, generation: Generation, body: ChatRequest) -> None:
        self._service, self._generation, self._body = service, generation, body
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.model.id}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        head = {**self._head, "object": "chat.completion.chunk"}
        begun: set[int] = set()
        options = self._body.stream_options
        async for piece in self._generation.pieces():
            role = {} if piece.choice in begun else {"role": "assistant", "content": ""}
            begun.add(piece.choice)
            choice = {
                "index": piece.choice,
                "delta": {**role, **_delta(piece.events)},
                "logprobs": self._logprobs(piece),
                "finish_reason": piece.finish_reason,
            }
            yield chunk(head, choice, options)
        yield stream_end(head, self._generation.usage, options)

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        pieces: list[list[Piece]] = [[] for _ in range(self._generation.job.answers)]
        async for piece in self._generation.pieces():
            pieces[piece.choice].append(piece)
        choices = [self._choice(number, own) for number, own in enumerate(pieces)]
        return whole_object({**self._head, "object": "chat.completion"}, choices, self._generation.usage)

    def _choice(self, number: int, pieces: list[Piece]) -> dict[str, Any]:
        logprobs = None
        if self._body.logprobs:
            entries = [entry for piece in pieces for entry in piece.logprobs or ()]
            logprobs = chat_logprobs(self._service.llm.tokenizer, entries)
        return {
            "index": number,
            "message": _message([event for piece in pieces for event in piece.events]),
            "logprobs": logprobs,
            "finish_reason": pieces[-1].finish_reason,
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        return chat_logprobs(self._service.llm.tokenizer, piece.logprobs) if piece.logprobs else None


def _delta(events: list[Event]) -> dict[str, Any]:
    """What events add to a message."""
    delta: dict[str, Any] = {}
    for each in events:
        match each:
            case Content(text):
                delta["content"] = delta.get("content", "") + text
            case Reasoning(text):
                # Older clients know the first name, newer ones the second.
                delta["reasoning_content"] = delta["reasoning"] = delta.get("reasoning", "") + text
            case ToolCallStart(index, identity, name):
                call = {"index": index, "id": identity, "type": "function", "function": {"name": name, "arguments": ""}}
                delta.setdefault("tool_calls", []).append(call)
            case ToolCallArguments(index, text):
                delta.setdefault("tool_calls", []).append({"index": index, "function": {"arguments": text}})
    return delta


def _message(events: list[Event]) -> dict[str, Any]:
    """The assistant's message that all events of an answer make up."""
    reasoning = "".join(each.text for each in events if isinstance(each, Reasoning))
    content = "".join(each.text for each in events if isinstance(each, Content))
    calls = {
        each.index: {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": ""}}
        for each in events
        if isinstance(each, ToolCallStart)
    }
    for each in events:
        if isinstance(each, ToolCallArguments):
            calls[each.index]["function"]["arguments"] += each.text
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if reasoning:
        message["reasoning_content"] = message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = list(calls.values())
    return message
