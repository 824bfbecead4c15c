"""What is launched by a function as one CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from mlc_dsv3.cuda.driver import call


class Graph:
    """Launches that were recorded, with the memory that the thread allocated meanwhile (`native/graph.cc`)."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._destroy = weakref.finalize(self, call, "destroy_graph", handle)
        self._destroy.atexit = False  # the driver ends with the process

    def launch(self) -> None:
        """Start it, behind what was started before."""
        call("launch_graph", self._handle)

    @property
    def kernels(self) -> int:
        """How many kernels it starts."""
        return int(call("graph_kernels", self._handle))

    def destroy(self) -> None:
        """Give it back; its memory goes as soon as nobody holds a tensor there."""
        self._destroy()


def record(function: Callable[[], Any]) -> tuple[Graph, Any]:
    """The graph of what `function` launches on this thread, which does not run, and what it returns. RuntimeError, in
    the driver's words, where there can be none."""
    call("begin_graph")
    try:
        result = function()
    except BaseException:
        call("end_graph", False)
        raise
    return Graph(int(call("end_graph", True))), result
