"""Debian's Chromium, the page's files behind the real router, and the demo behind the real server."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from served import serving

if TYPE_CHECKING:
    import httpx
    import openai
    from playwright.sync_api import Browser

    from mlc_dsv3.runtime.llm import LLM
    from mlc_dsv3.serve.service import Service

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


@pytest.fixture(scope="session")
def demo_llm(demo_is_made: None) -> Iterator[LLM]:
    """The demo, loaded."""
    from mlc_dsv3.runtime.llm import LLM

    with LLM() as llm:
        yield llm


@pytest.fixture(scope="session")
def demo_service(demo_llm: LLM) -> Service:
    """The demo as a server serves it."""
    pytest.importorskip("fastapi", reason="FastAPI is missing: pip install '.[serve]'")
    from mlc_dsv3.serve.formats import output_format
    from mlc_dsv3.serve.service import Service

    template = demo_llm.tokenizer.chat_template
    return Service(
        demo_llm,
        ["mlc_dsv3-demo"],
        demo_llm.default_params,
        output_format=output_format(template, reasoning_parser=None, tool_parser=None),
        max_waiting=64,
    )


@pytest.fixture(scope="session")
def demo_server(demo_service: Service) -> Iterator[str]:
    """The origin of a server of the demo."""
    with serving(demo_service) as origin:
        yield origin


@pytest.fixture(scope="session")
def http(demo_server: str) -> Iterator[httpx.Client]:
    """A plain client of that server."""
    httpx = pytest.importorskip("httpx", reason="httpx is missing: pip install '.[test]'")
    with httpx.Client(base_url=demo_server, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def client(demo_server: str) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of that server."""
    openai = pytest.importorskip("openai", reason="openai is missing: pip install '.[test]'")
    with openai.OpenAI(base_url=f"{demo_server}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
