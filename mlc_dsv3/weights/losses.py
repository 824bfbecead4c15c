"""What a conversion loses to its format's smallest number, tensor by tensor: said, or refused where it is too much."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from mlc_dsv3.errors import UserError, warn
from mlc_dsv3.quantization import Underflow, smallest_number, wider_formats
from relax_model.layout import Layout

# Of the sum of a tensor's squares: beyond it, a sixteenth of the values' root mean square is lost, which is about what
# 4 bits lose anyway.
_MOST_LOST = 1 / 256


@dataclass
class _Tensor:
    rows: int = 0
    squares: float = 0.0
    lost: float = 0.0
    groups: int = 0


class Losses:
    """Adds up what the blocks of each tensor lose; several threads may add at once."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._tensors: dict[str, _Tensor] = {}
        self._vanished: dict[str, int] = {}  # tensor → its groups that became zero

    def add(self, name: str, values: np.ndarray, loss: Underflow, rows: int) -> None:
        """Count a block of `values` of the tensor `name`, which has `rows` rows in all.

        UserError at its last block where the tensor as a whole is too small for the format.
        """
        with self._lock:
            tensor = self._tensors.setdefault(name, _Tensor())
            tensor.rows += len(values)
            tensor.squares += float(np.vdot(values, values))
            tensor.lost += loss.lost
            tensor.groups += loss.groups
            if tensor.rows < rows:
                return
            del self._tensors[name]
            if tensor.groups:
                self._vanished[name] = tensor.groups
        # The squares are summed in float32, where those of the smallest values are zeros.
        if tensor.lost > _MOST_LOST * max(tensor.squares, tensor.lost):
            share = (tensor.lost / max(tensor.squares, tensor.lost)) ** 0.5
            raise UserError(
                f"tensor {name} holds values that are too small for {self._layout.name}, whose smallest number is "
                f"{smallest_number(self._layout):.1g}: {share:.0%} of them would be lost; use "
                f"{wider_formats(self._layout)}"
            )

    def report(self) -> None:
        """Warn of groups that became zero in tensors that are otherwise kept."""
        if not self._vanished:
            return
        first, *others = sorted(self._vanished)
        more = f" and {len(others)} more" if others else ""
        warn(
            f"{sum(self._vanished.values())} groups of values in {first}{more} lie below the smallest number of "
            f"{self._layout.name}, {smallest_number(self._layout):.1g}, and become zeros: less than a sixteenth of "
            f"each tensor; {wider_formats(self._layout)} keep them"
        )
