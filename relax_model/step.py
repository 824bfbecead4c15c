"""What all layers of one step share: where each row stands, and the rotary table for its position."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.relax import Expr


@dataclass(frozen=True)
class Step:
    """Rows of a step. `expanded` is a whole block of one prompt, which attends in the expanded form."""

    positions: Expr  # int32 (rows,)
    sequences: Expr  # int32 (rows,)
    page_table: Expr  # int32 (sequences, pages of each)
    rope_table: Expr  # float32 (rows, qk_rope_head_dim)
    expanded: bool

    @property
    def where(self) -> list[Expr]:
        """Where rows stand, as attention's kernels take it."""
        return [self.positions, self.sequences, self.page_table]
