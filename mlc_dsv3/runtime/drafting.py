"""Drafts by the model's own MTP layer (DeepSeek-V3 report, section 2.2): its latent cache is kept in step with the main
one's, and it predicts the tokens after the next, feeding itself.

Row p of the layer takes the main model's hidden state at position p with the token at p + 1, and predicts the token at
p + 2. A draft is chosen as the main model's token will be, with the same random number, so that where the two
distributions are close so are the choices. A request's last tokens, which nothing is drafted behind, are missing from
the layer's cache where a later one reuses their pages: that can only cost acceptance.
"""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlc_dsv3.runtime.batch import Batch, StepOutput
from mlc_dsv3.runtime.sampler import Draw
from mlc_dsv3.runtime.scheduler import Scheduler
from mlc_dsv3.runtime.sequence import Sequence

if TYPE_CHECKING:
    from mlc_dsv3.runtime.model import CompiledModel


@dataclass(frozen=True)
class Computed:
    """Positions [start, sequence.computed) of a sequence, whose hidden states a step put out from row `offset` on."""

    sequence: Sequence
    start: int
    offset: int


class Drafter:
    """Owns the MTP layer's part of the cache. Sequences' `drafts` are what comes out."""

    def __init__(self, model: CompiledModel, scheduler: Scheduler, context_window: int) -> None:
        self._model, self._scheduler, self._context_window = model, scheduler, context_window
        self._max_rows = model.metadata.max_rows

    def remember(self, computed: Rows[Computed], output: StepOutput) -> None:
        """Keep the latest hidden states of sequences for a later `draft`; what is older stays a gap in the layer's
        cache, which can only cost acceptance."""
        for each in computed:
            count = each.sequence.computed - each.start
            each.sequence.pending.extend(np.array(output.hidden[each.offset : each.offset + count]))

    def draft(self, computed: Rows[Computed], output: StepOutput, drafts: int) -> None:
        """Run the layer on what the main model has just computed, and draft up to so many tokens for each sequence that
        is about to decode."""
        if not computed:
            return
        drafting = {
            each.sequence: limit
            for each in computed
            if each.sequence.remaining == 1 and (limit := self._limit(each.sequence, drafts)) > 0
        }
        proposed, rows = self._follow(computed, output, drafting)
        place = 0
        while drafting:
            self._choose(list(drafting), proposed, place)
            place += 1
            rows = [row for row, limit in zip(rows, drafting.values(), strict=True) if limit > place]
            drafting = {sequence: limit for sequence, limit in drafting.items() if limit > place}
            if drafting:
                proposed = self._feed_back(list(drafting), proposed.hidden[rows], place)
                rows = list(range(len(drafting)))

    def _follow(
        self, computed: Rows[Computed], output: StepOutput, drafting: Container[Sequence]
    ) -> tuple[StepOutput, list[int]]:
        """Bring the layer's cache in step; returns what it predicts for the sequences that are `drafting`, and the last
        row of each."""
        room = self._max_rows - sum(each.sequence.computed - each.start for each in computed)
        tokens, positions, hidden, lengths = [], [], [], []
        for each in computed:
            sequence, stop = each.sequence, each.sequence.computed
            states = [output.hidden[each.offset : each.offset + stop - each.start]]
            if 0 < len(sequence.pending) <= room:
                states.insert(0, np.stack(sequence.pending))
                room -= len(sequence.pending)
            sequence.pending.clear()
            lengths.append(length := sum(map(len, states)))
            tokens.append(np.array(sequence.tokens[stop - length + 1 : stop + 1], np.int32))
            positions.append(np.arange(stop - length, stop, dtype=np.int32))
            hidden += states
        sequences = [each.sequence for each in computed]
        ends = np.cumsum(lengths).tolist()
        last = [end - 1 for sequence, end in zip(sequences, ends, strict=True) if sequence in drafting]
        # The layer, as the model, wants at least one row to be wanted.
        wanted = last or [ends[-1] - 1]
        batch = _batch(sequences, np.concatenate(tokens), np.concatenate(positions), lengths, wanted)
        # One sequence's rows are taken as they lie.
        return self._model.draft(batch, hidden[0] if len(hidden) == 1 else np.concatenate(hidden)), last

    def _limit(self, sequence: Sequence, drafts: int) -> int:
        """Drafts that can all become tokens, with one more behind them, and have pages."""
        length, most = len(sequence.tokens), sequence.params.max_tokens
        limit = min(drafts, self._context_window - length - 1)
        if most is not None:
            limit = min(limit, most - sequence.generated - 1)
        return min(limit, self._scheduler.reserve(sequence, length + limit) - length) if limit > 0 else 0

    def _choose(self, sequences: list[Sequence], proposed: StepOutput, place: int) -> None:
        draws = [
            Draw(row, sequence.params, sequence.history, sequence.seed, len(sequence.tokens) + place)
            for row, sequence in enumerate(sequences)
        ]
        for sequence, token in zip(sequences, self._model.sample(proposed, draws), strict=True):
            sequence.drafts.append(token)

    def _feed_back(self, sequences: list[Sequence], hidden: np.ndarray, place: int) -> StepOutput:
        tokens = np.array([sequence.drafts[-1] for sequence in sequences], np.int32)
        positions = np.array([len(sequence.tokens) - 2 + place for sequence in sequences], np.int32)
        ones = [1] * len(sequences)
        return self._model.draft(_batch(sequences, tokens, positions, ones, range(len(sequences))), hidden)


def _batch(
    sequences: Rows[Sequence], tokens: np.ndarray, positions: np.ndarray, lengths: Rows[int], wanted: Rows[int]
) -> Batch:
    return Batch(
        tokens=tokens,
        positions=positions,
        sequences=np.repeat(np.arange(len(sequences), dtype=np.int32), lengths),
        page_table=page_table(sequences),
        wanted=np.array(wanted, np.int32),
    )


def page_table(sequences: Rows[Sequence]) -> np.ndarray:
    """int32 (len(sequences), most pages): the pages of each; unused entries 0."""
    table = np.zeros((len(sequences), max(len(sequence.pages) for sequence in sequences)), np.int32)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence.pages)] = sequence.pages
    return table
