"""Drives a compiled model over whole sequences by a schedule of steps: which spans of which sequences run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlc_dsv3.runtime.batch import Batch, DraftBatch
from mlc_dsv3.runtime.forms import AttentionForms

if TYPE_CHECKING:
    from mlc_dsv3.runtime.model import CompiledModel

Span = tuple[int, int, int]  # sequence, first position, one past the last
Step = Sequence[Span]

CACHE_TOKENS = 4096


@dataclass(frozen=True)
class Result:
    """One sequence's results: logits (tokens, vocab_size) and hidden (tokens, hidden_size) after the final norm."""

    logits: np.ndarray
    hidden: np.ndarray


class Driver:
    """A compiled model with a cache for a few sequences, which every run starts anew."""

    def __init__(self, model: CompiledModel) -> None:
        self.model = model
        self.page_size = model.metadata.page_size
        self.pages = -(-CACHE_TOKENS // self.page_size) + 16  # each sequence's last page may be partly empty
        model.allocate_cache(self.pages)

    def run(
        self,
        sequences: Sequence[np.ndarray],
        schedule: Sequence[Step],
        *,
        pages: int = 0,
        order: int | None = None,
        expanded: Sequence[bool] = (),
    ) -> list[Result]:
        """Run `schedule` over token `sequences`; every position has to be in it once, in its sequence's order.

        `pages` seeds where the sequences' pages lie, `order` the order of a step's rows (None: as scheduled).
        `expanded` says for each step which form of attention it takes; absorbed where it is not given.
        """
        return self._run(sequences, schedule, None, pages, order, expanded)

    def prefill(self, tokens: np.ndarray, chunk: int | None = None) -> Result:
        """One sequence alone, by chunks of `chunk` tokens, or of as many as the library takes."""
        chunk = min(chunk or len(tokens), self.model.metadata.max_rows)
        return self.run([tokens], [[(0, start, stop)] for start, stop in spans(len(tokens), chunk)])[0]

    def prefill_as_the_engine(self, tokens: np.ndarray) -> tuple[Result, int]:
        """One sequence alone, its whole blocks in the expanded form; also how many blocks that were."""
        metadata = self.model.metadata
        rule, schedule, expanded, start = AttentionForms(metadata.prefill_block), [], [], 0
        while start < len(tokens):
            stop, whole_block = rule.next_chunk(start, len(tokens), len(tokens), metadata.max_rows)
            schedule.append([(0, start, stop)])
            expanded.append(whole_block)
            start = stop
        return self.run([tokens], schedule, expanded=expanded)[0], sum(expanded)

    def draft(
        self, next_tokens: np.ndarray, hidden: np.ndarray, chunk: int | None = None, *, follow: int = 0
    ) -> Result:
        """The MTP layer over one sequence: row i takes hidden[i] and the token after it. The first `follow` rows are
        not predicted from, and have no results."""
        chunk = min(chunk or len(next_tokens), self.model.metadata.max_rows)
        schedule = [[(0, start, min(start + chunk, follow))] for start in range(0, follow, chunk)]
        schedule += [[(0, start, stop)] for start, stop in spans(len(next_tokens), chunk, follow)]
        return self._run([next_tokens], schedule, [hidden], 0, None, (), follow)[0]

    def _run(
        self,
        sequences: Sequence[np.ndarray],
        schedule: Sequence[Step],
        hidden: Sequence[np.ndarray] | None,
        pages: int,
        order: int | None,
        expanded: Sequence[bool],
        follow: int = 0,
    ) -> list[Result]:
        table = self._page_table([len(tokens) for tokens in sequences], pages)
        config = self.model.config
        results = [
            Result(
                np.full((len(tokens), config.vocab_size), np.nan, np.float32),
                np.full((len(tokens), config.hidden_size), np.nan, np.float32),
            )
            for tokens in sequences
        ]
        generator = np.random.default_rng(order)
        for step, forms in zip(schedule, [*expanded, *[False] * (len(schedule) - len(expanded))], strict=True):
            rows = [(sequence, position) for sequence, start, stop in step for position in range(start, stop)]
            if order is not None:
                rows = [rows[index] for index in generator.permutation(len(rows))]
            batch = Batch(
                tokens=np.array([sequences[sequence][position] for sequence, position in rows], np.int32),
                positions=np.array([position for _, position in rows], np.int32),
                sequences=np.array([sequence for sequence, _ in rows], np.int32),
                page_table=table,
                wanted=np.arange(len(rows), dtype=np.int32),
                expanded=forms,
            )
            if hidden is None:
                output = self.model.step(batch)
            elif rows[0][1] < follow:
                self.model.follow(_draft_batch(batch, hidden, rows))
                continue
            else:
                output = self.model.draft(_draft_batch(batch, hidden, rows))
            for index, (sequence, position) in enumerate(rows):
                results[sequence].logits[position] = output.logits[index]
                results[sequence].hidden[position] = output.hidden[index]
        return results

    def _page_table(self, lengths: Sequence[int], seed: int) -> np.ndarray:
        """int32 (sequences, max_pages): pages for sequences of these lengths, scattered over the cache."""
        counts = [-(-length // self.page_size) for length in lengths]
        free = np.random.default_rng(seed).permutation(self.pages)
        table = np.zeros((len(lengths), max(counts)), np.int32)
        for row, count in zip(table, counts, strict=True):
            assert count <= len(free), "the cache of the tests is too small"
            row[:count], free = free[:count], free[count:]
        return table


def _draft_batch(batch: Batch, hidden: Sequence[np.ndarray], rows: Sequence[tuple[int, int]]) -> DraftBatch:
    return DraftBatch(
        tokens=batch.tokens,
        hidden=np.array([hidden[sequence][position] for sequence, position in rows]),
        sources=np.arange(len(rows), dtype=np.int32),
        positions=batch.positions,
        sequences=batch.sequences,
        page_table=batch.page_table,
    )


def spans(length: int, chunk: int, first: int = 0) -> list[tuple[int, int]]:
    """[start, stop) pairs that cut [`first`, `length`) into chunks."""
    return [(start, min(start + chunk, length)) for start in range(first, length, chunk)]


def mixed_schedule(lengths: Sequence[int], chunks: Sequence[int]) -> list[list[Span]]:
    """Steps in which every sequence that is not finished has a span: sequence i advances by chunks[i] tokens a step."""
    schedule: list[list[Span]] = []
    done = [0] * len(lengths)
    while any(done[index] < length for index, length in enumerate(lengths)):
        step = []
        for index, length in enumerate(lengths):
            stop = min(done[index] + chunks[index], length)
            if stop > done[index]:
                step.append((index, done[index], stop))
            done[index] = stop
        schedule.append(step)
    return schedule
