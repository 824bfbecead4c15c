"""The load of the routed experts while a server runs: a sample of the latest text, read again under a watch.

Watching every step would slow all of them down. A sample is taken only when somebody asks, and rarely enough to take
no more than a small part of the engine's time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from mlc_dsv3.experts.load import recent_load
from mlc_dsv3.experts.reading import moe_layers
from mlc_dsv3.runtime.llm import LLM

_SHARE_OF_TIME = 0.02
_TOKENS = 128  # of a sample: the requests wait meanwhile


class ExpertShares:
    """The latest sample, taken anew when it is asked for, there is new text and enough time has gone by."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._text: Sequence[int] = ()
        self._sampled: tuple[int, int] | None = None  # the text, by its identity, and its length then
        self._due = 0.0
        self._tokens = 0
        self._sampling = asyncio.Lock()
        config = llm.artifact.model_config
        self._layers = moe_layers(config) if config.router is not None else ()
        experts = config.router.n_routed_experts if config.router is not None else 0
        self._shares = [[0.0] * experts for _ in self._layers]

    def follow(self, tokens: Sequence[int]) -> None:
        """Take samples of this text from here on: a prompt, which grows by what is generated behind it."""
        self._text = tokens

    async def read(self) -> dict[str, Any] | None:
        """`layers` (numbers of those with experts), `experts` of each, `load` (shares of each layer's choices, by layer
        and expert) and `tokens`, how many the sample has; None for a model without routed experts."""
        if not self._layers:
            return None
        async with self._sampling:
            if self._text and self._sampled != (id(self._text), len(self._text)) and time.monotonic() >= self._due:
                await asyncio.to_thread(self._sample)
        shares = self._shares
        return {"layers": list(self._layers), "experts": len(shares[0]), "load": shares, "tokens": self._tokens}

    def peaks(self) -> dict[int, float]:
        """By how much of an even load each layer's busiest expert has, in the latest sample; empty before the first."""
        if not self._tokens:
            return {}
        pairs = zip(self._layers, self._shares, strict=True)
        return {layer: max(shares) * len(shares) for layer, shares in pairs}

    def _sample(self) -> None:
        started, text = time.monotonic(), self._text
        self._sampled = id(text), len(text)
        sampled = recent_load(self._llm, list(text[-_TOKENS:]), last=_TOKENS)
        if sampled is not None:
            self._tokens, load = sampled
            self._shares = (load.counts / load.counts.sum(axis=1, keepdims=True)).round(6).tolist()
        now = time.monotonic()
        self._due = now + (now - started) / _SHARE_OF_TIME
