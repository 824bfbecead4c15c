"""What an answer's text says, as events: every dialect of the server translates these, and `chat` shows them.

A reader may cut the texts of `Reasoning`, `Content` and `ToolCallArguments` anywhere; joined, they are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins. `index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A piece of the arguments' JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call ends.

    raw: the exact text that was sampled for it, from the end of the content or of the call before it; "" where the
    answer ended before the call did.
    """

    index: int
    raw: str


Event = Reasoning | Content | ToolCallStart | ToolCallArguments | ToolCallEnd


class Reader(Protocol):
    """Reads the text of one answer."""

    def feed(self, text: str) -> list[Event]:
        """The events that the next piece of text completes."""
        ...

    def finish(self) -> list[Event]:
        """The events of what was held back, when the answer has ended."""
        ...
