"""What goes into one step of the compiled model and what comes out; the engine fills it, `model` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
class DraftBatch:
    """Rows for the MTP layer: row i is of the hidden state `hidden[sources[i]]` at `positions[i]`, and of `tokens[i]`,
    the token after it."""

    tokens: np.ndarray  # int32 (rows,)
    hidden: Any  # float32 (states, hidden_size): a step's `hidden_tensor`, or an array
    sources: np.ndarray  # int32 (rows,)
    positions: np.ndarray  # int32 (rows,)
    sequences: np.ndarray  # int32 (rows,): row of page_table that the row belongs to
    page_table: np.ndarray  # int32 (num_sequences, max_pages)


class StepOutput:
    """Results of a step or a draft, which stay where they were computed until somebody reads them; the next step may
    overwrite the arrays."""

    def __init__(self, logits: Any, hidden: Any, read: Callable[[Any], np.ndarray] = np.asarray) -> None:
        """`read` brings a tensor to the host, once what computes it has run."""
        self.logits_tensor, self.hidden_tensor, self._read = logits, hidden, read

    @cached_property
    def logits(self) -> np.ndarray:
        """float32 (wanted, vocab_size)."""
        return self._read(self.logits_tensor)

    @cached_property
    def hidden(self) -> np.ndarray:
        """float32 (rows, hidden_size), after the final norm."""
        return self._read(self.hidden_tensor)
