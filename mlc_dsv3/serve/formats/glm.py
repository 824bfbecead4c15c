"""GLM's calls: GLM-4.5 and 4.6 with line breaks, GLM-4.7 and later without.

<tool_call>NAME⏎<arg_key>KEY</arg_key>⏎<arg_value>VALUE</arg_value>⏎…</tool_call>
"""

from __future__ import annotations

from collections.abc import Generator

from mlc_dsv3.serve.formats.lark import Lark, literal
from mlc_dsv3.serve.formats.parameter_grammar import ParameterCallGrammar
from mlc_dsv3.serve.formats.parameters import ParameterReader
from mlc_dsv3.serve.formats.reader import NAME, SPACE
from mlc_dsv3.serve.formats.tools import Tool

_CALL, _END = "<tool_call>", "</tool_call>"
_KEY, _END_OF_KEY, _VALUE, _END_OF_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class GlmReader(ParameterReader):
    """A name, keys and values."""

    call_begin, call_end = _CALL, _END

    def _call(self) -> Generator[None, None, bool]:
        yield from self._run_of(SPACE)
        name = yield from self._run_of(NAME)
        yield from self._run_of(SPACE)
        marker = yield from self._next(_KEY, _END)
        if not marker or not self._is_call_of(name):
            return False
        self._start(name)
        parsed = len(self._taken) - len(marker)
        while marker == _KEY:
            key: list[str] = []
            yield from self._until((_END_OF_KEY,), key.append)
            yield from self._run_of(SPACE)
            if not (yield from self._next(_VALUE)):
                break
            yield from self._value("".join(key).strip(), _END_OF_VALUE)
            parsed = len(self._taken)
            yield from self._run_of(SPACE)
            marker = yield from self._next(_KEY, _END)
        self._finish(_END if marker == _END else None, parsed)
        return True


class GlmGrammar(ParameterCallGrammar):
    """See above. `line_break` is what stands between the parts."""

    end_of_value = _END_OF_VALUE

    def __init__(self, line_break: str) -> None:
        self._break = self.behind_value = line_break
        self.before = self.between = literal(line_break) if line_break else ""

    def call(self, lark: Lark, tool: Tool) -> str:
        head = literal(f"{_CALL}{tool.name}{self._break}")
        return f"{head} {self.parameters(lark, tool)} {literal(_END)}"

    def head(self, key: str, is_string: bool) -> str:
        return f"{_KEY}{key}{_END_OF_KEY}{self._break}{_VALUE}"

    def reads_json(self, types: frozenset[str]) -> bool:
        return types != {"string"}
