"""What goes into one step of the compiled model and what comes out; the engine fills it, `model` runs it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Batch:
    """Rows to append to the cache and to run; rows of one sequence see each other causally.

    `expanded` says which form of attention: true only for one whole aligned block of a prompt, alone.
    """

    tokens: np.ndarray  # int32 (rows,)
    positions: np.ndarray  # int32 (rows,): position of the row in its sequence
    sequences: np.ndarray  # int32 (rows,): row of page_table that the row belongs to
    page_table: np.ndarray  # int32 (num_sequences, max_pages): physical page of each logical page; unused entries 0
    wanted: np.ndarray  # int32 (wanted,): rows whose logits are wanted, at least one
    expanded: bool = False


@dataclass(frozen=True)
class StepOutput:
    """Results of a step; the next step may overwrite the arrays."""

    logits: np.ndarray  # float32 (wanted, vocab_size)
    hidden: np.ndarray  # float32 (rows, hidden_size), after the final norm
