"""How many pages the latent cache gets, from the memory that this machine has."""

from __future__ import annotations

import os
from pathlib import Path

from mlc_dsv3.errors import UserError

SHARE_OF_MEMORY = 0.25


def available_memory() -> int:
    """Bytes that can be allocated without swapping: Linux's MemAvailable, elsewhere the free or else all memory."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def choose_num_pages(
    *,
    context_window: int,
    page_size: int,
    page_bytes: int,
    max_batch: int,
    cache_tokens: int | None = None,
    memory: int | None = None,
) -> int:
    """Pages for the cache: `cache_tokens`' worth, or by default as many as fit in a quarter of the available memory.

    By default at least one context window and at most one for each of `max_batch` sequences. `memory` (bytes) stands in
    for this machine's. Raises UserError, with the numbers, where the pages do not fit or hold less than a window.
    """
    memory = available_memory() if memory is None else memory
    window = -(-context_window // page_size)
    if cache_tokens is None:
        pages = min(max_batch * window, max(window, int(SHARE_OF_MEMORY * memory) // page_bytes))
    else:
        if cache_tokens < context_window:
            raise UserError(
                f"cache_tokens is {cache_tokens}; the context window of {context_window} tokens must fit in the cache"
            )
        pages = -(-cache_tokens // page_size)
    if pages * page_bytes > memory:
        raise UserError(
            f"the cache of {pages * page_size} tokens needs {gib(pages * page_bytes)}, and {gib(memory)} of memory are "
            f"available, at {page_bytes // page_size} bytes a token enough for {memory // page_bytes * page_size}: a "
            "context_window of that, or smaller ones of several sequences"
        )
    return pages


def gib(size: int) -> str:
    """Bytes for people who compare memories."""
    return f"{size / 2**30:.2f} GiB"
