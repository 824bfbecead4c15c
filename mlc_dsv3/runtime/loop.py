"""`EngineLoop`: the thread that owns an engine. It alone calls `Engine.step`; everybody else sends it requests.

    client ──inbox: submit, cancel, run──▶ engine's thread ──outbox of a request──▶ client

TVM keeps threads and temporary memory for each thread that calls it, so the model is loaded on this thread too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from mlc_dsv3.errors import DeviceError, UserError
from mlc_dsv3.runtime.completion import Update
from mlc_dsv3.runtime.engine import Engine
from mlc_dsv3.runtime.forking import belongs_here, refuse_after_fork
from mlc_dsv3.runtime.sequence import Sequence

Outbox = Callable[[Update], None]  # called on the engine's thread: it must neither wait nor raise
T = TypeVar("T")


class EngineLoop:
    """Runs an engine on a thread of its own until `close`. Its methods may be called from any thread.

    A request's updates go to its outbox, up to the one that has a `finish_reason`. Where a step fails, every open
    request ends with its error; a device that fails (`DeviceError`) stays failed, and so does every later request.
    """

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._engine: Engine | None = None
        self._outboxes: dict[int, Outbox] = {}
        self._failed: DeviceError | None = None
        self._closed = self._stopped = False  # no more is posted; the thread ends
        self._posting = threading.Lock()  # nothing is posted behind the last task
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def start(self, load: Callable[[], Engine]) -> Engine:
        """Load the engine that this loop steps from here on; raises what `load` raises."""

        def start() -> Engine:
            self._engine = load()
            return self._engine

        return self.run(start)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function on the engine's thread between two steps; returns or raises what it does."""
        called: Future[T] = Future()

        def call() -> None:
            try:
                called.set_result(function())
            except BaseException as error:
                if isinstance(error, DeviceError):
                    self._failed = error
                called.set_exception(error)

        self._post(call)
        return called.result()

    def submit(self, sequence: Sequence, outbox: Outbox) -> None:
        """Run a request that `Engine.prepare` made. UserError where the loop is closed."""
        self._post(lambda: self._add(sequence, outbox))

    def cancel(self, request_id: int) -> None:
        """End a request before the next step; its outbox gets a last update. Nothing where it has ended."""
        if belongs_here():
            with self._posting:
                if not self._closed:
                    self._inbox.put(lambda: self._cancel(request_id))

    @property
    def failure(self) -> DeviceError | None:
        """What the device failed with: no request can be served any more."""
        return self._failed

    def close(self) -> None:
        """End all requests as cancelled, stop the thread and let go of the engine. In a forked process: nothing."""
        if not belongs_here():
            return
        with self._posting:
            if not self._closed:
                self._inbox.put(self._stop)
            self._closed = True
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _post(self, task: Callable[[], None]) -> None:
        refuse_after_fork()
        with self._posting:
            if self._closed:
                raise UserError("this LLM is closed")
            self._inbox.put(task)

    def _work(self) -> None:
        while not self._stopped:
            engine = self._engine
            if engine is not None and engine.has_work and self._inbox.empty():
                self._step(engine)
            else:
                self._inbox.get()()

    def _step(self, engine: Engine) -> None:
        try:
            updates = engine.step()
        except Exception as error:
            if isinstance(error, DeviceError):
                self._failed = error
            updates = engine.end_all("error", error)
        for update in updates:
            self._deliver(update)

    def _add(self, sequence: Sequence, outbox: Outbox) -> None:
        assert self._engine is not None, "requests come after start()"
        self._outboxes[sequence.request_id] = outbox
        if self._failed is not None:
            self._deliver(sequence.update([], "", "error", error=self._failed))
        else:
            self._engine.add(sequence)

    def _cancel(self, request_id: int) -> None:
        assert self._engine is not None, "requests come after start()"
        update = self._engine.cancel(request_id)
        if update is not None:
            self._deliver(update)

    def _deliver(self, update: Update) -> None:
        if update.finish_reason is None:
            self._outboxes[update.request_id](update)
        else:
            self._outboxes.pop(update.request_id)(update)

    def _stop(self) -> None:
        engine, self._engine, self._stopped = self._engine, None, True
        if engine is not None:
            for update in engine.end_all("cancelled"):
                self._deliver(update)
            if self._failed is None:
                engine.save_prefixes()
