"""A server on a port of its own, in a thread of this process; and waiting for what it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlc_dsv3.serve.service import Service


@contextmanager
def serving(service: Service, *, cors_origins: Sequence[str] = (), **rules: Any) -> Iterator[str]:
    """Its origin. `rules` are those of `AccessRules`."""
    from mlc_dsv3.serve.access import AccessRules
    from mlc_dsv3.serve.app import create_app
    from mlc_dsv3.serve.server import Server, bind

    with bind("127.0.0.1", 0) as listener:
        server = Server(create_app(service, AccessRules(**rules), cors_origins))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Until a condition holds, which must come about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.005)
