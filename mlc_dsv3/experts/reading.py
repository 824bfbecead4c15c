"""A model that reads a text, with its routers watched: which experts each token goes to, in every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlc_dsv3.experts.watch import Routed, RouterWatch
from mlc_dsv3.runtime.batch import Batch
from mlc_dsv3.runtime.model import CompiledModel
from relax_model.config import ModelConfig

# Tokens of a stretch of the text, each of which is read by itself.
STRETCH = 512


@dataclass(frozen=True)
class Read:
    """One stretch: `routed` are the routers' logits, float32 (rows, experts), and choices, int32 (rows, top-k), by
    layer; `logits` the model's own, float32 (rows, vocabulary), where they were wanted."""

    routed: list[Routed]
    logits: np.ndarray | None


class Reader:
    """Reads with a model that has experts."""

    def __init__(self, model: CompiledModel) -> None:
        assert model.config.router is not None
        self._model, self._page = model, model.metadata.page_size
        self._watch = RouterWatch(model.config.router)
        self._rows = min(STRETCH, model.metadata.max_rows, model.metadata.context_window)
        self._pages = -(-self._rows // self._page)
        model.allocate_cache(self._pages)

    @property
    def moe_layers(self) -> list[int]:
        """The layers with experts, but for the MTP layers."""
        return moe_layers(self._model.config)

    def stretches(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """The text in parts that are read one by one."""
        return [np.array(tokens[at : at + self._rows], np.int32) for at in range(0, len(tokens), self._rows)]

    def read(self, tokens: np.ndarray, *, want_logits: bool = False) -> Read:
        """One stretch."""
        rows = len(tokens)
        wanted = np.arange(0 if want_logits else rows - 1, rows, dtype=np.int32)
        table = np.arange(self._pages, dtype=np.int32)[None]
        where = (np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32), table, wanted)
        with self._watch.on(self._model.library):
            output = self._model.step(Batch(tokens, *where))
        routed = self._watch.take()
        assert len(routed) == len(self.moe_layers)
        return Read(routed, output.logits.copy() if want_logits else None)

    def read_all(self, tokens: Sequence[int]) -> Iterator[Read]:
        """Every stretch of a text."""
        for stretch in self.stretches(tokens):
            yield self.read(stretch)


def moe_layers(config: ModelConfig) -> list[int]:
    """The layers with experts, but for the MTP layers."""
    return [layer for layer in range(config.num_hidden_layers) if config.moe_layers[layer]]
