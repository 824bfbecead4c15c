"""Answers that end when the client leaves: server-sent events, and whole ones that take as long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlc_dsv3.serve.errors import ApiError, reported
from mlc_dsv3.serve.json_response import json_bytes

KEEP_ALIVE_SECONDS = 5.0
_COMMENT = b": keep-alive\n\n"

T = TypeVar("T")


def event(data: Any, name: str | None = None) -> bytes:
    """One event whose data is JSON; `name` is its type, where the dialect has types."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return b"%bdata: %b\n\n" % (head, json_bytes(data))


class EventStream(Response):
    """Sends `frames` as they come, a comment where none came for a while, and stops when the client leaves.

    frames: whole events; it is closed in any case. error_frames: the end of a stream that fails.
    ended: called once, when nothing more is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        error_frames: Callable[[ApiError], bytes],
        ended: Callable[[], None],
    ) -> None:
        self._frames, self._error_frames, self._ended = frames, error_frames, ended
        self._sent = time.monotonic()
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; returns when all is sent or nobody listens."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            beat = asyncio.create_task(self._keep_alive(send))
            try:
                await unless_left(receive, self._pump(send))
            finally:
                beat.cancel()
                with suppress(asyncio.CancelledError):
                    await beat
        finally:
            await self._frames.aclose()
            self._ended()

    async def _pump(self, send: Send) -> None:
        try:
            async for frame in self._frames:
                self._sent = time.monotonic()
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except Exception as error:
            await send({"type": "http.response.body", "body": self._error_frames(reported(error)), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            silent = time.monotonic() - self._sent
            if silent >= KEEP_ALIVE_SECONDS:
                self._sent, silent = time.monotonic(), 0.0
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
            await asyncio.sleep(KEEP_ALIVE_SECONDS - silent)


async def whole_unless_left(request: Request, answer: Coroutine[Any, Any, T], ended: Callable[[], None]) -> T:
    """The answer, made while the client waits. ApiError where it leaves, which nobody reads."""
    try:
        made = await unless_left(request.receive, answer)
    finally:
        ended()
    if made is None:
        raise ApiError(499, "the client has left")
    return made


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` returns or raises; None where the client left before, and then `work` is cancelled."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
