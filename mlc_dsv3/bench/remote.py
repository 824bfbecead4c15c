"""An object in a fresh process of its own, its methods called from here.

So memory and load time are those of the object alone, and two sides can take turns without sharing anything.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from mlc_dsv3.errors import MACHINE_ERRORS, USER_ERRORS, UserError


class Remote:
    """Makes `factory(*arguments)` in a new process; `call(name, …)` calls its methods, one at a time.

    UserErrors, and what a machine fails at, come back as UserErrors; any other exception as a RuntimeError
    with the other process's traceback.
    """

    def __init__(self, factory: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The result of a method of the object."""
        self._pipe.send((name, arguments, options))
        return self._receive()

    def close(self) -> None:
        """End the process and wait until its memory is free."""
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            error, result = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            why = f"by signal {-code} (out of memory?)" if code and code < 0 else f"with exit code {code}"
            raise UserError(f"the measuring process ended {why}") from None
        if error is not None:
            self.close()
            raise error
        return result


def idle_pause() -> None:
    """Wait until the threads of a side that has just worked are asleep: thread pools spin for a while first."""
    time.sleep(0.3)


def _serve(pipe: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # An interrupt is the parent's to handle; it ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        served = factory(*arguments)
        pipe.send((None, None))
        while True:
            name, positional, options = pipe.recv()
            pipe.send((None, getattr(served, name)(*positional, **options)))
    except EOFError:
        return
    except (*USER_ERRORS, *MACHINE_ERRORS) as error:
        pipe.send((UserError(str(error) or "out of memory"), None))
    except Exception:
        pipe.send((RuntimeError(f"in the measuring process:\n{traceback.format_exc()}"), None))
