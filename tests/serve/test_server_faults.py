"""Clients that wait too long or ask for too much, and models and devices that fail."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from marks import quick_first
from served import serving, wait_until

httpx = pytest.importorskip("httpx", reason="httpx is missing: pip install '.[test]'")

QUESTION = [{"role": "user", "content": "What is the capital of Veloria?"}]
LONG = {"messages": QUESTION, "ignore_eos": True, "temperature": 0}


def _post(origin: str, body: dict, **options: object) -> httpx.Response:
    return httpx.post(f"{origin}/v1/chat/completions", json=body, timeout=60, **options)


def test_too_many_answers_are_told_when_to_come_back(demo_server, demo_service, monkeypatch):
    monkeypatch.setattr(demo_service, "max_open", 2)
    with httpx.stream("POST", f"{demo_server}/v1/chat/completions", json={**LONG, "n": 2, "stream": True}) as running:
        lines = running.iter_lines()  # which closes the connection when it goes
        next(lines)
        refused = _post(demo_server, {"messages": QUESTION})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    wait_until(lambda: demo_service.open == 0)
    assert _post(demo_server, {"messages": QUESTION}).status_code == 200


def test_keys(demo_service):
    with serving(demo_service, keys=("first", "second")) as origin:

        def status(path: str = "/v1/models", **headers: str) -> int:
            return httpx.get(origin + path, headers=headers).status_code

        assert status() == 401
        assert status(authorization="Bearer wrong") == 401
        assert status(authorization="Bearer") == 401
        assert status(authorization="Basic first") == 401
        assert status(authorization="Bearer second") == 200
        assert status(**{"x-api-key": "first"}) == 200
        assert [status(path) for path in ("/", "/page/main.js", "/health")] == [200, 200, 200]
        assert [status(path) for path in ("/metrics", "/experts", "/openapi.json", "/page")] == [401, 401, 401, 401]
        anthropic = httpx.post(f"{origin}/v1/messages", json={})
        assert anthropic.json()["error"]["type"] == "authentication_error"


def test_another_sites_name_for_this_machine_is_refused(demo_service):
    with serving(demo_service, hosts=frozenset({"localhost", "127.0.0.1", "::1"})) as origin:
        port = origin.rpartition(":")[2]
        for host, status in (("localhost", 200), (f"[::1]:{port}", 200), (f"evil.example:{port}", 403), ("", 403)):
            assert httpx.get(f"{origin}/v1/models", headers={"Host": host}).status_code == status, host


def test_other_sites_pages_are_let_in_where_that_is_asked_for(demo_service, demo_server):
    ask = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{demo_server}/v1/models", headers=ask).headers
    with serving(demo_service, keys=("key",), cors_origins=["https://example.org"]) as origin:
        allowed = httpx.options(f"{origin}/v1/chat/completions", headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        refused = httpx.get(f"{origin}/v1/models", headers={"Origin": "https://example.org"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://example.org"  # so that the page can read why
        other = httpx.options(f"{origin}/v1/models", headers={**ask, "Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


def test_a_form_of_another_site_is_no_request(demo_server):
    """A page may send such bodies to any site without asking first."""
    body = json.dumps({"messages": QUESTION})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = httpx.post(f"{demo_server}/v1/chat/completions", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400
        assert "application/json" in answer.json()["error"]["message"]


def test_bodies_have_a_limit(demo_service):
    with serving(demo_service, max_body=1000) as origin:
        long = {"messages": [{"role": "user", "content": "a" * 1000}]}
        assert _post(origin, long).status_code == 413
        pieces = (json.dumps(long).encode()[at : at + 100] for at in range(0, 1000, 100))
        headers = {"Content-Type": "application/json"}
        chunked = httpx.post(f"{origin}/v1/chat/completions", content=(*pieces, b"b" * 100), headers=headers)
        assert chunked.status_code == 413
        assert chunked.json()["error"]["code"] == "request_too_large"
        assert _post(origin, {"messages": QUESTION, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/detokenize", {"tokens": ["a"] * 1_000_000}),
        ("/v1/completions", {"prompt": [{}] * 1_000_000}),
        ("/v1/completions", {"prompt": "a", "stop": [1] * 1_000_000}),
        ("/v1/chat/completions", {"messages": [1] * 1_000_000}),
        ("/v1/chat/completions", {"messages": QUESTION, "logit_bias": {str(n): "a" for n in range(500_000)}}),
        ("/v1/chat/completions", {f"unknown {n}": 1 for n in range(500_000)}),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [{}] * 1_000_000}]}),
        ("/v1/responses", {"input": [1] * 1_000_000}),
        ("/v1/responses", {"input": "a", "tools": [1] * 1_000_000}),
    ],
)
def test_a_million_mistakes_are_not_looked_for_one_by_one(demo_server, path, body):
    content = json.dumps(body).encode()
    started = time.monotonic()
    answer = httpx.post(f"{demo_server}{path}", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert time.monotonic() - started < 6  # and not minutes


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat/comp", b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Slow:"])
def test_a_head_that_does_not_arrive_is_not_waited_for(demo_server, monkeypatch, sent):
    monkeypatch.setattr("mlc_dsv3.serve.server._HEAD_SECONDS", 0.2)
    host, port = demo_server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(sent)
        time.sleep(0.1)
        connection.sendall(b"" if not sent else b" ")
        assert connection.recv(100) == b""


def test_a_body_that_does_not_arrive_is_not_waited_for(demo_server, monkeypatch):
    monkeypatch.setattr("mlc_dsv3.serve.access.BODY_SECONDS", 0.2)
    host, port = demo_server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_silence_is_filled_with_comments(demo_server, demo_llm, monkeypatch):
    monkeypatch.setattr("mlc_dsv3.serve.sse.KEEP_ALIVE_SECONDS", 0.1)
    held = threading.Event()
    with ThreadPoolExecutor() as pool:
        holding = pool.submit(demo_llm._loop.run, lambda: held.wait(10))
        with httpx.stream("POST", f"{demo_server}/v1/chat/completions", json={**LONG, "stream": True}) as answer:
            lines = answer.iter_lines()
            assert [next(lines) for _ in range(4)] == [": keep-alive", "", ": keep-alive", ""]
            held.set()
            assert next(line for line in lines if line and not line.startswith(":")).startswith("data: {")
        holding.result()


def test_a_request_whose_logits_are_not_finite_ends_alone(demo_server, demo_llm, monkeypatch):
    from mlc_dsv3.errors import NotFiniteError

    model, failing = demo_llm._engine._model, 666
    sample = model.sample

    def sample_but_for_one(output, draws):
        chosen = sample(output, draws)
        bad = [draw.seed == failing and draw.position > 30 for draw in draws]
        return [NotFiniteError("not finite") if no else token for no, token in zip(bad, chosen, strict=True)]

    alone = _post(demo_server, {**LONG, "max_tokens": 60}).json()["choices"][0]["message"]
    monkeypatch.setattr(model, "sample", sample_but_for_one)
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(_post, demo_server, {**LONG, "max_tokens": 60}) for _ in range(3)]
        whole = _post(demo_server, {**LONG, "seed": failing, "max_tokens": 60})
        streamed = _post(demo_server, {**LONG, "seed": failing, "max_tokens": 60, "stream": True})
        assert [other.result().json()["choices"][0]["message"] for other in others] == [alone] * 3
    assert whole.status_code == 500
    assert "not finite" in whole.json()["error"]["message"]
    *_, piece, error, done = [line for line in streamed.text.splitlines() if line]
    assert json.loads(piece[6:])["choices"]
    assert json.loads(error[6:])["error"]["type"] == "server_error"
    assert done == "data: [DONE]"


def test_a_lost_device_is_said_to_all(demo_server, demo_service, monkeypatch):
    from mlc_dsv3.errors import DeviceError

    monkeypatch.setattr(demo_service.llm._loop, "_failed", DeviceError("cpu is lost: somebody took it"))
    for answer in (_post(demo_server, {"messages": QUESTION}), httpx.get(f"{demo_server}/health")):
        assert answer.status_code == 503
        assert "somebody took it" in answer.json()["error"]["message"]


def test_a_bug_of_ours_is_an_error_object_and_the_server_lives(demo_server, demo_service, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(demo_service.llm, "prepare", lambda *_: 1 / 0)
        answer = _post(demo_server, {"messages": QUESTION})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
    assert demo_service.open == 0
    assert _post(demo_server, {"messages": QUESTION, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("signals", quick_first([1, 2]))
def test_signals(demo_is_made, signals):
    """The first lets answers finish, and a second one does not wait."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlc_dsv3", "serve", "--port", str(port), "--speculative", "off"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert f"http://127.0.0.1:{port}/" in line
    origin = f"http://127.0.0.1:{port}"
    assert _answers(origin)  # from the moment on that the line is there
    with httpx.stream("POST", f"{origin}/v1/chat/completions", json={**LONG, "stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)  # two that wait at the same time are one
        if signals == 1:
            wait_until(lambda: not _answers(origin))
            assert list(lines)[-2] == "data: [DONE]"
        else:
            *_, error, _, done, _ = list(lines)
            assert "shutting down" in error
            assert done == "data: [DONE]"
    assert process.wait(timeout=5) == 0
    assert "Traceback" not in process.stderr.read()


def _answers(origin: str) -> bool:
    try:
        return httpx.get(f"{origin}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--port", "99999"], "65535"),
        (["--api-key", "ä"], "ASCII"),
        (["--temperature", "-1"], "temperature"),
        (["--tool-parser", "nothing"], "there is no tool parser"),
    ],
)
def test_command_lines_that_would_not_serve(arguments, words, capsys):
    from mlc_dsv3.cli.main import main

    assert main(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken(demo_server, capsys):
    from mlc_dsv3.cli.main import main

    assert main(["serve", "--port", demo_server.rpartition(":")[2]]) == 2
    assert "in use" in capsys.readouterr().err
