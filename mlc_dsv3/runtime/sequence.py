"""One request on its way: its tokens, how far they are computed, and the pages that hold them."""

from __future__ import annotations

import secrets
from array import array
from collections import deque
from collections.abc import Sequence as Tokens
from typing import Protocol

import numpy as np

from mlc_dsv3.runtime.completion import FinishReason, TokenLogprob, Update
from mlc_dsv3.runtime.grammar_matcher import GrammarMatcher
from mlc_dsv3.runtime.sampler import TokenHistory
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.stopping import StopFilter


class TextStream(Protocol):
    """Incremental detokenization, as `detokenizer.Detokenizer` does it."""

    def push(self, token: int) -> str:
        """The text that `token` completes."""

    def finish(self) -> str:
        """What is left of an unfinished character."""


class Sequence:
    """A request's state. `tokens` is prompt and output; the cache holds the first `computed` of them, in `pages`.

    `saved` names segments of its prefix on disk, which follow what is computed, and come before any step. `drafts` are
    guesses at the next tokens, which the next step verifies; where `forced`, the grammar allows no others. `pending`
    are the latest hidden states, which the MTP layer has not seen yet, float32 (hidden_size,).
    """

    def __init__(
        self,
        request_id: int,
        prompt: Tokens[int],
        params: SamplingParams,
        detokenizer: TextStream | None = None,
        stop_tokens: frozenset[int] = frozenset(),
        matcher: GrammarMatcher | None = None,
    ) -> None:
        self.request_id = request_id
        self.params = params
        self.tokens = array("i", map(int, prompt))
        self.prompt_length = len(prompt)
        self.computed = 0
        self.pages = array("i")
        self.saved: deque[str] = deque()
        self.drafts = array("i")
        self.forced = False
        self.matcher = matcher
        self.pending: list[np.ndarray] = []
        self.reused = 0  # tokens that the cache spared at the first admission
        self.admitted = False
        self.drafted = self.accepted = 0  # drafts verified so far, and how many of them were right
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.history = TokenHistory(prompt) if params.penalises else None
        self._stop_tokens = stop_tokens
        self._detokenizer = detokenizer
        self._stops = StopFilter(params.stop)

    @property
    def remaining(self) -> int:
        """Tokens that the cache lacks."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether all but the last token of the output is computed."""
        return self.remaining == 1 and self.generated > 0

    @property
    def generated(self) -> int:
        """Tokens of output so far."""
        return len(self.tokens) - self.prompt_length

    def release(self) -> array[int]:
        """Give up all that was computed; returns the pages that held it."""
        pages, self.pages = self.pages, array("i")
        self.computed = 0
        self.drop_drafts()
        self.saved.clear()
        self.pending.clear()
        return pages

    def drop_drafts(self) -> None:
        """Forget the drafts."""
        self.drafts, self.forced = array("i"), False

    def masks(self, drafts: Tokens[int]) -> list[np.ndarray] | list[None]:
        """What the grammar allows behind none, one, … all of some drafts: up to the first that it forbids or ends with.

        None is all. Raises UserError where the grammar cannot go on.
        """
        return [None] * (len(drafts) + 1) if self.matcher is None else self.matcher.masks(drafts)

    def goes_on_behind(self, drafts: Tokens[int]) -> bool:
        """Whether the grammar allows these drafts, and more behind them."""
        return self.matcher is None or self.matcher.goes_on_behind(drafts)

    def append(self, token: int) -> tuple[str, bool]:
        """Add a sampled token; returns the text that can be shown now, and whether a stop or the grammar's end was
        reached."""
        self.tokens.append(token)
        if self.history is not None:
            self.history.append(token)
        if token in self._stop_tokens:
            return "", True
        text = self._detokenizer.push(token) if self._detokenizer is not None else ""
        shown = self._stops.push(text)
        complete = self.matcher is not None and self.matcher.accept(token)
        return shown, complete or self._stops.stopped

    def update(
        self,
        token_ids: list[int],
        text: str,
        reason: FinishReason | None,
        logprobs: list[TokenLogprob] | None = None,
        error: Exception | None = None,
    ) -> Update:
        """What a step added to this request."""
        if logprobs is None and self.params.logprobs is not None:
            logprobs = []
        return Update(
            request_id=self.request_id,
            token_ids=token_ids,
            text=text,
            finish_reason=reason,
            logprobs=logprobs,
            prompt_tokens=self.prompt_length,
            reused_tokens=self.reused,
            error=error,
            drafted=self.drafted,
            accepted=self.accepted,
            stop=self._stops.found,
        )

    def finish(self) -> tuple[str, bool]:
        """The text still held back, when no more tokens come, and whether it has a stop string after all."""
        if self._stops.stopped or self._detokenizer is None:
            return "", self._stops.stopped
        text = self._stops.push(self._detokenizer.finish())
        return text + self._stops.flush(), self._stops.stopped
