"""Where a JSON value ends in text that arrives in pieces."""

from __future__ import annotations

import re

_TOKENS = re.compile(r'["\\{}\[\]]')


class JsonSpan:
    """Follows one JSON object or array to its closing bracket, whatever its strings hold."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, piece: str) -> int | None:
        """Index in `piece` behind the value's end; None where it goes on. The first piece begins with its bracket."""
        at = 0
        if self._escaped and piece:
            self._escaped, at = False, 1
        while found := _TOKENS.search(piece, at):
            token, at = found[0], found.end()
            if self._in_string:
                if token == '"':
                    self._in_string = False
                elif token == "\\":
                    self._escaped = at == len(piece)
                    at += 1
            elif token == '"':
                self._in_string = True
            elif token in "{[":
                self._depth += 1
            elif token in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at
        return None
