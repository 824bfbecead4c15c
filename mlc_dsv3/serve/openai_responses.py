"""`/v1/responses`: OpenAI's Responses API, whole or streamed, with responses to go on from."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlc_dsv3.serve.answer import Piece
from mlc_dsv3.serve.chat_prompt import chat_job
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.generation import Generation, Usage
from mlc_dsv3.serve.json_response import JsonResponse, json_bytes
from mlc_dsv3.serve.response_store import StoredResponse
from mlc_dsv3.serve.responses_output import Frame, Output
from mlc_dsv3.serve.responses_request import ResponsesRequest
from mlc_dsv3.serve.service import CurrentService, Service
from mlc_dsv3.serve.sse import EventStream, event, whole_unless_left
from mlc_dsv3.serve.token_names import chat_logprobs

router = APIRouter()


@router.post("/v1/responses")
async def create(body: ResponsesRequest, request: Request, service: CurrentService) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    params = body.params(
        service.defaults,
        max_tokens=body.max_output_tokens,
        logprobs=body.alternatives(),
        grammar=body.grammar(),
    )
    prompt = body.prompt(service.responses.history(body.previous_response_id))
    generation = await Generation.prepare(service, 1, lambda: chat_job(service, prompt, params, 1))
    answer = _Answer(service, generation, body)
    if body.stream:
        return EventStream(answer.events(), error_frames=answer.failed, ended=generation.close)
    return JsonResponse(await whole_unless_left(request, answer.whole(), generation.close))


@router.get("/v1/responses/{identity}")
async def retrieve(identity: str, service: CurrentService) -> Response:
    """A response that was made before."""
    return JsonResponse(service.responses.get(identity).response)


@router.get("/v1/responses/{identity}/input_items")
async def input_items(identity: str, service: CurrentService) -> Response:
    """What it was an answer to, without the turns before."""
    items = service.responses.get(identity).input
    return JsonResponse({"object": "list", "data": items, "first_id": None, "last_id": None, "has_more": False})


@router.delete("/v1/responses/{identity}")
async def delete(identity: str, service: CurrentService) -> Response:
    """Forget it."""
    service.responses.delete(identity)
    return JsonResponse({"id": identity, "object": "response", "deleted": True})


class _Answer:
    """Pieces of a generation as a response."""

    def __init__(self, service: Service, generation: Generation, body: ResponsesRequest) -> None:
        self._service, self._generation, self._body = service, generation, body
        self._output = Output(body.offered())
        self._events = 0
        self._id, self._created = f"resp_{uuid.uuid4().hex}", time.time()

    async def whole(self) -> dict[str, Any]:
        """The response, when all of it is there."""
        async for _ in self._frames():
            pass
        return self._ended

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The response as server-sent events."""
        yield self._event("created", {"response": self._response("in_progress")})
        yield self._event("in_progress", {"response": self._response("in_progress")})
        async for frames in self._frames():
            yield b"".join(self._event(*frame) for frame in frames)
        yield self._event(self._ended["status"], {"response": self._ended})

    def failed(self, error: ApiError) -> bytes:
        """The end of a stream that fails."""
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": error.message}
        return self._event("failed", {"response": response})

    async def _frames(self) -> AsyncGenerator[list[Frame], None]:
        """What each piece adds; stores the response at the end."""
        waiting: list[dict[str, Any]] = []  # logprobs of tokens whose text is still held back
        async for piece in self._generation.pieces():
            if piece.logprobs:
                waiting += chat_logprobs(self._service.llm.tokenizer, piece.logprobs)["content"]
            frames: list[Frame] = []
            for each in piece.events:
                frames += self._output.add(each, waiting)
                waiting = []
            if piece.finish_reason is not None:
                self._end(piece, frames)
            if frames:
                yield frames

    def _end(self, piece: Piece, frames: list[Frame]) -> None:
        status = "incomplete" if piece.finish_reason == "length" else "completed"
        frames += self._output.end(status)
        self._ended = self._response(status)
        if self._body.store is not False:
            items, size = self._body.items(), len(json_bytes([self._ended, self._body.items()]))
            stored = StoredResponse(self._ended, items, self._body.previous_response_id, size)
            self._service.responses.put(stored)

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        kind, number = f"response.{kind}", self._events
        self._events += 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

    def _response(self, status: str) -> dict[str, Any]:
        body, params = self._body, self._generation.job.params
        over = status in ("completed", "incomplete")
        return {
            "id": self._id,
            "object": "response",
            "created_at": int(self._created),
            "completed_at": time.time() if over else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._service.model.id,
            "output": list(self._output.items),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "store": body.store is not False,
            "temperature": params.temperature,
            "text": {"format": _format(body)},
            "tool_choice": body.tool_choice or "auto",
            "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": _usage(self._generation.usage) if over else None,
            "user": body.user,
        }


def _format(body: ResponsesRequest) -> dict[str, Any]:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(by_alias=True, exclude_none=True)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
