"""The page cache and a model's shards: dropped for a cold start, filled for a warm one."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlc_dsv3.weights.mapping import mapped

# What may stay resident of files that count as dropped: read-ahead of their neighbours, or another reader.
_DROPPED = 0.02


def drop(files: Sequence[Path]) -> str | None:
    """Drop the files from the page cache. None when they are out, else why they are not.

    Pages that any process has mapped, or that are not on the disk yet, stay.
    """
    if not hasattr(os, "posix_fadvise"):
        return "this system has no posix_fadvise"
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left = resident(files)
    return None if left <= _DROPPED else f"{left:.0%} of the weights stay in the page cache"


def fill(files: Sequence[Path]) -> None:
    """Read the files as a model does, so that the page cache has them where it has room."""
    for file in files:
        mapped(file)[:: mmap.PAGESIZE].max()


def resident(files: Sequence[Path]) -> float:
    """Share of the files' pages that the page cache holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = held = 0
    for file in files:
        data = np.memmap(file, np.uint8, mode="r")
        states = np.zeros(-(-data.size // mmap.PAGESIZE), np.uint8)
        arguments = (ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.size), ctypes.c_void_p(states.ctypes.data))
        if libc.mincore(*arguments):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
        pages += states.size
        held += int((states & 1).sum())
    return held / pages
