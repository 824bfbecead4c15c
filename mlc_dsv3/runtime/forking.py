"""Models do not survive a fork: a child process has none of the threads that run kernels, and would wait for them."""

from __future__ import annotations

import os

from mlc_dsv3.errors import ForkError

_process: int | None = None  # that has the threads


def belongs_here() -> bool:
    """Whether the threads and devices of models, if there are any, are this process's."""
    return _process in (None, os.getpid())


def refuse_after_fork() -> None:
    """ForkError in a process forked from one that had loaded a model."""
    if not belongs_here():
        raise ForkError(
            f"process {os.getpid()} was forked from {_process}, which had loaded a model: no model can run here; fork "
            "before the first model is loaded and load it in the child, or start processes with "
            'multiprocessing.get_context("spawn")'
        )


def claim() -> None:
    """Models run in this process from now on. ForkError where they cannot."""
    global _process
    refuse_after_fork()
    _process = os.getpid()
