"""`Machine`: a state machine over text that arrives in pieces, written as a generator.

A format is then read from top to bottom, as a parser of a whole text would be: each step below waits, by `yield`, until
the text so far settles what it asks, or the answer has ended.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator

from mlc_dsv3.runtime.stopping import undecided
from mlc_dsv3.serve.formats.events import Event

Steps = Generator[None, None, None]


class Machine(ABC):
    """Text in, events out. What is held back is no more than may belong to a marker, or what has no meaning yet."""

    def __init__(self) -> None:
        self._taken = ""  # since the latest `cut`
        self._text = ""  # arrived, not yet taken
        self._ended = False
        self._events: list[Event] = []
        self._steps = self._run()

    def feed(self, text: str) -> list[Event]:
        """The events that `text` completes."""
        self._text += text
        return self._advance()

    def finish(self) -> list[Event]:
        """The events of what was held back, when no more text comes."""
        self._ended = True
        return self._advance()

    @abstractmethod
    def _run(self) -> Steps:
        """Read one answer."""

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _advance(self) -> list[Event]:
        next(self._steps, None)
        events, self._events = self._events, []
        return events

    def _cut(self) -> str:
        """The text taken since the last cut."""
        taken, self._taken = self._taken, ""
        return taken

    def _take(self, length: int) -> str:
        piece, self._text = self._text[:length], self._text[length:]
        self._taken += piece
        return piece

    def _untake(self, kept: int) -> None:
        """Put back what was taken since the latest cut, but for the first `kept` characters."""
        self._text = self._taken[kept:] + self._text
        self._taken = self._taken[:kept]

    def _until(self, markers: tuple[str, ...], pass_on: Callable[[str], None]) -> Generator[None, None, str | None]:
        """Hand text to `pass_on` up to the first of the markers; take that and return it. None: the answer ended."""
        while True:
            found = [(at, marker) for marker in markers if (at := self._text.find(marker)) >= 0]
            if found:
                at, marker = min(found)
                self._pass(at, pass_on)
                return self._take(len(marker))
            self._pass(len(self._text) - (0 if self._ended else undecided(self._text, markers)), pass_on)
            if self._ended:
                return None
            yield

    def _pass(self, length: int, pass_on: Callable[[str], None]) -> None:
        if length:
            pass_on(self._take(length))

    def _run_of(self, characters: re.Pattern[str]) -> Generator[None, None, str]:
        """The longest run of `characters` (one or more of a class) here, maybe none."""
        while True:
            found = characters.match(self._text)
            end = found.end() if found else 0
            if end < len(self._text) or self._ended:
                return self._take(end)
            yield

    def _next(self, *markers: str) -> Generator[None, None, str | None]:
        """Which of the markers comes here, taken; None, and nothing taken, where something else does."""
        while True:
            for marker in markers:
                if self._text.startswith(marker):
                    return self._take(len(marker))
            if self._ended or not any(marker.startswith(self._text) for marker in markers):
                return None
            yield
