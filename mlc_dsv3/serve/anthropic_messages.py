"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's chat, whole or streamed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlc_dsv3.runtime.messages import argument_object
from mlc_dsv3.serve.answer import Piece
from mlc_dsv3.serve.anthropic_request import CountRequest, MessagesRequest
from mlc_dsv3.serve.chat_prompt import chat_job
from mlc_dsv3.serve.errors import ApiError, error_body
from mlc_dsv3.serve.formats import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from mlc_dsv3.serve.generation import Generation, Usage
from mlc_dsv3.serve.json_response import JsonResponse
from mlc_dsv3.serve.service import CurrentService, Service
from mlc_dsv3.serve.sse import EventStream, event, whole_unless_left

router = APIRouter()
_PATH = "/v1/messages"
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@router.post(_PATH)
async def messages(body: MessagesRequest, request: Request, service: CurrentService) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    params = body.params(service.defaults)
    prompt = body.prompt(service.model.thinking_variables)
    generation = await Generation.prepare(service, 1, lambda: chat_job(service, prompt, params, 1))
    answer = _Answer(service, generation)
    if body.stream:
        return EventStream(answer.events(), error_frames=_error_frames, ended=generation.close)
    return JsonResponse(await whole_unless_left(request, answer.whole(), generation.close))


@router.post(f"{_PATH}/count_tokens")
async def count_tokens(body: CountRequest, service: CurrentService) -> Response:
    """How many tokens the model would read."""
    service.check_model(body.model)
    tokens = await asyncio.to_thread(body.prompt(service.model.thinking_variables).tokens, service)
    return JsonResponse({"input_tokens": len(tokens)})


class _Answer:
    """Pieces of a generation as Anthropic's objects."""

    def __init__(self, service: Service, generation: Generation) -> None:
        self._generation = generation
        self._head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": service.model.id,
        }

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        blocks = _Blocks()
        async for piece in self._generation.pieces():
            for each in piece.events:
                blocks.add(each)
        blocks.close()
        usage = _usage(self._generation.usage)
        return {**self._head, "content": blocks.content(), **_ended(piece), "usage": usage}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        usage, blocks = self._generation.usage, _Blocks()
        begun = False
        async for piece in self._generation.pieces():
            if not begun:  # not before the first token: only now is known what the cache spared
                begun = True
                message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None}
                yield _event("message_start", message={**message, "usage": _usage(usage)})
            frames = [frame for each in piece.events for frame in blocks.add(each)]
            if piece.finish_reason is not None:
                frames += [*blocks.close(), _event("message_delta", delta=_ended(piece), usage=_usage(usage))]
                frames.append(_event("message_stop"))
            if frames:
                yield b"".join(frames)


class _Blocks:
    """The content blocks of an answer as they grow, one after the other."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._pieces: list[str] = []  # of the last block

    def add(self, each: Event) -> list[bytes]:
        """Add an event; returns what a stream says of it."""
        return list(self._add(each))

    def close(self) -> list[bytes]:
        """End the last block; returns what a stream says of it."""
        return list(self._end()) if self._blocks else []

    def content(self) -> list[dict[str, Any]]:
        """All blocks, once they are closed."""
        return self._blocks

    def _add(self, each: Event) -> Iterator[bytes]:
        match each:
            case Content(text) if text:
                yield from self._piece("text", text)
            case Reasoning(text) if text:
                yield from self._piece("thinking", text)
            case ToolCallStart(_, identity, name):
                yield from self._begin({"type": "tool_use", "id": identity, "name": name, "input": {}})
            case ToolCallArguments(_, text):
                yield from self._piece("tool_use", text)

    def _piece(self, kind: str, text: str) -> Iterator[bytes]:
        if not self._blocks or self._blocks[-1]["type"] != kind:
            # The signature is how other servers know their own thoughts again; this one has no need to.
            yield from self._begin({"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})})
        self._pieces.append(text)
        yield self._delta(*_DELTAS[kind], text)

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        if self._blocks:
            yield from self._end()
        self._blocks.append(block)
        yield _event("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _end(self) -> Iterator[bytes]:
        block, text = self._blocks[-1], "".join(self._pieces)
        self._pieces = []
        if block["type"] == "tool_use":
            block["input"] = argument_object(text)
        else:
            block[block["type"]] = text
        yield _event("content_block_stop", index=len(self._blocks) - 1)

    def _delta(self, kind: str, name: str, text: str) -> bytes:
        return _event("content_block_delta", index=len(self._blocks) - 1, delta={"type": kind, name: text})


_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def _ended(piece: Piece) -> dict[str, Any]:
    reason = "stop_sequence" if piece.stop is not None else _STOP_REASONS[piece.finish_reason or "stop"]
    return {"stop_reason": reason, "stop_sequence": piece.stop}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _error_frames(error: ApiError) -> bytes:
    return event(error_body(error, _PATH), "error")
