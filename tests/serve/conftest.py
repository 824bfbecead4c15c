"""Debian's Chromium, and the page's files behind the real router."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = "/usr/bin/chromium"


# Playwright runs an event loop in the thread that uses it, in which no other test could run one: it ends with the file.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install playwright")
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"{CHROMIUM} is missing: apt install chromium")
    with playwright.sync_playwright() as driver:
        # Root, as in containers, may not use Chromium's sandbox.
        browser = driver.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page_server() -> Iterator[str]:
    """The origin of a server that has nothing but the page's files."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install '.[serve]'")
    fastapi = pytest.importorskip("fastapi", reason="FastAPI is missing: pip install '.[serve]'")

    from mlc_dsv3.serve.page import router

    app = fastapi.FastAPI()
    app.include_router(router)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()
