"""A model that reads a text, with its routers watched: which experts each token goes to, in every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.batch import Batch
from mlc_dsv3.runtime.model import CompiledModel

# Tokens of a stretch of the text, each of which is read by itself.
STRETCH = 512
_ROUTE = "route"


@dataclass(frozen=True)
class Read:
    """One stretch: `routed` are the routers' logits, float32 (rows, experts), and choices, int32 (rows, top-k), by
    layer; `logits` the model's own, float32 (rows, vocabulary), where they were wanted."""

    routed: list[tuple[np.ndarray, np.ndarray]]
    logits: np.ndarray | None


class Reader:
    """Reads with a model on the CPU, whose routers are kernels of their own."""

    def __init__(self, model: CompiledModel) -> None:
        if model.metadata.device != "cpu":
            raise UserError(f"routers are watched on the device cpu, and the library is for {model.metadata.device}")
        self._model, self._page = model, model.metadata.page_size
        self._rows = min(STRETCH, model.metadata.max_rows, model.metadata.context_window)
        self._pages = -(-self._rows // self._page)
        model.allocate_cache(self._pages)

    @property
    def moe_layers(self) -> list[int]:
        """The layers with experts, but for the MTP layers."""
        config = self._model.config
        return [layer for layer in range(config.num_hidden_layers) if config.moe_layers[layer]]

    def stretches(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """The text in parts that are read one by one."""
        return [np.array(tokens[at : at + self._rows], np.int32) for at in range(0, len(tokens), self._rows)]

    def read(self, tokens: np.ndarray, *, want_logits: bool = False) -> Read:
        """One stretch."""
        routed: list[tuple[np.ndarray, np.ndarray]] = []

        def around(_: Any, symbol: str, before: bool, __: Any, *arguments: Any) -> int:
            if not before and str(symbol).startswith(_ROUTE):
                tensors = [argument for argument in arguments if hasattr(argument, "shape")]
                logits, ids = tensors[-5], tensors[-4]  # the kernel's outputs end with weights, pairs and starts
                routed.append((np.from_dlpack(logits).copy(), np.from_dlpack(ids).copy()))
            return 0

        rows = len(tokens)
        wanted = np.arange(0 if want_logits else rows - 1, rows, dtype=np.int32)
        table = np.arange(self._pages, dtype=np.int32)[None]
        where = (np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32), table, wanted)
        self._model.library.instrument(around)
        try:
            output = self._model.step(Batch(tokens, *where))
            logits = output.logits.copy() if want_logits else None
        finally:
            self._model.library.instrument(None)
        assert len(routed) == len(self.moe_layers)
        return Read(routed, logits)

    def read_all(self, tokens: Sequence[int]) -> Iterator[Read]:
        """Every stretch of a text."""
        for stretch in self.stretches(tokens):
            yield self.read(stretch)
