"""Answers that end when the client leaves: server-sent events, and whole ones that take as long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlc_dsv3.serve.errors import ApiError, reported
from mlc_dsv3.serve.json_response import json_bytes

KEEP_ALIVE_SECONDS = 5.0
STALL_SECONDS = 60.0  # a client that takes nothing for so long has left, whatever its connection says
_COMMENT = b": keep-alive\n\n"

T = TypeVar("T")


def event(data: Any, name: str | None = None) -> bytes:
    """One event whose data is JSON; `name` is its type, where the dialect has types."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return b"%bdata: %b\n\n" % (head, json_bytes(data))


class EventStream(Response):
    """Sends `frames` as they come, a comment where none came for a while, and stops when the client leaves or stalls.

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
        self._sent, self._sending = time.monotonic(), False
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; returns when all is sent or nobody listens."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless(self._pump(send), left(receive), self._stalls(send))
        finally:
            await self._frames.aclose()
            self._ended()

    async def _pump(self, send: Send) -> None:
        try:
            async for frame in self._frames:
                await self._send(send, frame)
        except Exception as error:
            await self._send(send, self._error_frames(reported(error)))
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._sent, self._sending = time.monotonic(), True
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending = False

    async def _stalls(self, send: Send) -> None:
        """Send comments in between; returns when the client has taken nothing for too long."""
        while True:
            silent = time.monotonic() - self._sent
            if self._sending and silent >= STALL_SECONDS:
                return
            if not self._sending and silent >= KEEP_ALIVE_SECONDS:
                await self._send(send, _COMMENT)
            await asyncio.sleep(KEEP_ALIVE_SECONDS - min(silent, KEEP_ALIVE_SECONDS / 2))


async def whole_unless_left(request: Request, answer: Coroutine[Any, Any, T], ended: Callable[[], None]) -> T:
    """The answer, made while the client waits. ApiError where it leaves, which nobody reads."""
    try:
        made = await unless(answer, left(request.receive))
    finally:
        ended()
    if made is None:
        raise ApiError(499, "the client has left")
    return made


async def unless(work: Coroutine[Any, Any, T], *ends: Coroutine[Any, Any, None]) -> T | None:
    """What `work` returns or raises; None where one of `ends` returned before, and then `work` is cancelled."""
    working = asyncio.create_task(work)
    tasks = [working, *(asyncio.create_task(end) for end in ends)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def left(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
