"""Clients that leave at any stage, or stop reading: their requests end, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from contextlib import suppress

import pytest
from served import wait_until

httpx = pytest.importorskip("httpx", reason="httpx is missing: pip install '.[test]'")

QUESTION = [{"role": "user", "content": "What is the capital of Veloria?"}]
LONG = {"messages": QUESTION, "ignore_eos": True, "temperature": 0}
REQUESTS = {
    "/v1/chat/completions": LONG,
    "/v1/messages": {"messages": QUESTION, "max_tokens": 500},
    "/v1/responses": {"input": "Tell me a story.", "ignore_eos": True},
    "/v1/completions": {"prompt": "Once", "max_tokens": 400, "echo": True, "logprobs": 1, "n": 2},
}


def _address(origin: str) -> tuple[str, int]:
    host, port = origin.removeprefix("http://").split(":")
    return host, int(port)


def _request(path: str, body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + content


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_leaves_ends_its_request(demo_server, demo_service, stream, choices):
    llm = demo_service.llm
    with socket.create_connection(_address(demo_server)) as connection:
        connection.sendall(_request("/v1/chat/completions", {**LONG, "stream": stream, "n": choices}))
        wait_until(lambda: llm.occupancy.running == choices)
    wait_until(lambda: llm.occupancy.running == 0 and demo_service.open == 0, seconds=0.5)
    after = httpx.post(f"{demo_server}/v1/chat/completions", json={**LONG, "max_tokens": 3}, timeout=60)
    assert after.status_code == 200


def test_a_client_that_stops_reading_is_not_waited_for(demo_server, demo_service, monkeypatch):
    monkeypatch.setattr("mlc_dsv3.serve.sse.KEEP_ALIVE_SECONDS", 0.1)
    monkeypatch.setattr("mlc_dsv3.serve.sse.STALL_SECONDS", 0.5)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(_address(demo_server))
        body = {**LONG, "stream": True, "n": 8, "logprobs": True, "top_logprobs": 20}
        connection.sendall(_request("/v1/chat/completions", body))
        wait_until(lambda: demo_service.open == 8)
        wait_until(lambda: demo_service.open == 0 and demo_service.llm.occupancy.running == 0, seconds=20)


def test_many_that_leave_at_every_stage_disturb_nobody(demo_server, demo_service):
    ask = {"messages": QUESTION, "temperature": 0}
    alone = httpx.post(f"{demo_server}/v1/chat/completions", json=ask, timeout=60).json()["choices"]

    async def leave(number: int) -> None:
        chance = random.Random(number)
        path = chance.choice(list(REQUESTS))
        sent = _request(path, {**REQUESTS[path], "stream": chance.random() < 0.6})
        reader, writer = await asyncio.open_connection(*_address(demo_server))
        writer.write(sent[: chance.randrange(len(sent))] if chance.random() < 0.3 else sent)
        with suppress(TimeoutError, OSError):
            await writer.drain()
            await asyncio.sleep(chance.random() * 0.3)
            if chance.random() < 0.5:
                await asyncio.wait_for(reader.read(chance.randrange(1, 2000)), 0.3)
        if chance.random() < 0.5:
            writer.transport.abort()
        writer.close()

    async def stay(client: httpx.AsyncClient) -> None:
        for _ in range(10):
            answer = await client.post("/v1/chat/completions", json=ask)
            assert answer.status_code == 429 or answer.json()["choices"] == alone

    async def all_at_once() -> None:
        async with httpx.AsyncClient(base_url=demo_server, timeout=60) as client:
            await asyncio.gather(*(leave(number) for number in range(300)), *(stay(client) for _ in range(4)))

    asyncio.run(all_at_once())
    wait_until(lambda: demo_service.open == 0 and demo_service.llm.occupancy.running == 0)
    after = httpx.post(f"{demo_server}/v1/chat/completions", json=ask, timeout=60)
    assert after.json()["choices"] == alone
