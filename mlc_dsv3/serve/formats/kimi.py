"""Kimi K2's calls: <|tool_calls_section_begin|>, calls, <|tool_calls_section_end|>.

A call is <|tool_call_begin|>functions.NAME:NUMBER<|tool_call_argument_begin|>{…}<|tool_call_end|>. What stands between
the first two markers is the call's id, which the template writes again before the result.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from mlc_dsv3.serve.formats.call_grammar import JsonCallGrammar
from mlc_dsv3.serve.formats.lark import Lark, literal
from mlc_dsv3.serve.formats.reader import NAME, SPACE, AnswerReader
from mlc_dsv3.serve.formats.reasoning import ReasoningTags
from mlc_dsv3.serve.formats.tools import Tool

_SECTION, _END_OF_SECTION = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_ID = re.compile(r"(?:functions\.)?(?P<name>.+?)(?P<number>:\d+)?")


class KimiReader(AnswerReader):
    """An id that names the function, and JSON."""

    section_begin, section_end, call_begin, call_end = _SECTION, _END_OF_SECTION, _CALL, _END

    def __init__(self, opening: str, tools: Sequence[Tool], reasoning: ReasoningTags) -> None:
        super().__init__(opening, tools, reasoning)
        self._ids: set[str] = set()

    def _call(self) -> Generator[None, None, bool]:
        yield from self._run_of(SPACE)
        identity = yield from self._run_of(NAME)
        yield from self._run_of(SPACE)
        if not identity or not (yield from self._next(_ARGUMENTS)):
            return False
        found = _ID.fullmatch(identity)
        if not self._is_call_of(found["name"]) or not (yield from self._json_begins(_END)):
            return False
        # Clients tell calls apart by their ids, so that a number is needed, and each but once.
        self._start(found["name"], identity if found["number"] and identity not in self._ids else None)
        self._ids.add(identity)
        yield from self._json_arguments(_END)
        return True


class KimiGrammar(JsonCallGrammar):
    """See above. The model counts its calls itself."""

    before, after = literal(_SECTION), literal(_END_OF_SECTION)

    def call(self, lark: Lark, tool: Tool) -> str:
        head = f"{literal(f'{_CALL}functions.{tool.name}:')} /[0-9]{{1,4}}/ {literal(_ARGUMENTS)}"
        return f"{head} {self.arguments(tool)} {literal(_END)}"
