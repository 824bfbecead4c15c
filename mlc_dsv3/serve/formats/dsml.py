"""DeepSeek V3.2's calls, in DSML:

<｜DSML｜function_calls>⏎<｜DSML｜invoke name="NAME">⏎<｜DSML｜parameter name="KEY" string="true|false">VALUE
</｜DSML｜parameter>⏎…</｜DSML｜invoke>⏎…</｜DSML｜function_calls>
"""

from __future__ import annotations

import re
from collections.abc import Generator

from mlc_dsv3.serve.formats.lark import Lark, literal
from mlc_dsv3.serve.formats.parameter_grammar import ParameterCallGrammar
from mlc_dsv3.serve.formats.parameters import ParameterReader
from mlc_dsv3.serve.formats.reader import SPACE
from mlc_dsv3.serve.formats.tools import Tool

_SECTION, _END_OF_SECTION = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"
_CALL, _END = "<｜DSML｜invoke", "</｜DSML｜invoke>"
_PARAMETER, _END_OF_PARAMETER = "<｜DSML｜parameter", "</｜DSML｜parameter>"
# One attribute after the other, so that text which cannot become one is known at once.
_ATTRIBUTE = re.compile(r'[^"<>\n]+')


class DsmlReader(ParameterReader):
    """A name, and parameters that say whether they are strings."""

    section_begin, section_end, call_begin, call_end = _SECTION, _END_OF_SECTION, _CALL, _END

    def _call(self) -> Generator[None, None, bool]:
        name = yield from self._attribute("name")
        if name is None or not (yield from self._next(">")) or not self._is_call_of(name):
            return False
        yield from self._run_of(SPACE)
        marker = yield from self._next(_PARAMETER, _END)
        if not marker:
            return False
        self._start(name)
        parsed = len(self._taken) - len(marker)
        while marker == _PARAMETER:
            key = yield from self._attribute("name")
            string = yield from self._attribute("string")
            if key is None or not (yield from self._next(">")):
                break
            yield from self._value(key, _END_OF_PARAMETER, {"true": True, "false": False}.get(string))
            parsed = len(self._taken)
            yield from self._run_of(SPACE)
            marker = yield from self._next(_PARAMETER, _END)
        self._finish(_END if marker == _END else None, parsed)
        return True

    def _attribute(self, name: str) -> Generator[None, None, str | None]:
        """The value of the attribute `name`, if that is what comes here."""
        yield from self._run_of(SPACE)
        if not (yield from self._next(f'{name}="')):
            return None
        value = yield from self._run_of(_ATTRIBUTE)
        return value if (yield from self._next('"')) else None


class DsmlGrammar(ParameterCallGrammar):
    """See above. Before the calls there are two line breaks, even where there is no content."""

    before, between, after = literal(f"\n\n{_SECTION}\n"), r'"\n"', rf'"\n" {literal(_END_OF_SECTION)}'
    end_of_value, behind_value = _END_OF_PARAMETER, "\n"

    def call(self, lark: Lark, tool: Tool) -> str:
        head = literal(f'{_CALL} name="{tool.name}">\n')
        return f"{head} {self.parameters(lark, tool)} {literal(_END)}"

    def head(self, key: str, is_string: bool) -> str:
        return f'{_PARAMETER} name="{key}" string="{str(is_string).lower()}">'

    def reads_json(self, types: frozenset[str]) -> bool:
        return False
