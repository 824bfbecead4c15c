"""`Lark`: a grammar under construction, in llguidance's variant of Lark.

Answers show a format's markers as text, so that they are strings here too, never `<name>`. llguidance always takes the
longest string that may come: where "a" may come and "ab" too, "ac" cannot, so that strings must not begin alike there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlc_dsv3.runtime.grammar import JSON_WHITE_SPACE

_SLASHES = re.compile(r"(\\.)|/", re.DOTALL)


class Lark:
    """Rules with names of their own. The grammar's beginning is the rule `start`."""

    def __init__(self) -> None:
        self._rules: list[str] = []

    def rule(self, body: str, options: str = "") -> str:
        """A new rule's name. `options` are llguidance's, such as "lazy"."""
        return self._named(f"r{len(self._rules)}", body, f"[{options}]" if options else "")

    def terminal(self, body: str) -> str:
        """A new terminal's name: a regular expression, which `&` and `~` may combine."""
        return self._named(f"T{len(self._rules)}", body)

    def text(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *self._rules, ""])

    def _named(self, name: str, body: str, options: str = "") -> str:
        self._rules.append(f"{name}{options}: {body}")
        return name


def literal(text: str) -> str:
    """Exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def regex(pattern: str) -> str:
    """A regular expression of Rust's regex crate."""
    escaped = _SLASHES.sub(lambda found: found[1] or r"\/", pattern)
    return f"/{escaped.replace(chr(10), chr(92) + 'n')}/"


def json_value(schema: Mapping[str, Any]) -> str:
    """A JSON value that is valid by `schema`."""
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': JSON_WHITE_SPACE}})}"
