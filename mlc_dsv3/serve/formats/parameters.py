"""`ParameterReader`: calls whose arguments are parameters, each written by itself, made into one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlc_dsv3.serve.formats.json_text import JsonSpan
from mlc_dsv3.serve.formats.machine import Steps
from mlc_dsv3.serve.formats.reader import SPACE, AnswerReader
from mlc_dsv3.serve.formats.reasoning import ReasoningTags
from mlc_dsv3.serve.formats.tools import Tool
from mlc_dsv3.serve.formats.value_types import json_type, value_types


class ParameterReader(AnswerReader):
    """A parameter's text is a string as it is, or any other value as JSON. Strings stream, other values come whole."""

    def __init__(self, opening: str, tools: Sequence[Tool], reasoning: ReasoningTags) -> None:
        super().__init__(opening, tools, reasoning)
        self._parameters = 0
        self._schema: Mapping[str, Any] = {}

    def _start(self, name: str, identity: str | None = None) -> None:
        super()._start(name, identity)
        self._parameters = 0
        self._schema = self.tools[name].parameters if name in self.tools else {}

    def _value(self, key: str, end: str, is_string: bool | None = None) -> Steps:
        """A value up to the marker `end`. Where the format does not say whether it is a string, the schema does."""
        types = value_types(self._schema, key) - ({"string"} if is_string is False else set())
        self._arguments("{" if self._parameters == 0 else ", ")
        self._arguments(f"{json.dumps(key, ensure_ascii=False)}: ")
        self._parameters += 1
        if is_string or (is_string is None and types == {"string"}):
            self._arguments('"')
            found = yield from self._until((end,), self._string)
            if found:
                self._arguments('"')
            return
        pieces: list[str] = []
        yield from self._json_span(types, pieces.append)
        if (yield from self._until((end,), pieces.append)):
            text = "".join(pieces)
            self._arguments(text.strip() if _is_json(text, types) else json.dumps(text, ensure_ascii=False))

    def _json_span(self, types: frozenset[str], pass_on: Callable[[str], None]) -> Steps:
        """Take an object or array, whose strings may hold the marker behind it. Nothing, where none comes or ends."""
        before = len(self._taken)
        yield from self._run_of(SPACE)
        while not self._text and not self._ended:
            yield
        brackets = {"{": "object", "[": "array"}
        if brackets.get(self._text[:1]) in types:
            span = JsonSpan()
            while True:
                at = span.end(self._text)
                self._take(len(self._text) if at is None else at)
                if at is not None:
                    pass_on(self._taken[before:])
                    return
                if self._ended:
                    break
                yield
        self._untake(before)

    def _string(self, text: str) -> None:
        self._arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def _finish(self, end: str | None, parsed: int) -> None:
        """End the call: behind its marker `end`, or where what was taken after `parsed` characters is no parameter.

        That goes back into the text. Where the answer ended within the call, the object stays open, and the beginning
        of a parameter or of a marker is dropped.
        """
        if end is None and self._ended:
            self._text = ""
        else:
            if end is None:
                self._untake(parsed)
            self._arguments("}" if self._parameters else "{}")
        self._end(whole=end is not None)


def _is_json(text: str, types: frozenset[str]) -> bool:
    """Whether the text is JSON of one of these types; that of a string is a string's own text where it may be one."""
    try:
        found = json_type(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return False
    return "string" not in types or (found != "string" and found in types)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
