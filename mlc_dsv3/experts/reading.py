"""A model that reads a text, with its routers watched: which experts each token goes to, in every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlc_dsv3.errors import NotFiniteError
from mlc_dsv3.experts.watch import Routed, RouterWatch
from mlc_dsv3.runtime.batch import Batch
from mlc_dsv3.runtime.capacity import Room
from mlc_dsv3.runtime.model import CompiledModel
from relax_model.config import ModelConfig

# Tokens that are read in one step.
STRETCH = 512


@dataclass(frozen=True)
class Read:
    """One stretch: `routed` are the routers' logits, float32 (rows, experts), and choices, int32 (rows, top-k), by
    layer; `logits` the model's own, float32 (rows, vocabulary), where they were wanted."""

    routed: list[Routed]
    logits: np.ndarray | None


@dataclass(frozen=True)
class Stretch:
    """Tokens that are read in one step: `start` is the position of the first in its context."""

    tokens: np.ndarray  # int32 (rows,)
    start: int = 0


class Reader:
    """Reads with a model that has experts."""

    def __init__(self, model: CompiledModel, context_window: int | None = None) -> None:
        """A text is read in contexts of `context_window` tokens (None: one stretch), each by itself."""
        assert model.config.router is not None
        metadata = model.metadata
        self._model = model
        self._watch = RouterWatch(model.config.router)
        self._window = context_window or min(STRETCH, metadata.max_rows, metadata.context_window)
        self._rows = min(STRETCH, metadata.max_rows, self._window)
        self._pages = -(-self._window // metadata.page_size)
        model.allocate_cache(self._pages)

    @property
    def moe_layers(self) -> list[int]:
        """The layers with experts, but for the MTP layers."""
        return moe_layers(self._model.config)

    def stretches(self, tokens: Sequence[int]) -> list[Stretch]:
        """The text in parts that are read one after the other."""
        contexts = [tokens[at : at + self._window] for at in range(0, len(tokens), self._window)]
        return [
            Stretch(np.array(context[start : start + self._rows], np.int32), start)
            for context in contexts
            for start in range(0, len(context), self._rows)
        ]

    def read(self, stretch: Stretch, *, want_logits: bool = False) -> Read:
        """One stretch; those of its context that come before have been read."""
        rows = len(stretch.tokens)
        wanted = np.arange(0 if want_logits else rows - 1, rows, dtype=np.int32)
        table = np.arange(self._pages, dtype=np.int32)[None]
        positions = np.arange(stretch.start, stretch.start + rows, dtype=np.int32)
        with self._watch.on(self._model.library):
            output = self._model.step(Batch(stretch.tokens, positions, np.zeros(rows, np.int32), table, wanted))
        routed = self._watch.take()
        assert len(routed) == len(self.moe_layers)
        if want_logits and not np.isfinite(output.logits).all():
            raise NotFiniteError(f"the model's logits are not finite; {self._model.advice_for_more_range()}")
        return Read(routed, output.logits.copy() if want_logits else None)

    def read_all(self, tokens: Sequence[int]) -> Iterator[Read]:
        """Every stretch of a text."""
        for stretch in self.stretches(tokens):
            yield self.read(stretch)


def reading_room(context_window: int | None) -> Room:
    """What a `Reader` takes of the memory."""
    return Room(context_window, max_batch=1)


def moe_layers(config: ModelConfig) -> list[int]:
    """The layers with experts, but for the MTP layers."""
    return [layer for layer in range(config.num_hidden_layers) if config.moe_layers[layer]]
