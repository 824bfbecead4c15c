"""A client that reads streamed answers and notes when each piece came. One connection; for one thread at a time."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlc_dsv3.runtime.messages import Message

_TIMEOUT = 120.0  # seconds without a byte


@dataclass
class Answer:
    """One streamed answer. Times are `time.perf_counter`'s; `error` is why there is none."""

    sent: float
    text: str = ""
    pieces: list[float] = field(default_factory=list)  # when each piece of text came
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None

    @property
    def first(self) -> float:
        """Seconds from the request to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def longest_gap(self) -> float:
        """Seconds between two pieces, at most."""
        return max((later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)), default=0.0)


class Client:
    """A connection to a server of OpenAI's API on this machine."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)

    def chat(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        """The greedy answer to a conversation."""
        return self._stream("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens})

    def complete(self, prompt: list[int], max_tokens: int) -> Answer:
        """Go on greedily from token ids for exactly so many tokens."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}
        return self._stream("/v1/completions", body)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _stream(self, path: str, body: dict[str, Any]) -> Answer:
        asked = {**body, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(asked).encode()
        answer = Answer(time.perf_counter())
        try:
            self._connection.request("POST", path, content, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            if response.status != 200:
                answer.error = f"status {response.status}: {response.read(500).decode(errors='replace')}"
                return answer
            while line := response.readline():
                if line.startswith(b"data: {"):
                    _take(answer, json.loads(line[6:]))
        except (OSError, http.client.HTTPException) as error:
            answer.error = f"{type(error).__name__}: {error}"
            self._connection.close()
        if answer.error is None and not answer.pieces:
            answer.error = "no token came"
        return answer


def _take(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        answer.error = str(event["error"])
    for choice in event.get("choices", ()):
        delta = choice.get("delta", choice)
        text = delta.get("content") or delta.get("text") or ""
        if text or choice.get("finish_reason"):
            answer.pieces.append(time.perf_counter())
            answer.text += text
    if usage := event.get("usage"):
        answer.tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
