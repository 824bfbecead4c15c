"""The loop that drives a compiled model: requests in, one batch a step, updates out. For one thread at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.batch import Batch, StepOutput
from mlc_dsv3.runtime.completion import FinishReason, TokenLogprob, Update
from mlc_dsv3.runtime.forms import AttentionForms
from mlc_dsv3.runtime.sampler import Draw, token_logprob
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.scheduler import Plan, Scheduler, Work
from mlc_dsv3.runtime.sequence import Sequence, TextStream

if TYPE_CHECKING:  # the engine itself needs no tvm
    from mlc_dsv3.runtime.model import CompiledModel


@dataclass
class EngineStats:
    """Sums since the engine started. A step's time is shared out by its rows, sampling and detokenizing included."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    reused_tokens: int = 0
    preemptions: int = 0


class Engine:
    """Runs many requests at once on one model.

    `model` gets a cache of `num_pages` pages, which this engine owns from here on.
    `detokenizer` makes a fresh text stream for a request; without one, texts are empty.
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
    ) -> None:
        metadata = model.metadata
        self.context_window = context_window or metadata.context_window
        assert num_pages * metadata.page_size >= self.context_window, "a whole window must fit in the cache"
        self.stats = EngineStats()
        self._model = model
        self._page_size, self._max_rows = metadata.page_size, metadata.max_rows
        self._forms = AttentionForms(metadata.prefill_block)
        self._scheduler = Scheduler(
            num_pages, metadata.page_size, self._forms, max_rows=metadata.max_rows, max_batch=max_batch
        )
        self._detokenizer, self._eos_token_ids = detokenizer, frozenset(eos_token_ids)
        self._sequences: dict[int, Sequence] = {}
        self._next_id = 0
        model.allocate_cache(num_pages)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._sequences)

    def check(self, prompt: Tokens[int], params: SamplingParams) -> None:
        """Raise UserError for what this model cannot take."""
        self._check_tokens(prompt, "the prompt")
        if len(prompt) >= self.context_window:
            raise UserError(
                f"the prompt has {len(prompt)} tokens; the context window of {self.context_window} has room for "
                f"{self.context_window - 1} and one to generate"
            )
        self._check_tokens(tuple(params.logit_bias), "logit_bias", may_be_empty=True)
        self._check_tokens(tuple(params.stop_token_ids), "stop_token_ids", may_be_empty=True)
        if params.stop and self._detokenizer is None:
            raise UserError("stop strings need a tokenizer, and the model has none; stop_token_ids do not")

    def submit(self, prompt: Tokens[int], params: SamplingParams) -> int:
        """Queue a prompt of token ids; returns the request's id. Raises UserError as `check` does."""
        self.check(prompt, params)
        stop_tokens = params.stop_token_ids | (frozenset() if params.ignore_eos else self._eos_token_ids)
        detokenizer = self._detokenizer() if self._detokenizer is not None else None
        request_id, self._next_id = self._next_id, self._next_id + 1
        sequence = Sequence(request_id, prompt, params, detokenizer, stop_tokens)
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)
        return request_id

    def step(self) -> list[Update]:
        """Run one batch; returns what it added to each request that got a token, nothing while prompts are read."""
        started = time.perf_counter()
        plan = self._scheduler.plan()
        if plan is None:
            return []
        decoded = sum(work.sequence.decoding for work in plan.works)
        ready, output = self._run(plan)
        # Whatever can fail comes before the first change, so that a failed step leaves the books as they were.
        draws = [_draw(row, sequence) for row, sequence in enumerate(ready)]
        tokens = self._model.sample(output, draws)
        chosen = [(token, _logprobs(draw, token, output)) for draw, token in zip(draws, tokens, strict=True)]
        for work in plan.works:
            self._scheduler.advance(work)
        updates = [self._accept(sequence, *choice) for sequence, choice in zip(ready, chosen, strict=True)]
        self._record(plan, decoded, time.perf_counter() - started)
        return updates

    def cancel(self, request_id: int) -> Update | None:
        """End a request now; returns its last update, or None where it has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        return self._end(sequence, [], "", "cancelled", None if sequence.params.logprobs is None else [])

    def logits(self, tokens: Tokens[int]) -> np.ndarray:
        """Logits after each of `tokens`, taken as a prompt: float32 (len(tokens), vocab_size). Requests wait."""
        self._check_tokens(tokens, "token_ids")
        if len(tokens) > self.context_window:
            raise UserError(f"token_ids has {len(tokens)} tokens; the context window is {self.context_window}")
        sequence = Sequence(-1, tokens, SamplingParams())
        pages = self._scheduler.borrow(-(-len(tokens) // self._page_size))
        try:
            sequence.pages.extend(pages)
            rows = np.empty((len(tokens), self._model.config.vocab_size), np.float32)
            start = 0
            while start < len(tokens):
                stop, expanded = self._forms.next_chunk(start, len(tokens), len(tokens), self._max_rows)
                batch = _batch((Work(sequence, start, stop),), np.arange(stop - start), expanded)
                rows[start:stop] = self._model.step(batch).logits
                start = stop
        finally:
            self._scheduler.pool.release(pages)
        return rows

    def clear_cache(self) -> None:
        """Forget the prefixes of finished requests."""
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

    def _run(self, plan: Plan) -> tuple[list[Sequence], StepOutput]:
        """Compute a plan; returns the sequences whose last token it computed, in the order of their rows of logits."""
        ends = np.cumsum([work.stop - work.start for work in plan.works])
        complete = [work.stop == len(work.sequence.tokens) for work in plan.works]
        # The model wants at least one row to be wanted, even where nobody reads it.
        wanted = ends[complete] - 1 if any(complete) else ends[-1:] - 1
        output = self._model.step(_batch(plan.works, wanted, plan.expanded))
        ready = [work.sequence for work, done in zip(plan.works, complete, strict=True) if done]
        return ready, output

    def _accept(self, sequence: Sequence, token: int, logprobs: list[TokenLogprob] | None) -> Update:
        """Add a token to a sequence and see whether it ends there."""
        text, stopped = sequence.append(token)
        if stopped:
            return self._end(sequence, [token], text, "stop", logprobs)
        if sequence.generated == sequence.params.max_tokens or len(sequence.tokens) == self.context_window:
            return self._end(sequence, [token], text, "length", logprobs)
        return _update(sequence, [token], text, None, logprobs)

    def _end(
        self,
        sequence: Sequence,
        token_ids: list[int],
        text: str,
        reason: FinishReason,
        logprobs: list[TokenLogprob] | None,
    ) -> Update:
        held_back, stopped = sequence.finish()
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request_id]
        self.stats.reused_tokens += sequence.reused
        return _update(sequence, token_ids, text + held_back, "stop" if stopped else reason, logprobs)

    def _record(self, plan: Plan, decoded: int, seconds: float) -> None:
        rows = sum(work.stop - work.start for work in plan.works)
        self.stats.decode_tokens += decoded
        self.stats.prefill_tokens += rows - decoded
        self.stats.decode_seconds += seconds * decoded / rows
        self.stats.prefill_seconds += seconds * (rows - decoded) / rows
        self.stats.preemptions = self._scheduler.preemptions


def _draw(row: int, sequence: Sequence) -> Draw:
    """How the next token of a sequence is chosen from a row of logits."""
    return Draw(row, sequence.params, sequence.history, sequence.seed, len(sequence.tokens))


def _logprobs(draw: Draw, token: int, output: StepOutput) -> list[TokenLogprob] | None:
    """A token's logprobs where they are wanted."""
    wanted = draw.params.logprobs
    return None if wanted is None else [token_logprob(output.logits[draw.row], token, wanted)]


def _update(
    sequence: Sequence,
    token_ids: list[int],
    text: str,
    reason: FinishReason | None,
    logprobs: list[TokenLogprob] | None,
) -> Update:
    return Update(
        request_id=sequence.request_id,
        token_ids=token_ids,
        text=text,
        finish_reason=reason,
        logprobs=logprobs,
        prompt_tokens=sequence.prompt_length,
        reused_tokens=sequence.reused,
    )


def _batch(works: Tokens[Work], wanted: np.ndarray, expanded: bool) -> Batch:
    """The rows of `works`, one after the other; `wanted` indexes them."""
    widest = max(len(work.sequence.pages) for work in works)
    page_table = np.zeros((len(works), widest), np.int32)
    for row, work in enumerate(works):
        page_table[row, : len(work.sequence.pages)] = work.sequence.pages
    lengths = [work.stop - work.start for work in works]
    return Batch(
        tokens=np.concatenate([np.array(work.sequence.tokens[work.start : work.stop], np.int32) for work in works]),
        positions=np.concatenate([np.arange(work.start, work.stop, dtype=np.int32) for work in works]),
        sequences=np.repeat(np.arange(len(works), dtype=np.int32), lengths),
        page_table=page_table,
        wanted=wanted.astype(np.int32),
        expanded=expanded,
    )
