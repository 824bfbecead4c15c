"""DeepSeek's calls up to V3.1: markers around a name and JSON. Several stand in one section.

V3 and R1, a line break between two:    V3.1, nothing between two:

<｜tool▁calls▁begin｜>                   <｜tool▁calls▁begin｜>
<｜tool▁call▁begin｜>function            <｜tool▁call▁begin｜>NAME
<｜tool▁sep｜>NAME                       <｜tool▁sep｜>{…}
```json                                 <｜tool▁call▁end｜>
{…}                                     <｜tool▁calls▁end｜>
```<｜tool▁call▁end｜>
<｜tool▁calls▁end｜>

Line breaks before a marker above are not in the text.
"""

from __future__ import annotations

from collections.abc import Generator

from mlc_dsv3.serve.formats.call_grammar import JsonCallGrammar
from mlc_dsv3.serve.formats.lark import Lark, literal
from mlc_dsv3.serve.formats.reader import NAME, SPACE, AnswerReader
from mlc_dsv3.serve.formats.tools import Tool

_SECTION, _END_OF_SECTION = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```"


class DeepSeekReader(AnswerReader):
    """The markers of V3 and V3.1."""

    section_begin, section_end, call_begin, call_end = _SECTION, _END_OF_SECTION, _CALL, _END


class DeepSeekV3Reader(DeepSeekReader):
    """A kind, a name and JSON in a Markdown fence."""

    def _call(self) -> Generator[None, None, bool]:
        yield from self._run_of(NAME)  # the kind, which is always "function"
        if not (yield from self._next(_SEPARATOR)):
            return False
        name = yield from self._run_of(NAME)
        yield from self._run_of(SPACE)
        fence = yield from self._next(_FENCE)
        if fence:
            yield from self._next("json")
        if not self._is_call_of(name) or not (yield from self._json_begins(_END)):
            return False
        self._start(name)
        yield from self._json_arguments(_END, fence or "")
        return True


class DeepSeekV31Reader(DeepSeekReader):
    """A name and JSON."""

    def _call(self) -> Generator[None, None, bool]:
        name = yield from self._run_of(NAME)
        separator = yield from self._next(_SEPARATOR)
        if not separator or not self._is_call_of(name) or not (yield from self._json_begins(_END)):
            return False
        self._start(name)
        yield from self._json_arguments(_END)
        return True


class DeepSeekV3Grammar(JsonCallGrammar):
    """See above; R1 leaves two line breaks behind its reasoning."""

    before, between, after = f'("\\n" "\\n"?)? {literal(_SECTION)}', r'"\n"', literal(_END_OF_SECTION)

    def call(self, lark: Lark, tool: Tool) -> str:
        head, tail = f"{_CALL}function{_SEPARATOR}{tool.name}\n{_FENCE}json\n", f"\n{_FENCE}{_END}"
        return f"{literal(head)} {self.arguments(tool)} {literal(tail)}"


class DeepSeekV31Grammar(JsonCallGrammar):
    """See above."""

    before, after = literal(_SECTION), literal(_END_OF_SECTION)

    def call(self, lark: Lark, tool: Tool) -> str:
        return f"{literal(_CALL + tool.name + _SEPARATOR)} {self.arguments(tool)} {literal(_END)}"
