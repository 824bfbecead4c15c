"""Which form of attention computes which position of a prompt.

Whole aligned blocks of a prompt run in the expanded form, each as one step; everything else is absorbed. Of a block of
512 tokens the expanded form takes a third of the absorbed one's time at the start of a prompt, and less further on. The
two forms round differently, so the choice hangs on position and prompt length alone, never on what
happens to be cached or to run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionForms:
    """The rule for blocks of `block` tokens (0: always absorbed), and the chunks that it cuts a prompt into."""

    block: int

    def expanded_span(self, prompt_length: int) -> tuple[int, int]:
        """Positions [start, stop) of a prompt that are expanded; (0, 0) where none are."""
        return (0, prompt_length // self.block * self.block) if self.block else (0, 0)

    def is_expanded(self, position: int, prompt_length: int) -> bool:
        """Whether `position` is computed in the expanded form."""
        start, stop = self.expanded_span(prompt_length)
        return start <= position < stop

    def next_chunk(self, start: int, end: int, prompt_length: int, max_rows: int) -> tuple[int, bool]:
        """Where the chunk that begins at `start` stops, at most at `end`, and whether it is an expanded block.

        A chunk of absorbed rows has at most `max_rows`; an expanded one is a whole block.
        """
        if self.is_expanded(start, prompt_length):
            assert start % self.block == 0, start
            return start + self.block, True
        return min(end, start + max_rows), False

    def reusable(self, cached: int, prompt_length: int) -> int:
        """How many of `cached` positions can be kept: a cut inside an expanded block falls back to its start."""
        if self.is_expanded(cached, prompt_length):
            return cached - cached % self.block
        return cached
