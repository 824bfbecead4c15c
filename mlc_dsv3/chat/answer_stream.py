"""Where an answer's text goes as it comes."""

from __future__ import annotations

from typing import TextIO

# What a model says must not move the cursor or recolour the screen; line ends and tabs stay.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


class AnswerStream:
    """Writes pieces at once, without control characters where `out` is a terminal."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._filtered = out.isatty()

    def write(self, text: str) -> None:
        """Show one piece of the answer."""
        self._out.write(text.translate(_CONTROLS) if self._filtered else text)
        self._out.flush()
