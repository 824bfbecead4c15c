"""Drafts by the model's own MTP layer (DeepSeek-V3 report, section 2.2): its latent cache is kept in step with the main
one's, and it predicts the tokens after the next, feeding itself.

Row p of the layer takes the main model's hidden state at position p with the token at p + 1, and predicts the token at
p + 2. Only a sequence's last row predicts; of those before it the cache needs the latents and nothing else. A draft is
chosen as the main model's token will be, with the same random number, so that where the two distributions are close so
are the choices. A request's last tokens, which nothing is drafted behind, are missing from the layer's cache where a
later one reuses their pages: that can only cost acceptance.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Container
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_dsv3.errors import NotFiniteError
from mlc_dsv3.runtime.batch import DraftBatch, StepOutput
from mlc_dsv3.runtime.sampler import Draw
from mlc_dsv3.runtime.scheduler import Scheduler
from mlc_dsv3.runtime.sequence import Sequence

if TYPE_CHECKING:
    from mlc_dsv3.runtime.model import CompiledModel

# Hidden states that a sequence keeps while nothing is drafted, before the layer follows them together.
_MOST_PENDING = 64


@dataclass(frozen=True)
class Computed:
    """Positions [start, sequence.computed) of a sequence, whose hidden states a step put out from row `offset` on."""

    sequence: Sequence
    start: int
    offset: int

    @property
    def rows(self) -> int:
        """How many they are."""
        return self.sequence.computed - self.start


class Drafter:
    """Owns the MTP layer's part of the cache. Sequences' `drafts` are what comes out."""

    def __init__(self, model: CompiledModel, scheduler: Scheduler, context_window: int) -> None:
        self._model, self._scheduler, self._context_window = model, scheduler, context_window
        self._most_pending = min(_MOST_PENDING, model.metadata.max_rows)

    def postpone(self, computed: Rows[Computed], output: StepOutput) -> None:
        """Keep what a step has computed for a later call, where nothing is drafted now."""
        full = []
        for each in computed:
            if len(each.sequence.pending) + each.rows > self._most_pending:
                full.append(each)
            else:
                each.sequence.pending.extend(output.hidden[each.offset : each.offset + each.rows].copy())
        if full:
            self._follow(full, output)

    def draft(self, computed: Rows[Computed], output: StepOutput, drafts: int) -> int:
        """Bring the layer's cache in step with what the main model has just computed, and draft up to so many tokens
        for each sequence that is about to decode. Returns how many sequences got fewer, as the layer's logits are not
        finite: their answers stay the same."""
        drafting = {
            each: limit
            for each in computed
            if each.sequence.remaining == 1
            and not each.sequence.forced
            and each.sequence.goes_on_behind(())
            and (limit := room_for_drafts(self._scheduler, each.sequence, drafts, self._context_window)) > 0
        }
        self._follow(computed, output, drafting)
        sequences = {each.sequence: limit for each, limit in drafting.items()}
        hidden, sources, place = output.hidden_tensor, [each.offset + each.rows - 1 for each in drafting], 0
        failures = 0
        while sequences:
            proposed = self._predict(list(sequences), hidden, sources, place)
            place += 1
            drafted = [len(sequence.drafts) == place for sequence in sequences]
            failures += drafted.count(False)
            on = [
                has and limit > place and sequence.goes_on_behind(sequence.drafts)
                for has, (sequence, limit) in zip(drafted, sequences.items(), strict=True)
            ]
            hidden, sources = proposed.hidden_tensor, [row for row, goes_on in enumerate(on) if goes_on]
            sequences = dict(itertools.compress(sequences.items(), on))
        return failures

    def _follow(self, computed: Rows[Computed], output: StepOutput, drafting: Container[Computed] = ()) -> None:
        """Append what is pending and what a step has computed, but for the last rows of those that are `drafting`."""
        for each in computed:
            if pending := each.sequence.pending:
                hidden, rows = np.stack(pending), range(len(pending))
                self._append([(each.sequence, each.start - len(pending), rows)], hidden)
                pending.clear()
        spans = []
        for each in computed:
            if rows := range(each.offset, each.offset + each.rows - (each in drafting)):
                spans.append((each.sequence, each.start, rows))
        if spans:
            self._append(spans, output.hidden_tensor)

    def _append(self, spans: Rows[tuple[Sequence, int, range]], hidden: Any) -> None:
        """Have the layer follow spans: a sequence, its first position, and the rows of `hidden` from there on."""
        lengths = [len(rows) for _, _, rows in spans]
        tokens = [sequence.tokens[start + 1 : start + 1 + len(rows)] for sequence, start, rows in spans]
        positions = [np.arange(start, start + len(rows), dtype=np.int32) for _, start, rows in spans]
        self._model.follow(
            DraftBatch(
                tokens=np.concatenate([np.array(each, np.int32) for each in tokens]),
                hidden=hidden,
                sources=np.concatenate([np.array(rows, np.int32) for _, _, rows in spans]),
                positions=np.concatenate(positions),
                sequences=np.repeat(np.arange(len(spans), dtype=np.int32), lengths),
                page_table=page_table([sequence for sequence, _, _ in spans]),
            )
        )

    def _predict(self, sequences: Rows[Sequence], hidden: Any, sources: Rows[int], place: int) -> StepOutput:
        """Draft one more token for each, after `place` drafts, from the hidden state at its source; none where the
        layer's logits are not finite."""
        output = self._model.draft(
            DraftBatch(
                tokens=np.array([(sequence.drafts or sequence.tokens)[-1] for sequence in sequences], np.int32),
                hidden=hidden,
                sources=np.array(sources, np.int32),
                positions=np.array([len(sequence.tokens) - 2 + place for sequence in sequences], np.int32),
                sequences=np.arange(len(sequences), dtype=np.int32),
                page_table=page_table(sequences),
            )
        )
        draws = [
            Draw(
                row,
                sequence.params,
                sequence.history,
                sequence.seed,
                len(sequence.tokens) + place,
                sequence.masks(sequence.drafts)[place],
            )
            for row, sequence in enumerate(sequences)
        ]
        for sequence, token in zip(sequences, self._model.sample(output, draws), strict=True):
            if not isinstance(token, NotFiniteError):
                sequence.drafts.append(token)
        return output


def force(scheduler: Scheduler, decoding: Rows[Sequence], spare_rows: int, context_window: int) -> int:
    """Take what grammars leave no choice of as drafts, which are right; returns how many they are together."""
    taken = 0
    for sequence in decoding:
        forced = sequence.matcher.forced() if sequence.matcher is not None else ()
        room = room_for_drafts(scheduler, sequence, min(len(forced), spare_rows - taken), context_window)
        if room > 0:
            sequence.drafts, sequence.forced = array("i", forced[:room]), True
            taken += room
    return taken


def room_for_drafts(scheduler: Scheduler, sequence: Sequence, drafts: int, context_window: int) -> int:
    """Of so many drafts those that can all become tokens, with one more behind them, and have pages."""
    length, most = len(sequence.tokens), sequence.params.max_tokens
    limit = min(drafts, context_window - length - 1)
    if most is not None:
        limit = min(limit, most - sequence.generated - 1)
    return min(limit, scheduler.reserve(sequence, length + limit) - length) if limit > 0 else 0


def page_table(sequences: Rows[Sequence]) -> np.ndarray:
    """int32 (len(sequences), most pages): the pages of each; unused entries 0."""
    table = np.zeros((len(sequences), max(len(sequence.pages) for sequence in sequences)), np.int32)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence.pages)] = sequence.pages
    return table
