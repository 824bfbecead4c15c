"""How far one answer has come in its grammar, and the tokens that may come next, as bit masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlc_dsv3.errors import UserError, said
from relax_model.sampling import MASK_BITS, mask_words

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarMatcher:
    """Belongs to a request. What it allows depends on the tokens of the answer alone, not on how they were drafted.

    A mask is int32 (mask_words(vocab_size),), as `relax_model.sampling` explains it.
    """

    def __init__(self, matcher: LLMatcher, mask_size: int, vocab_size: int, avoided: Collection[int] = ()) -> None:
        """`mask_size` is the number of tokens of llguidance's masks. Of the `avoided` tokens one is allowed only where
        nothing else is."""
        self._matcher = matcher
        self._size = mask_words(mask_size)
        self._not_avoided = ~_bits(avoided, vocab_size)
        # What is known of the places ahead: masks[i] comes behind the first i tokens of the path.
        self._path: list[int] = []
        self._masks: list[np.ndarray] = []

    def masks(self, drafts: Sequence[int] = ()) -> list[np.ndarray]:
        """What is allowed behind none, one, … all of some drafts: up to the first that is forbidden or ends the answer.

        Raises UserError where llguidance gives up.
        """
        if not self._masks:
            mask = self._mask(self._matcher)
            if mask is None:
                raise UserError(f"the grammar cannot go on: {reason_of(self._matcher)}")
            self._masks.append(mask)
        shared = 0
        while shared < min(len(drafts), len(self._path)) and drafts[shared] == self._path[shared]:
            shared += 1
        if shared < len(drafts):
            del self._path[shared:], self._masks[shared + 1 :]
            self._look_ahead(drafts)
        return self._masks[: len(drafts) + 1]

    def goes_on_behind(self, drafts: Sequence[int]) -> bool:
        """Whether all of some drafts are allowed, and more behind them."""
        try:
            return len(self.masks(drafts)) > len(drafts)
        except UserError:  # the request ends with it when the next token is chosen
            return False

    def accept(self, token: int) -> bool:
        """Go on with a token that was allowed; returns whether the answer is complete and can only end."""
        if self._path[:1] == [token]:
            del self._path[0], self._masks[0]
        else:
            self._path.clear()
            self._masks.clear()
        self._matcher.consume_token(token)
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def forced(self) -> list[int]:
        """The tokens that can only come next, maybe none."""
        return self._matcher.compute_ff_tokens()

    def _look_ahead(self, drafts: Sequence[int]) -> None:
        """Extend what is known along drafts that begin with it, on a copy: drafts that are too complex to go on behind
        are no error as long as they are not accepted."""
        ahead = self._matcher.deep_copy()
        for place, draft in enumerate(drafts):
            if not allows(self._masks[place], draft):
                return
            ahead.consume_token(draft)
            if place < len(self._path):
                continue
            mask = None if ahead.is_stopped() else self._mask(ahead)
            if mask is None:
                return
            self._masks.append(mask)
            self._path.append(draft)

    def _mask(self, matcher: LLMatcher) -> np.ndarray | None:
        """What may come next; None where llguidance gives up."""
        mask = np.empty(self._size, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            return None
        mask = mask[: self._not_avoided.size]
        going_on = mask & self._not_avoided
        return going_on if going_on.any() else mask


def reason_of(matcher: LLMatcher) -> str:
    """llguidance's for an error, without the excerpts that it draws arrows under, and without lists of names."""
    first, *others = matcher.get_error().partition("; following")[0].strip().splitlines()
    if first == "NoExtensionBias":
        return "no text matches it"
    errors = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    return said(ValueError(": ".join([first.removesuffix(":"), *errors])))


def allows(mask: np.ndarray, token: int) -> bool:
    """Whether a mask has a token."""
    return bool(int(mask[token // MASK_BITS]) >> token % MASK_BITS & 1)


def allowed_tokens(mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """bool (vocab_size,)."""
    return np.unpackbits(mask.view(np.uint8), count=vocab_size, bitorder="little").view(bool)


def _bits(tokens: Collection[int], vocab_size: int) -> np.ndarray:
    """The mask that has these tokens."""
    there = np.zeros(mask_words(vocab_size) * MASK_BITS, np.uint8)
    there[list(tokens)] = 1
    return np.packbits(there, bitorder="little").view(np.int32)
