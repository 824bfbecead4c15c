"""The process that serves: a listening socket, uvicorn, timeouts of slow clients, and signals."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlc_dsv3.errors import UserError

_HEAD_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 75
_PREPARING_THREADS = 32
_FAREWELL_SECONDS = 1.0  # for the last words to clients that read them


def bind(host: str, port: int) -> socket.socket:
    """A socket at a host's name or address. UserError where it cannot be had.

    It does not listen yet: while a model is loaded, clients are turned away at once.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host}, port {port}: {reason}; choose others by --host and --port"
        ) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether this machine alone can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def serve(
    app: FastAPI, listener: socket.socket, *, started: Callable[[], None], end_answers: Callable[[], None]
) -> None:
    """Serve until a signal ends it: the first lets open answers finish, at a second one `end_answers` ends them.

    `started` is called when clients can connect.
    """
    asyncio.run(Server(app, started=started, end_answers=end_answers).serve([listener]))


class Server(uvicorn.Server):
    """uvicorn with our settings. `should_exit` lets open requests finish, `force_exit` does not."""

    def __init__(
        self,
        app: FastAPI,
        *,
        started: Callable[[], None] = lambda: None,
        end_answers: Callable[[], None] = lambda: None,
    ) -> None:
        self._started, self._end_answers = started, end_answers
        super().__init__(
            uvicorn.Config(
                app,
                http=_PatientProtocol,
                ws="none",
                lifespan="off",
                log_level="warning",
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                server_header=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        # Prompts are prepared on threads, and some wait seconds for a grammar's trial: not all of them at once.
        executor = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare")
        asyncio.get_running_loop().set_default_executor(executor)
        await super().startup(sockets)
        self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, where it runs on the thread that gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # uvicorn's own raises them once more at the end, so that a drained server would seem to have been killed.
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        """End: the first time when open requests are served, the second time as soon as clients know."""
        if self.should_exit:
            threading.Thread(target=self._hurry, daemon=True).start()
        self.should_exit = True

    def _hurry(self) -> None:
        self._end_answers()
        time.sleep(_FAREWELL_SECONDS)
        self.force_exit = True


class _PatientProtocol(H11Protocol):
    """Closes connections whose request's head does not arrive in time; uvicorn would wait for ever."""

    _head_is_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._head_is_due is None:
            self._head_is_due = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_is_due is not None:
            self._head_is_due.cancel()
            self._head_is_due = None
