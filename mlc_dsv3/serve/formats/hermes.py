"""Calls as one JSON object, as of Youtu-LLM: <tool_call>{"name": "NAME", "arguments": {…}}</tool_call>."""

from __future__ import annotations

from collections.abc import Generator

from mlc_dsv3.serve.formats.call_grammar import JsonCallGrammar
from mlc_dsv3.serve.formats.lark import Lark, literal
from mlc_dsv3.serve.formats.reader import NAME, SPACE, AnswerReader
from mlc_dsv3.serve.formats.tools import Tool

_CALL, _END = "<tool_call>", "</tool_call>"


class HermesReader(AnswerReader):
    """The name comes first, so that the arguments can stream."""

    call_begin, call_end = _CALL, _END

    def _call(self) -> Generator[None, None, bool]:
        if not (yield from self._tokens("{", '"name"', ":", '"')):
            return False
        name = yield from self._run_of(NAME)
        if not (yield from self._tokens('"', ",", '"arguments"', ":")):
            return False
        if not self._is_call_of(name) or not (yield from self._json_begins(_END)):
            return False
        self._start(name)
        yield from self._json_arguments(_END, "}")
        return True

    def _tokens(self, *tokens: str) -> Generator[None, None, bool]:
        """Take these, with any white space before each."""
        for token in tokens:
            yield from self._run_of(SPACE)
            if not (yield from self._next(token)):
                return False
        return True


class HermesGrammar(JsonCallGrammar):
    """See above."""

    between = r'"\n"?'

    def call(self, lark: Lark, tool: Tool) -> str:
        head = literal(f'{{"name": "{tool.name}", "arguments": ')
        return f'{literal(_CALL)} "\\n"? {head} {self.arguments(tool)} "}}" "\\n"? {literal(_END)}'
