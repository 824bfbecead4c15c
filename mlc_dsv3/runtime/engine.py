"""The loop that drives a compiled model: requests in, one batch a step, updates out. For one thread at a time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator
from collections.abc import Sequence as Tokens
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from mlc_dsv3.errors import ContextWindowError, NotFiniteError, UserError, warn_once
from mlc_dsv3.runtime.batch import Batch, StepOutput
from mlc_dsv3.runtime.choice import Choice, choose
from mlc_dsv3.runtime.completion import FinishReason, TokenLogprob, Update
from mlc_dsv3.runtime.drafting import Computed, Drafter, force, page_table
from mlc_dsv3.runtime.engine_stats import EngineStats, Occupancy
from mlc_dsv3.runtime.forms import AttentionForms
from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler
from mlc_dsv3.runtime.grammar_matcher import GrammarMatcher
from mlc_dsv3.runtime.sampler import token_logprob
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.scheduler import Plan, Scheduler, Work
from mlc_dsv3.runtime.sequence import Sequence, TextStream
from mlc_dsv3.runtime.speculation import Speculation

if TYPE_CHECKING:  # the engine itself needs no tvm
    from mlc_dsv3.runtime.library import Library
    from mlc_dsv3.runtime.model import CompiledModel
    from mlc_dsv3.runtime.page_store import PageStore


class Engine:
    """Runs many requests at once on one model.

    `model` gets a cache of `num_pages` pages, which this engine owns from here on.
    `detokenizer` makes a fresh text stream for a request; without one, texts are empty. With `speculation` tokens are
    drafted and verified several at a time; what comes out is the same, token for token, drawn or greedy. What leaves
    the cache goes to `store`, and comes back from there. `grammars` compiles those of requests; without it they can
    have none.
    """

    def __init__(
        self,
        model: CompiledModel,
        *,
        num_pages: int,
        max_batch: int,
        context_window: int | None = None,
        detokenizer: Callable[[], TextStream] | None = None,
        eos_token_ids: Collection[int] = (),
        speculation: Speculation | None = None,
        store: PageStore | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        metadata = model.metadata
        self.context_window = context_window or metadata.context_window
        assert num_pages * metadata.page_size >= self.context_window, "a whole window must fit in the cache"
        self.max_batch = max_batch
        self.stats = EngineStats()
        self._model = model
        self._page_size, self._max_rows = metadata.page_size, metadata.max_rows
        self._forms = AttentionForms(metadata.prefill_block)
        self._scheduler = Scheduler(
            num_pages,
            metadata.page_size,
            self._forms,
            max_rows=metadata.max_rows,
            max_batch=max_batch,
            exact_rows=metadata.exact_rows,
        )
        self._speculation = speculation
        self._drafter = Drafter(model, self._scheduler, self.context_window) if speculation else None
        self._detokenizer, self._eos_token_ids = detokenizer, frozenset(eos_token_ids)
        self._grammars = grammars
        self._sequences: dict[int, Sequence] = {}
        self._ids = itertools.count()
        model.allocate_cache(num_pages)
        if store is not None:
            self._scheduler.save_to(store, model)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._sequences)

    def check(self, prompt: Tokens[int], params: SamplingParams) -> None:
        """Raise UserError for what this model cannot take."""
        self._check_request(prompt, params)
        self._matcher(params)

    def _check_request(self, prompt: Tokens[int], params: SamplingParams) -> None:
        self._check_tokens(prompt, "the prompt")
        if len(prompt) >= self.context_window:
            raise ContextWindowError(
                f"the prompt has {len(prompt)} tokens; the context window of {self.context_window} has room for "
                f"{self.context_window - 1} and one to generate"
            )
        self._check_tokens(tuple(params.logit_bias), "logit_bias", may_be_empty=True)
        self._check_tokens(tuple(params.stop_token_ids), "stop_token_ids", may_be_empty=True)
        if params.stop and self._detokenizer is None:
            raise UserError("stop strings need a tokenizer, and the model has none; stop_token_ids do not")

    def _matcher(self, params: SamplingParams) -> GrammarMatcher | None:
        if params.grammar is None:
            return None
        if self._grammars is None:
            raise UserError("a grammar needs a tokenizer, and the model has none")
        return self._grammars.matcher(params.grammar, ignore_eos=params.ignore_eos)

    def prepare(self, prompt: Tokens[int], params: SamplingParams) -> Sequence:
        """A request for `add`, from a prompt of token ids. Any thread may call it. Raises UserError as `check` does.

        A grammar that is new takes about a tenth of a second, and a hostile one seconds.
        """
        self._check_request(prompt, params)
        matcher = self._matcher(params)
        stop_tokens = params.stop_token_ids | (frozenset() if params.ignore_eos else self._eos_token_ids)
        detokenizer = self._detokenizer() if self._detokenizer is not None else None
        return Sequence(next(self._ids), prompt, params, detokenizer, stop_tokens, matcher)

    def add(self, sequence: Sequence) -> None:
        """Queue a request that `prepare` made."""
        self._sequences[sequence.request_id] = sequence
        self._scheduler.add(sequence)

    def submit(self, prompt: Tokens[int], params: SamplingParams) -> int:
        """`prepare` and `add` a request; returns its id."""
        sequence = self.prepare(prompt, params)
        self.add(sequence)
        return sequence.request_id

    def step(self) -> list[Update]:
        """Run one batch; returns what it added to each request that got a token, nothing while prompts are read.

        A request whose logits are not finite ends with its error, and the others go on. Raises what the model raises;
        then no request has changed.
        """
        started = time.perf_counter()
        plan = self._scheduler.plan()
        if plan is None:
            return []
        decoding = [work.sequence.decoding for work in plan.works]
        rows, output = self._run(plan)
        # Whatever can fail comes before the first change, so that a failed step leaves the books as they were.
        chosen = choose(self._model, plan, output)
        failed = {choice.work for choice in chosen if choice.error}
        for work in plan.works:
            work.sequence.drop_drafts()
            if work not in failed:
                self._scheduler.advance(work)
        updates = [self._accept(choice) for choice in chosen]
        drafts = self._draft(plan, rows, output)
        got = {choice.work: len(update.token_ids) for choice, update in zip(chosen, updates, strict=True)}
        self._record(plan, decoding, got, drafts, time.perf_counter() - started)
        return updates

    def cancel(self, request_id: int) -> Update | None:
        """End a request now; returns its last update, or None where it has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        return self._end(sequence, [], "", "cancelled")

    def end_all(self, reason: FinishReason, error: Exception | None = None) -> list[Update]:
        """End every request for one reason; returns their last updates."""
        return [self._fail(sequence, reason, error) for sequence in list(self._sequences.values())]

    def logits(self, tokens: Tokens[int]) -> np.ndarray:
        """Logits after each of `tokens`, taken as a prompt: float32 (len(tokens), vocab_size). Requests wait."""
        self._check_tokens(tokens, "token_ids")
        if len(tokens) > self.context_window:
            raise UserError(f"token_ids has {len(tokens)} tokens; the context window is {self.context_window}")
        rows = np.empty((len(tokens), self._model.config.vocab_size), np.float32)
        for start, stop, output in self._read(tokens, every_row=True):
            rows[start:stop] = output.logits
        return rows

    def read(self, tokens: Tokens[int], watching: Callable[[Library], AbstractContextManager[None]]) -> None:
        """Run `tokens` as a prompt, for what `watching(library)` sees meanwhile. Requests wait."""
        with watching(self._model.library):
            for _ in self._read(tokens, every_row=False):
                pass

    def prompt_logprobs(self, tokens: Tokens[int], alternatives: int) -> Iterator[list[TokenLogprob]]:
        """The logprob of each of `tokens` but the first, behind those before it: a step's at a time, so that requests
        wait no longer than that."""
        for start, stop, output in self._read(tokens, every_row=True):
            following = tokens[start + 1 : stop + 1]  # one fewer than rows at the prompt's end
            logprobs = [
                token_logprob(row, token, alternatives) for row, token in zip(output.logits, following, strict=False)
            ]
            if not all(np.isfinite(entry.logprob) for entry in logprobs):
                raise NotFiniteError(f"the model's logits at positions from {start} to {stop - 1} are not finite")
            yield logprobs

    def _read(self, tokens: Tokens[int], *, every_row: bool) -> Iterator[tuple[int, int, StepOutput]]:
        """The steps of a prompt: first position, one past the last, and the output, with logits of every row or of the
        last."""
        sequence = Sequence(-1, tokens, SamplingParams())
        pages = self._scheduler.borrow(-(-len(tokens) // self._page_size))
        try:
            sequence.pages.extend(pages)
            start = 0
            while start < len(tokens):
                stop, expanded = self._forms.next_chunk(start, len(tokens), len(tokens), self._max_rows)
                wanted = np.arange(0 if every_row else stop - start - 1, stop - start)
                yield start, stop, self._model.step(_batch((Work(sequence, start, stop),), wanted, expanded))
                start = stop
        finally:
            self._scheduler.give_back(pages)

    @property
    def occupancy(self) -> Occupancy:
        """How full the engine is. Any thread may ask."""
        scheduler = self._scheduler
        return Occupancy(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            cache_tokens=scheduler.pool.num_pages * self._page_size,
            free_tokens=scheduler.pool.free * self._page_size,
            prefix_tokens=len(scheduler.prefix) * self._page_size,
        )

    def save_prefixes(self) -> None:
        """Save the prefixes of finished requests that are worth it, and return once they are on disk. No request comes
        after that."""
        if self._scheduler.saved is not None:
            self._scheduler.saved.close()

    def clear_cache(self) -> None:
        """Forget the prefixes of finished requests, but not what is on disk."""
        self._scheduler.prefix.clear()

    @property
    def free_pages(self) -> int:
        """Pages that neither a request nor the prefix cache holds."""
        return self._scheduler.pool.free

    def _check_tokens(self, tokens: Tokens[int], where: str, *, may_be_empty: bool = False) -> None:
        if not may_be_empty and not len(tokens):
            raise UserError(f"{where} is empty; it needs at least one token")
        vocab_size = self._model.config.vocab_size
        for token in tokens:
            if not isinstance(token, (int, np.integer)) or not 0 <= token < vocab_size:
                raise UserError(f"{where} has token id {token!r}; the vocabulary has ids from 0 to {vocab_size - 1}")

    def _run(self, plan: Plan) -> tuple[np.ndarray, StepOutput]:
        """Compute a plan; returns each work's first row. Logits are those of the last tokens and of the drafts."""
        ends = np.cumsum([work.rows for work in plan.works])
        starts = ends - [work.rows for work in plan.works]
        wanted = [
            np.arange(end - 1 - len(work.drafts), end)
            for work, end in zip(plan.works, ends, strict=True)
            if work.complete
        ]
        # The model wants at least one row to be wanted, even where nobody reads it.
        rows = np.concatenate(wanted) if wanted else ends[-1:] - 1
        return starts, self._model.step(_batch(plan.works, rows, plan.expanded))

    def _accept(self, choice: Choice) -> Update:
        """Add tokens to a sequence, as far as it goes on."""
        sequence, tokens, logprobs, text = choice.work.sequence, choice.tokens, choice.logprobs, ""
        if not choice.work.forced:
            sequence.drafted += len(choice.work.drafts)
            sequence.accepted += max(len(tokens) - 1, 0)
        for count, token in enumerate(tokens, 1):
            sequence.computed = len(sequence.tokens)  # what comes after the first was a draft, and is computed
            more, stopped = sequence.append(token)
            text += more
            kept, reported = tokens[:count], None if logprobs is None else logprobs[:count]
            if stopped:
                return self._end(sequence, kept, text, "stop", reported)
            if sequence.generated == sequence.params.max_tokens or len(sequence.tokens) == self.context_window:
                return self._end(sequence, kept, text, "length", reported)
        if choice.error is not None:
            return self._fail(sequence, "error", choice.error, tokens, text, logprobs)
        return sequence.update(tokens, text, None, logprobs)

    def _draft(self, plan: Plan, rows: np.ndarray, output: StepOutput) -> int:
        """Draft for what goes on after a plan; returns how many tokens the MTP layer was to draft for each sequence."""
        decoding = [sequence for sequence in self._scheduler.running if sequence.remaining == 1]
        spare_rows = self._scheduler.rows_for_drafts(len(decoding)) if decoding else 0
        spare_rows -= force(self._scheduler, decoding, spare_rows, self.context_window)
        if self._speculation is None or self._drafter is None:
            return 0
        computed = [
            Computed(work.sequence, work.start, int(row))
            for work, row in zip(plan.works, rows, strict=True)
            if work.sequence.request_id in self._sequences
        ]
        free = sum(not sequence.forced for sequence in decoding)
        drafts = min(self._speculation.drafts(len(decoding)), spare_rows // free) if free else 0
        # A prompt is read by the layer in any case: drafting may begin to pay later.
        now = [each for each in computed if drafts or not each.sequence.generated]
        if now and self._drafter.draft(now, output, drafts):
            self._speculation.accepted(drafts, 0)
            warn_once(
                "the MTP layer's logits are not finite in some places; nothing is drafted there, which takes longer "
                "and changes no answer"
            )
        if not drafts:
            self._drafter.postpone([each for each in computed if each.sequence.generated], output)
        return drafts

    def _end(
        self,
        sequence: Sequence,
        token_ids: list[int],
        text: str,
        reason: FinishReason,
        logprobs: list[TokenLogprob] | None = None,
    ) -> Update:
        held_back, stopped = sequence.finish()
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request_id]
        self.stats.reused_tokens += sequence.reused
        return sequence.update(token_ids, text + held_back, "stop" if stopped else reason, logprobs)

    def _fail(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: Exception | None,
        token_ids: Tokens[int] = (),
        text: str = "",
        logprobs: list[TokenLogprob] | None = None,
    ) -> Update:
        """End a request that can go no further; nobody reuses what it computed, which may be not finite."""
        self._scheduler.remove(sequence, keep=False)
        del self._sequences[sequence.request_id]
        return sequence.update(list(token_ids), text + sequence.finish()[0], reason, logprobs, error)

    def _record(
        self,
        plan: Plan,
        decoding: list[bool],
        got: dict[Work, int],
        drafts: int,
        seconds: float,
    ) -> None:
        stats, rows = self.stats, sum(work.rows for work in plan.works)
        decoded = [work for work, was in zip(plan.works, decoding, strict=True) if was]
        decoded_rows = sum(work.rows for work in decoded)
        stats.decode_tokens += sum(got[work] for work in decoded)
        stats.decode_steps += len(decoded)
        stats.prefill_tokens += rows - decoded_rows
        stats.decode_seconds += seconds * decoded_rows / rows
        stats.prefill_seconds += seconds * (rows - decoded_rows) / rows
        stats.preemptions = self._scheduler.preemptions
        stats.forced += sum(got[work] - 1 for work in decoded if work.forced)
        if self._speculation:
            # What is forced says nothing of the layer's acceptance, and no such step is timed.
            lengths = [(len(work.drafts), got[work]) for work in decoded if not work.forced]
            alone = len(lengths) == len(plan.works)
            self._record_drafts(self._speculation, lengths, drafts, seconds if alone else None)

    def _record_drafts(
        self, speculation: Speculation, lengths: list[tuple[int, int]], drafts: int, seconds: float | None
    ) -> None:
        """What became of drafts: `lengths` are how many each sequence had, and how many tokens it got; `seconds` what a
        step took that did nothing else."""
        stats = self.stats
        for made, got in lengths:
            for place in range(min(made, got)):
                stats.drafted[place] += 1
                stats.accepted[place] += place < got - 1
            if made:
                speculation.accepted(made, got - 1)
        if seconds is None:
            return
        plain = speculation.plain_seconds(len(lengths))
        if plain is not None:
            stats.compared_seconds += seconds
            stats.plain_seconds += plain * sum(got for _, got in lengths) / len(lengths)
        if {made for made, _ in lengths} == {drafts}:
            speculation.took(len(lengths), drafts, seconds)


def _batch(works: Tokens[Work], wanted: np.ndarray, expanded: bool) -> Batch:
    """The rows of `works`, one after the other; `wanted` indexes them."""
    lengths = [work.rows for work in works]
    tokens = [[*work.sequence.tokens[work.start : work.stop], *work.drafts] for work in works]
    return Batch(
        tokens=np.concatenate([np.array(each, np.int32) for each in tokens]),
        positions=np.concatenate([np.arange(work.start, work.start + work.rows, dtype=np.int32) for work in works]),
        sequences=np.repeat(np.arange(len(works), dtype=np.int32), lengths),
        page_table=page_table([work.sequence for work in works]),
        wanted=wanted.astype(np.int32),
        expanded=expanded,
    )
