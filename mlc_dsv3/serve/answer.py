"""One answer while it is generated: from the engine's updates to events, by the model's format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeGuard

from mlc_dsv3.runtime.completion import TokenLogprob, Update
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.formats import Event, Reader, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart
from mlc_dsv3.serve.metrics import Metrics

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step added to one answer. The last piece of an answer has its `finish_reason`, and the stop
    string that it ended with."""

    choice: int
    events: list[Event]
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason | None
    stop: str | None


class Answer:
    """One answer: the engine's updates in, pieces out. Calls beyond the first `most_calls` are dropped."""

    def __init__(self, number: int, reader: Reader, *, most_calls: int | None) -> None:
        self._number, self._reader, self._most_calls = number, reader, most_calls
        self._calls_tools = False
        self._latest: float | None = None  # time of the latest token
        self.thinks = False  # the latest text is reasoning

    def measure(self, update: Update, now: float, started: float, metrics: Metrics) -> None:
        """Tell `metrics` of an update's tokens, which came `now`, and of the answer's end."""
        if update.token_ids and self._latest is None:
            metrics.first_token.observe(now - started)
        elif update.token_ids:
            # A step's tokens come together: each is as late as their share of the time since the step before.
            share = (now - self._latest) / len(update.token_ids)
            for _ in update.token_ids:
                metrics.between_tokens.observe(share)
        self._latest = now
        if update.finish_reason is not None:
            metrics.answers.labels(update.finish_reason).inc()
            metrics.answer_seconds.observe(now - started)

    def piece(self, update: Update) -> Piece:
        """What an update adds. ApiError for an answer that the end of the server has cut short."""
        events = self._reader.feed(update.text)
        if update.finish_reason is not None:
            events = [*events, *self._reader.finish()]
        if self._most_calls is not None:
            events = [event for event in events if not _is_call(event) or event.index < self._most_calls]
        for event in events:
            self.thinks = isinstance(event, Reasoning)
            self._calls_tools = self._calls_tools or isinstance(event, ToolCallStart)
        return Piece(self._number, events, update.logprobs, self._reason(update), update.stop)

    def _reason(self, update: Update) -> FinishReason | None:
        match update.finish_reason:
            case "cancelled":
                raise ApiError(503, "the server is shutting down")
            case "stop" if self._calls_tools:
                return "tool_calls"
            case reason:
                return reason


def _is_call(event: Event) -> TypeGuard[ToolCallStart | ToolCallArguments | ToolCallEnd]:
    return isinstance(event, (ToolCallStart, ToolCallArguments, ToolCallEnd))
