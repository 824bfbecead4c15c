"""`AnswerReader`: what all formats share, from reasoning to content to calls. Subclasses read one call each.

Text that does not parse is content: a call that breaks before its name is known is given back as it was.
"""

from __future__ import annotations

import re
import uuid
from abc import abstractmethod
from collections.abc import Generator, Sequence

from mlc_dsv3.serve.formats.events import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart
from mlc_dsv3.serve.formats.json_text import JsonSpan
from mlc_dsv3.serve.formats.machine import Machine, Steps
from mlc_dsv3.serve.formats.reasoning import END_OF_THINK, THINK, ReasoningTags
from mlc_dsv3.serve.formats.tools import Tool

SPACE = re.compile(r"\s+")
NAME = re.compile(r"""[^\s<>|｜"'`{}()\[\],]+""")


class AnswerReader(Machine):
    """Reasoning, then content and calls in any order."""

    section_begin: str | None = None  # what stands before the calls
    section_end: str | None = None
    call_begin: str | None = None  # None: a format without calls
    call_end = ""

    def __init__(self, opening: str, tools: Sequence[Tool], reasoning: ReasoningTags) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._opening, self._tags = opening, reasoning
        self._held = ""  # white space that is content unless a call follows
        self._calls = 0
        self._at_start = END_OF_THINK in opening  # behind reasoning or a call, where line breaks say nothing
        self._thinks = True  # until the reasoning, if any, has ended
        super().__init__()

    @property
    def call_markers(self) -> tuple[str, ...]:
        """What begins calls. Without tools, nothing does."""
        if not self.tools or self.call_begin is None:
            return ()
        return (self.call_begin,) if self.section_begin is None else (self.section_begin, self.call_begin)

    def _run(self) -> Steps:
        yield from self._reasoning()
        self._thinks = False
        while marker := (yield from self._until(self.call_markers, self._content)):
            yield from self._section(marker)
        if self._held and not self._at_start:
            self._emit(Content(self._held))

    def _reasoning(self) -> Steps:
        """The reasoning, where there is some, and the calls that ended it."""
        if self._tags is ReasoningTags.NONE or END_OF_THINK in self._opening:
            return
        yield from self._run_of(SPACE)
        begun = yield from self._next(THINK)  # by the model, maybe a second time
        before = self._cut()
        if not begun and THINK not in self._opening:
            self._content(before)
            return
        self._thought("" if begun else before)
        calls = self.call_markers if self._tags is ReasoningTags.CLOSED_BY_CALLS else ()
        while marker := (yield from self._until((END_OF_THINK, *calls), self._thought)):
            if marker == END_OF_THINK:
                self._cut()
                self._at_start = True
                return
            yield from self._section(marker)
            if self._calls:
                return

    def _thought(self, text: str) -> None:
        self._cut()
        if text:
            self._emit(Reasoning(text))

    def _content(self, text: str) -> None:
        """Emit content, but for white space at its end, which may belong to a call."""
        self._cut()
        text = self._held + text
        kept = text.rstrip() if self.call_markers else text
        self._held = text[len(kept) :]
        self._taken = self._held
        if self._at_start:
            kept = kept.lstrip("\n")
        if kept:
            self._at_start = False
            self._emit(Content(kept))

    def _section(self, marker: str) -> Steps:
        """Calls from the first marker on, up to what is no call."""
        if marker == self.section_begin:
            yield from self._run_of(SPACE)
            if not (yield from self._next(self.call_begin)):
                self._give_back()
                return
        while True:
            if not (yield from self._call()):
                self._give_back()
                return
            self._held, self._at_start, self._thinks = "", True, False
            self._calls += 1
            yield from self._run_of(SPACE)
            ends = () if self.section_end is None else (self.section_end,)
            marker = yield from self._next(self.call_begin, *ends)
            if marker != self.call_begin:
                break
        if marker is None:
            self._held = self._cut()
            self._taken = self._held
            return
        self._cut()

    def _give_back(self) -> None:
        taken, self._held = self._cut(), ""
        if self._thinks:
            self._thought(taken)
        else:
            self._content(taken)

    @abstractmethod
    def _call(self) -> Generator[None, None, bool]:
        """Read a call behind its first marker, and emit its events. False, and no event, where it is none."""

    def _is_call_of(self, name: str) -> bool:
        """Whether this is a tool's name. While the model reasons, only those it has been given are."""
        return name in self.tools if self._thinks else bool(name)

    def _start(self, name: str, identity: str | None = None) -> None:
        self._emit(ToolCallStart(self._calls, identity or f"call_{uuid.uuid4().hex[:24]}", name))

    def _arguments(self, text: str) -> None:
        self._emit(ToolCallArguments(self._calls, text))

    def _end(self, *, whole: bool) -> None:
        raw = self._cut()
        self._emit(ToolCallEnd(self._calls, raw if whole else ""))

    def _json_begins(self, end: str) -> Generator[None, None, bool]:
        """Whether a JSON object comes here, or the marker `end` in place of one."""
        yield from self._run_of(SPACE)
        while not self._text.startswith(("{", end)):
            if self._ended or not end.startswith(self._text):
                return False
            yield
        return True

    def _json_arguments(self, end: str, closing: str = "") -> Steps:
        """A JSON object, up to the marker `end`; its strings may hold the marker.

        What stands between the object and the marker, other than `closing`, is passed on, so that nothing is lost.
        """
        begun, span = self._text.startswith("{"), JsonSpan()
        while begun:
            at = span.end(self._text)
            self._pass(len(self._text) if at is None else at, self._arguments)
            if at is not None or self._ended:
                break
            yield
        rest: list[str] = []
        found = yield from self._until((end,), rest.append)
        if left := "".join(rest).strip().removesuffix(closing).rstrip():
            self._arguments(left)
        elif not begun:
            self._arguments("{}")
        self._end(whole=found is not None)


class PlainReader(AnswerReader):
    """No calls."""

    def _call(self) -> Generator[None, None, bool]:
        raise AssertionError("nothing begins a call")
