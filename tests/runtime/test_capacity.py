"""The size of the latent cache."""

from __future__ import annotations

import pytest

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.capacity import available_memory, choose_num_pages

SIZES = {"context_window": 100, "page_size": 16, "page_bytes": 1000, "max_batch": 4}


@pytest.mark.parametrize(
    ("memory", "pages"),
    [(10**9, 28), (100_000, 25), (20_000, 7), (7_000, 7)],
    ids=["a window for each request", "a quarter of memory", "a window at least", "a window just fits"],
)
def test_the_default_grows_with_memory_between_one_window_and_one_for_each_request(memory: int, pages: int) -> None:
    assert choose_num_pages(**SIZES, memory=memory) == pages


def test_a_cache_that_does_not_fit_is_refused_with_the_numbers() -> None:
    said = r"cache of 16777216 tokens needs 1\.00 GiB, and 0\.50 GiB of memory .* 64 bytes a token enough for 8388608:"
    with pytest.raises(UserError, match=said):
        choose_num_pages(**{**SIZES, "page_bytes": 1024}, cache_tokens=2**24, memory=2**29)


def test_a_default_cache_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="cache of 112 tokens"):
        choose_num_pages(**SIZES, memory=6_999)


def test_cache_tokens_are_rounded_up_to_pages_and_hold_a_window() -> None:
    assert choose_num_pages(**SIZES, cache_tokens=113, memory=10**9) == 8
    with pytest.raises(UserError, match="cache_tokens is 99; the context window of 100 tokens must fit"):
        choose_num_pages(**SIZES, cache_tokens=99, memory=10**9)


def test_this_machine_has_memory() -> None:
    assert available_memory() > 2**20
