"""The prefix cache: pages of earlier sequences, found again by the tokens that they hold.

A tree with one page a node, keyed on the exact token ids and the attention form of the page, below the pages that
precede it. Full pages are shared by reference. A sequence's last, partly filled page has room that its next owner will
write to, so whoever matches it takes it out of the tree: nothing is ever copied.
"""

from __future__ import annotations

import bisect
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Pages
from dataclasses import dataclass, field

import numpy as np

from mlc_dsv3.runtime.forms import AttentionForms
from mlc_dsv3.runtime.pages import PagePool

PageKey = tuple[bool, bytes]  # whether the expanded form made a page, and its token ids


@dataclass(eq=False)
class Node:
    """A page in the tree, `depth` pages from the root, itself included. `saved_prefixes.py` notes under which `name` it
    saves the prefix that ends here, and whether it is `wanted` on disk."""

    page: int
    key: PageKey
    parent: Node | None
    depth: int
    children: dict[PageKey, Node] = field(default_factory=dict)  # full pages
    partials: dict[PageKey, Node] = field(default_factory=dict)  # partly filled pages; never have children
    partial_keys: list[PageKey] = field(default_factory=list)  # those of `partials`, sorted
    name: str = ""
    wanted: bool = False


@dataclass(frozen=True)
class Match:
    """Cached pages that hold the first `length` tokens of a prompt; `partial` is the partly filled last one."""

    length: int
    full: tuple[Node, ...]
    partial: Node | None

    @property
    def num_pages(self) -> int:
        """Pages matched."""
        return len(self.full) + (self.partial is not None)


class PrefixCache:
    """Holds one reference to each page in its tree and lets the least recently released go first.

    `changes` counts the calls that may let a prompt fit that did not: those that add pages or release some.
    """

    def __init__(self, pool: PagePool, forms: AttentionForms, page_size: int) -> None:
        assert forms.block % page_size == 0, (forms.block, page_size)  # a page then has one form
        self.before_eviction: Callable[[Node], None] = lambda node: None  # called with each full page's
        self._pool, self._forms, self._page_size = pool, forms, page_size
        self._root = _root()
        self.changes = 0
        self._nodes: dict[int, Node] = {}  # by page
        # Nodes that no sequence holds, the first released first. A sequence that holds a node holds its parents too,
        # and releases a path from its deepest node on, so a node precedes its parent.
        self._loose: OrderedDict[Node, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def evictable(self) -> int:
        """How many pages no sequence holds."""
        return len(self._loose)

    def find(self, tokens: array[int], prompt_length: int) -> Match:
        """The longest reusable prefix of `tokens`, at least one short of all, made in the forms of a fresh run.

        `prompt_length` decides the forms; tokens beyond it were generated.
        """
        size, limit = self._page_size, len(tokens) - 1
        node, path = self._root, []
        while (len(path) + 1) * size <= limit:
            child = node.children.get(self._key(tokens, len(path) * size, prompt_length))
            if child is None:
                break
            node = child
            path.append(child)
        length = len(path) * size
        kept = self._forms.reusable(length, prompt_length)
        if kept < length:
            return Match(kept, tuple(path[: kept // size]), None)
        partial, shared = self._best_partial(node, tokens[length:limit], self._forms.is_expanded(length, prompt_length))
        return Match(length + shared, tuple(path), partial)

    def pinned_by(self, match: Match) -> int:
        """How many fewer pages are evictable once `match` is taken."""
        nodes = match.full if match.partial is None else (*match.full, match.partial)
        return sum(node in self._loose for node in nodes)

    def take(self, match: Match) -> list[int]:
        """The pages of `match`, held for the caller. Must follow `find` directly."""
        for node in match.full:
            self._hold(node)
        pages = [node.page for node in match.full]
        if match.partial is not None:
            self._remove(match.partial)  # the tree's reference becomes the caller's
            pages.append(match.partial.page)
        return pages

    def release(self, pages: Pages[int]) -> None:
        """Let a sequence's pages go, in the order of its tokens: those in the tree can be evicted from now on."""
        self.changes += 1
        self._pool.release(pages)
        for page in reversed(pages):
            node = self._nodes.get(page)
            if node is not None and self._pool.holders(page) == 1:
                self._loose[node] = None

    def insert(self, tokens: array[int], pages: array[int], prompt_length: int, *, partial: bool) -> None:
        """Remember `pages`, which hold `tokens`; the caller keeps its own references.

        Where the tree has a page with the same content, `pages` gets that one in place of the caller's. `partial` adds
        the partly filled last page too, which the caller must not write to afterwards.
        """
        self.changes += 1
        size, node = self._page_size, self._root
        for index in range(len(tokens) // size):
            key = self._key(tokens, index * size, prompt_length)
            child = node.children.get(key)
            if child is None:
                child = self._add(node, node.children, key, pages[index])
            elif child.page != pages[index]:
                self._hold(child)
                self._pool.release((pages[index],))
                pages[index] = child.page
            node = child
        rest = len(tokens) % size
        if partial and rest:
            key = self._key(tokens, len(tokens) - rest, prompt_length)
            if key in node.partials:
                self._loose.move_to_end(node.partials[key])  # the caller's copy goes, and this one was used just now
            else:
                self._add(node, node.partials, key, pages[len(tokens) // size])

    def evict(self) -> bool:
        """Let the page go that was released first of those that no sequence holds; False where there is none."""
        if not self._loose:
            return False
        node = next(iter(self._loose))
        assert not node.children and not node.partials, "a parent was evicted before its children"
        if _is_full(node):
            self.before_eviction(node)
        self._remove(node)
        self._pool.release((node.page,))
        return True

    def full_pages(self) -> Iterator[Node]:
        """Every full page."""
        return (node for node in self._nodes.values() if _is_full(node))

    def clear(self) -> None:
        """Forget everything; pages that running sequences share stay with them."""
        self.changes += 1
        self._pool.release(self._nodes)
        self._nodes.clear()
        self._loose.clear()
        self._root = _root()

    def _key(self, tokens: array[int], start: int, prompt_length: int) -> PageKey:
        return page_key(self._forms, tokens, start, self._page_size, prompt_length)

    def _best_partial(self, node: Node, tokens: array[int], expanded: bool) -> tuple[Node | None, int]:
        """The partly filled page below `node` that shares most of `tokens`, and how many it shares."""
        # Of sorted keys, the one that shares most stands beside the place of `tokens`.
        place = bisect.bisect(node.partial_keys, (expanded, tokens.tobytes()))
        best, longest = None, 0
        for key in node.partial_keys[max(0, place - 1) : place + 1]:
            shared = common_prefix(array(tokens.typecode, key[1]), tokens)
            if key[0] == expanded and shared > longest:
                best, longest = node.partials[key], shared
        return best, longest

    def _add(self, parent: Node, siblings: dict[PageKey, Node], key: PageKey, page: int) -> Node:
        node = Node(page, key, parent, parent.depth + 1)
        siblings[key] = node
        if siblings is parent.partials:
            bisect.insort(parent.partial_keys, key)
        self._nodes[page] = node
        self._pool.retain(page)
        return node

    def _hold(self, node: Node) -> None:
        self._pool.retain(node.page)
        self._loose.pop(node, None)

    def _remove(self, node: Node) -> None:
        assert node.parent is not None
        if _is_full(node):
            del node.parent.children[node.key]
        else:
            del node.parent.partials[node.key]
            keys = node.parent.partial_keys
            del keys[bisect.bisect_left(keys, node.key)]
        del self._nodes[node.page]
        self._loose.pop(node, None)


def page_key(forms: AttentionForms, tokens: array[int], start: int, page_size: int, prompt_length: int) -> PageKey:
    """The key of the page at position `start` of a prompt."""
    return forms.is_expanded(start, prompt_length), tokens[start : start + page_size].tobytes()


def _root() -> Node:
    return Node(-1, (False, b""), None, 0)


def _is_full(node: Node) -> bool:
    assert node.parent is not None
    return node.parent.children.get(node.key) is node


def common_prefix(a: array[int], b: array[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    length = min(len(a), len(b))
    differ = np.frombuffer(a, np.int32, length) != np.frombuffer(b, np.int32, length) if length else np.empty(0, bool)
    return int(differ.argmax()) if differ.any() else length
