"""What the routers of a running model choose, through the Relax virtual machine's instrument hook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlc_dsv3.experts.routing import chosen_experts
from mlc_dsv3.runtime.library import Library
from relax_model.config import RouterConfig

Routed = tuple[np.ndarray, np.ndarray]  # float32 (rows, experts) logits and int (rows, top-k) choices of one layer


class RouterWatch:
    """Collects every router's logits and choices while it is `on` a library.

    On the CPU routing is a kernel, `route`, whose outputs are copied; GPUs route within `experts`, which takes the
    logits: there the choice is made once more by the host.
    """

    def __init__(self, router: RouterConfig) -> None:
        self._router = router
        self._routed: list[Routed] = []

    @contextmanager
    def on(self, library: Library) -> Iterator[None]:
        """Watch the library's functions."""

        def around(_: Any, symbol: str, before: bool, __: Any, *arguments: Any) -> int:
            tensors = [argument for argument in arguments if hasattr(argument, "shape")]
            if before and str(symbol).startswith("experts"):
                self._routed.append(self._chosen(library, tensors))
            elif not before and str(symbol).startswith("route"):
                logits, ids = tensors[-5], tensors[-4]  # the kernel's outputs end with weights, pairs and starts
                self._routed.append((library.memory.read(logits).copy(), library.memory.read(ids).copy()))
            return 0

        library.instrument(around)
        try:
            yield
        finally:
            library.instrument(None)

    def take(self) -> list[Routed]:
        """What was collected since the last call, in the order of the layers."""
        routed, self._routed = self._routed, []
        return routed

    def _chosen(self, library: Library, tensors: list[Any]) -> Routed:
        logits, bias = tensors[2:4]  # behind x and its norm's weight
        logits = library.memory.read(logits)
        bias = library.memory.read(bias) if self._router.has_correction_bias else None
        return logits, chosen_experts(self._router, logits, bias)
