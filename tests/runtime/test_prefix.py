"""Pages and the prefix cache by themselves."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_dsv3.runtime.forms import AttentionForms
from mlc_dsv3.runtime.pages import PagePool
from mlc_dsv3.runtime.prefix import PrefixCache

PAGE = 4


class Books:
    """A pool and a prefix cache, and a sequence's dealings with them."""

    def __init__(self, num_pages: int = 16, block: int = 0) -> None:
        self.pool = PagePool(num_pages)
        self.prefix = PrefixCache(self.pool, AttentionForms(block), PAGE)

    def store(self, tokens: list[int], prompt_length: int | None = None) -> list[int]:
        """Compute `tokens` from nothing and finish."""
        pages = array("i", [self.pool.allocate() for _ in range(-(-len(tokens) // PAGE))])
        self.prefix.insert(array("i", tokens), pages, prompt_length or len(tokens), partial=True)
        self.prefix.release(pages)
        return list(pages)

    def length(self, tokens: list[int]) -> int:
        return self.prefix.find(array("i", tokens), len(tokens)).length

    def take(self, tokens: list[int]) -> list[int]:
        return self.prefix.take(self.prefix.find(array("i", tokens), len(tokens)))


def test_a_page_is_free_when_its_last_holder_lets_go() -> None:
    pool = PagePool(2)
    page = pool.allocate()
    pool.retain(page)
    pool.release([page])
    assert (pool.free, pool.holders(page)) == (1, 1)
    pool.release([page])
    assert pool.free == 2


def test_pages_are_given_once_and_taken_back_once() -> None:
    pool = PagePool(2)
    pages = [pool.allocate(), pool.allocate()]
    assert sorted(pages) == [0, 1]
    assert pool.allocate() is None
    pool.release(pages)
    with pytest.raises(RuntimeError, match="released twice"):
        pool.release(pages)
    with pytest.raises(RuntimeError, match="is free"):
        pool.retain(pages[0])


def test_a_prefix_is_found_by_its_exact_tokens() -> None:
    books = Books()
    books.store(list(range(10)))
    assert books.length([*range(10), 99]) == 10
    assert books.length([*range(9), 99, 99]) == 9
    assert books.length([*range(7), 99, 99]) == 4
    assert books.length([99, *range(1, 10)]) == 0


def test_at_least_one_token_is_left_to_compute() -> None:
    books = Books()
    books.store(list(range(10)))
    assert books.length(list(range(10))) == 9
    assert books.length(list(range(9))) == 8
    assert books.length(list(range(8))) == 4
    assert books.length([0]) == 0


def test_full_pages_are_shared_and_a_partial_one_changes_hands() -> None:
    books = Books()
    pages = books.store(list(range(10)))
    first = books.take([*range(10), 99])
    second = books.take([*range(10), 98])
    assert first == pages
    assert second == pages[:2]
    assert [books.pool.holders(page) for page in pages] == [3, 3, 1]


def test_the_same_content_is_kept_once() -> None:
    books = Books()
    first = books.store(list(range(10)))
    second = books.store(list(range(10)))
    assert second[:2] == first[:2], "the later sequence was given the earlier one's pages"
    assert len(books.prefix) == 3
    assert books.pool.free == 16 - 3


def test_the_least_recently_used_leaf_goes_first() -> None:
    books = Books()
    old = books.store([1] * 8)
    recent = books.store([2] * 8)
    books.take([1] * 5)  # touches the first page of the older one, and holds it
    assert books.prefix.evict()
    assert books.pool.holders(old[1]) == 0
    assert [books.prefix.evict() for _ in range(3)] == [True, True, False]
    assert books.pool.holders(recent[0]) == 0
    assert books.pool.holders(old[0]) == 2, "what a sequence holds stays"


def test_what_is_used_again_and_released_goes_last() -> None:
    books = Books()
    old = books.store([1] * 8)
    recent = books.store([2] * 8)
    books.prefix.release(books.take([1] * 9))
    evicted = []
    for _ in range(4):
        before = {page for page in (*old, *recent) if books.pool.holders(page)}
        assert books.prefix.evict()
        evicted += [page for page in before if not books.pool.holders(page)]
    assert evicted == [*reversed(recent), *reversed(old)]


def test_eviction_looks_at_no_page_that_stays() -> None:
    books = Books(num_pages=2000)
    held = [books.store([n] * 4) and books.take([n] * 5) for n in range(1000)]
    for n in range(1000, 2000):
        books.store([n] * 4)
    looks, holders = 0, books.pool.holders

    def counted(page: int) -> int:
        nonlocal looks
        looks += 1
        return holders(page)

    books.pool.holders = counted
    assert books.prefix.evictable() == 1000
    while books.prefix.evict():
        pass
    assert looks <= 2000, "a walk over the held pages for each that goes"
    assert books.pool.free == 1000
    for pages in held:
        books.prefix.release(pages)
    assert books.prefix.evictable() == 1000


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["store", "take", "release", "evict"]), st.integers(0, 2), st.integers(1, 14)),
        max_size=40,
    )
)
def test_what_no_sequence_holds_can_go_and_nothing_else(steps: list[tuple[str, int, int]]) -> None:
    books, held = Books(num_pages=200, block=8), []
    for kind, text, length in steps:
        tokens = [text] * (length // 2) + [text + 1] * (length - length // 2)
        if kind == "store":
            books.store(tokens)
        elif kind == "take":
            held.append(books.take(tokens))
        elif kind == "release" and held:
            books.prefix.release(held.pop(text % len(held)))
        elif kind == "evict":
            books.prefix.evict()
    evictable, free = books.prefix.evictable(), books.pool.free
    assert sum(books.prefix.evict() for _ in range(200)) == evictable == books.pool.free - free
    assert books.pool.free == 200 - len({page for pages in held for page in pages})
    for pages in held:
        books.prefix.release(pages)
    while books.prefix.evict():
        pass
    assert books.pool.free == 200


def test_evictable_counts_what_can_go() -> None:
    books = Books()
    books.store(list(range(12)))
    match = books.prefix.find(array("i", [*range(8), 99]), 9)
    assert (books.prefix.evictable(), books.prefix.pinned_by(match)) == (3, 2)
    books.prefix.take(match)
    assert (books.prefix.evictable(), books.prefix.pinned_by(match)) == (1, 0)


def test_pages_of_one_form_do_not_serve_for_the_other() -> None:
    books = Books(block=8)
    text = list(range(24))
    absorbed = books.store(text[:14], prompt_length=14)  # 0 to 8 expanded, 8 to 14 absorbed
    assert books.length([*text, 99]) == 8
    expanded = books.store(text, prompt_length=24)  # 8 to 24 expanded
    assert [a == b for a, b in zip(absorbed, expanded, strict=False)] == [True, True, False, False]
    assert books.length([*text, 99]) == 24
    assert books.length(text[:15]) == 14
    assert books.length(text[:13]) == 12, "absorbed in a prompt that ends inside the block"


def test_part_of_an_expanded_block_is_not_reused() -> None:
    books = Books(block=8)
    text = list(range(24))
    books.store(text)
    assert books.length([*text[:20], 99, 99, 99, 99]) == 16
    assert books.length(text) == 16, "the last token's block is whole in the prompt"


def test_clearing_frees_all_that_no_sequence_holds() -> None:
    books = Books()
    books.store(list(range(10)))
    held = books.take([*range(4), 99])
    books.prefix.clear()
    assert books.pool.free == 15
    books.prefix.release(held)
    assert books.pool.free == 16
    assert books.length([*range(10), 99]) == 0


@pytest.mark.parametrize(("prompt", "span"), [(7, (0, 0)), (8, (0, 8)), (15, (0, 8)), (16, (0, 16)), (23, (0, 16))])
def test_whole_blocks_are_expanded(prompt: int, span: tuple[int, int]) -> None:
    forms = AttentionForms(8)
    assert forms.expanded_span(prompt) == span
    assert [forms.is_expanded(position, prompt) for position in range(30)] == [
        position in range(*span) for position in range(30)
    ]


def test_blocks_stay_whole_and_what_is_left_of_a_prompt_comes_in_chunks() -> None:
    forms = AttentionForms(8)
    chunks, start = [], 0
    while start < 29:  # a prompt of 26 and 3 tokens of output
        stop, expanded = forms.next_chunk(start, 29, 26, 5)
        chunks.append((start, stop, expanded))
        start = stop
    assert chunks == [(0, 8, True), (8, 16, True), (16, 24, True), (24, 29, False)]
