"""`SavedPrefixes`: prefixes that leave the latent cache go to disk, and come back for a prompt that begins with them.

A prefix is cut into segments of 64 tokens. A segment's name is a hash over its tokens, the attention forms of its pages
and the name of the segment before it, so that it stands for the whole prefix up to its end. Pages leave the cache from
the deepest on; each segment is saved when the last of its pages goes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mlc_dsv3.runtime.forms import AttentionForms
from mlc_dsv3.runtime.page_store import PageStore
from mlc_dsv3.runtime.prefix import Node, PageKey, PrefixCache, page_key

SEGMENT = 64  # tokens
LEAST = 1024  # tokens of a prefix that is worth a place on disk


class PageContent(Protocol):
    """What pages of the latent caches hold, as `CompiledModel` gives it."""

    def cache_bytes_per_page(self) -> int:
        """Bytes of one page in all layers together."""

    def read_pages(self, pages: Sequence[int]) -> np.ndarray:
        """Their content, uint8 (len(pages) × bytes of one,)."""

    def write_pages(self, pages: Sequence[int], content: np.ndarray) -> None:
        """The content that `read_pages` gave, into other pages."""


@dataclass(frozen=True)
class SavedRun:
    """Consecutive segments on disk that hold a prompt from position `start` on, where a segment begins."""

    start: int
    names: tuple[str, ...]

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self.start + SEGMENT * len(self.names)


class SavedPrefixes:
    """Saves what `prefix` evicts into `store`, and loads it into pages again."""

    def __init__(
        self, store: PageStore, content: PageContent, prefix: PrefixCache, forms: AttentionForms, page_size: int
    ) -> None:
        assert SEGMENT % page_size == 0, page_size
        self._store, self._content, self._prefix = store, content, prefix
        self._forms, self._page_size = forms, page_size
        self._pages = SEGMENT // page_size  # of a segment
        prefix.before_eviction = self._before_eviction

    @property
    def segment_bytes(self) -> int:
        """Size of one segment."""
        return self._pages * self._content.cache_bytes_per_page()

    def beyond(self, tokens: array[int], prompt_length: int, cached: int) -> SavedRun | None:
        """The segments on disk that reuse more of a prompt than the `cached` tokens in memory; None where none do."""
        start, names, end = cached // SEGMENT * SEGMENT, [], 0
        for name in self._names(tokens, prompt_length):
            end += SEGMENT
            if end > start:
                if name not in self._store:
                    break
                names.append(name)
        while names and self._forms.reusable(start + SEGMENT * len(names), prompt_length) < start + SEGMENT * len(
            names
        ):
            names.pop()
        run = SavedRun(start, tuple(names))
        return run if run.end > cached else None

    def load(self, name: str, pages: Sequence[int]) -> bool:
        """Fill the pages of a segment; False where it is not on disk any more."""
        content = self._store.load(name, self.segment_bytes)
        if content is None:
            return False
        self._content.write_pages(pages, content)
        return True

    def close(self) -> None:
        """Save every prefix in the cache that is long enough; return once everything is on disk."""
        ends = [node for node in self._prefix.full_pages() if self._ends_segment(node)]
        for node in sorted(ends, key=lambda node: node.depth, reverse=True):
            self._before_eviction(node)
        self._store.close()

    def _names(self, tokens: array[int], prompt_length: int) -> Iterator[str]:
        """Names of a prompt's segments; at least its last token is left to compute."""
        name = ""
        for start in range(0, (len(tokens) - 1) // SEGMENT * SEGMENT, SEGMENT):
            starts = range(start, start + SEGMENT, self._page_size)
            name = _name(name, [page_key(self._forms, tokens, at, self._page_size, prompt_length) for at in starts])
            yield name

    def _ends_segment(self, node: Node) -> bool:
        return node.depth % self._pages == 0

    def _before_eviction(self, node: Node) -> None:
        if not self._ends_segment(node):
            return
        if not node.wanted and node.depth * self._page_size < LEAST:
            return
        for end, previous, pages in self._unnamed(node):
            end.name = _name(previous.name, [page.key for page in pages])
        previous, pages = self._segment(node)
        if node.name not in self._store:
            self._store.save(node.name, self._content.read_pages([page.page for page in pages]))
        previous.wanted = True  # however short: it leads to this one

    def _unnamed(self, node: Node) -> list[tuple[Node, Node, list[Node]]]:
        """The segments up to the one that ends in `node` that have no name yet: its end, the end of the one before it
        (or the root), its pages."""
        segments = []
        while node.parent is not None and not node.name:
            previous, pages = self._segment(node)
            segments.append((node, previous, pages))
            node = previous
        return segments[::-1]

    def _segment(self, end: Node) -> tuple[Node, list[Node]]:
        """The end of the segment before, or the root, and the pages of the segment that ends in `end`."""
        pages, node = [], end
        for _ in range(self._pages):
            pages.append(node)
            assert node.parent is not None
            node = node.parent
        return node, pages[::-1]


def _name(previous: str, keys: list[PageKey]) -> str:
    digest = hashlib.sha256(previous.encode())
    for expanded, tokens in keys:
        digest.update(bytes([expanded]) + tokens)
    return digest.hexdigest()
