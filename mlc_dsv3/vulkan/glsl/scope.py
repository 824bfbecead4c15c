"""The text of a shader as it grows: lines in nested blocks, and names that clash with nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# A plain name or number can be repeated without being computed again.
_ATOM = re.compile(r"[A-Za-z_]\w*(\.[a-z])?|[0-9][0-9.e+-]*[a-z]*|\(-[0-9][0-9.e+-]*[a-z]*\)")


def is_atom(text: str) -> bool:
    """Whether an expression is a name or a literal."""
    return _ATOM.fullmatch(text) is not None


class Code:
    """Lines of GLSL."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 1
        self._names: dict[str, int] = {}

    def line(self, text: str) -> None:
        """Append a line at the present depth."""
        self.lines.append("    " * self._depth + text)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """`head {`, what is appended meanwhile, `}`."""
        self.line(f"{head} {{" if head else "{")
        self._depth += 1
        yield
        self._depth -= 1
        self.line("}")

    def name(self, wanted: str) -> str:
        """A name like `wanted` that nothing else has. All end in a number: no keyword of GLSL's does that."""
        base = re.sub(r"_+", "_", re.sub(r"\W", "_", wanted)).strip("_") or "v"
        base = base.rstrip("0123456789").rstrip("_") or "v"
        base = f"v{base}" if base[0].isdigit() or base.startswith("gl") else base
        self._names[base] = self._names.get(base, -1) + 1
        return f"{base}_{self._names[base]}"

    def temporary(self, type_: str, text: str) -> str:
        """A name for the value of an expression: the expression itself where that is as good."""
        if is_atom(text):
            return text
        name = self.name("t")
        self.line(f"{type_} {name} = {text};")
        return name
