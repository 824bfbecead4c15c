"""Stop strings in a stream."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlc_dsv3.runtime.stopping import StopFilter


def shown(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop_filter = StopFilter(stops)
    text = "".join(stop_filter.push(piece) for piece in pieces)
    return text + stop_filter.flush(), stop_filter.stopped


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped"),
    [
        ([], ["abc", "def"], "abcdef", False),
        (["de"], ["abc", "def"], "abc", True),
        (["cd"], ["abc", "def"], "ab", True),
        (["dx"], ["abcd", "ef"], "abcdef", False),
        (["dx"], ["abcd"], "abcd", False),
        (["aab"], ["a", "a", "a", "b"], "a", True),
        (["b", "abc"], ["abc"], "a", True),
        (["c", "bc"], ["abc"], "a", True),
        (["abc"], ["abc"], "", True),
    ],
)
def test_text_ends_before_the_first_stop_string(stops: list[str], pieces: list[str], text: str, stopped: bool) -> None:
    assert shown(stops, pieces) == (text, stopped)


def test_what_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    stop_filter = StopFilter(["<end>"])
    assert [stop_filter.push(piece) for piece in ("ab<", "e", "x<en", "d", ">tail", "more")] == [
        "ab",
        "",
        "<ex",
        "",
        "",
        "",
    ]
    assert stop_filter.flush() == ""


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    text=st.text("abc", max_size=20),
    cuts=st.sets(st.integers(1, 19)),
)
def test_how_text_is_cut_into_pieces_does_not_matter(stops: list[str], text: str, cuts: set[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[start:stop] for start, stop in itertools.pairwise(edges)]
    # The definition: character by character, until the text ends in a stop string.
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            expected = (text[: end - max(map(len, ending))], True)
            break
    else:
        expected = (text, False)
    assert shown(stops, pieces) == expected
