"""Decoding with drafts beside plain decoding, by the engine itself: speed-up, acceptance, and what bounds the former.

At one sequence decoding is bound by the bytes of weights that it reads. Verifying more tokens reads more experts, and
drafting reads the MTP layer and the head: the bound is tokens of a step over its bytes, relative to a plain step's.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.bench.counting import draft_bytes, follow_bytes, step_bytes
from mlc_dsv3.bench.remote import Remote
from mlc_dsv3.bench.settings import DRAFTED_PROMPT
from mlc_dsv3.bench.subject import Subject
from mlc_dsv3.errors import UserError
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.batch import Batch, StepOutput
from mlc_dsv3.runtime.engine import Engine
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.runtime.model import CompiledModel, set_threads
from mlc_dsv3.runtime.sampler import Draw
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.speculation import speculation
from mlc_dsv3.weights import Artifact

_ANSWERS = 16  # chats of a round, for each sequence that runs at once


@dataclass(frozen=True)
class DraftedSpeed:
    """Decoding with `drafts` (a number, or "auto") of `batch` sequences; speeds are medians over the rounds.

    `speed_up` is over plain decoding in the same round, with the least and the most; `bound` is what the counted bytes
    allow (None for "auto", which changes its mind); `accepted` are the shares of right drafts by place. `host_share` is
    the time outside of the library's functions (None on GPUs, which run beside the host), `faults_per_step` how often a
    step touched memory that the process had to be given first.
    """

    kind: str
    quantization: str
    drafts: str
    batch: int
    simulated_acceptance: float | None
    tokens_per_second: float
    plain_tokens_per_second: float
    speed_up: float
    speed_up_min: float
    speed_up_max: float
    bound: float | None
    share_of_bound: float | None
    tokens_per_step: float
    accepted: list[float]
    host_share: float | None
    faults_per_step: float


@dataclass(frozen=True)
class _Round:
    seconds: float
    library_share: float | None  # of the time, where its functions return when they are through
    faults_per_step: float
    tokens: int
    steps: int
    drafted: list[int]
    accepted: list[int]


@dataclass(frozen=True)
class Chats:
    """Prompts to answer, as token ids, and the tokens that end an answer."""

    prompts: list[list[int]]
    eos_token_ids: frozenset[int]


class DraftedBench:
    """An engine for each number of drafts on one loaded model, in turns. Without `chats`, prompts are random."""

    def __init__(
        self,
        artifact: Path,
        library: Path,
        threads: int,
        batch: int,
        acceptance: float | None,
        chats: Chats | None,
        ignored: tuple[str, ...] = (),
    ) -> None:
        set_threads(threads)
        opened, weights = Library(library), Artifact.open(artifact, ignore=ignored)
        self._timer = FunctionTimer(opened)
        self._model = CompiledModel.from_arrays(opened, weights.model_config, weights.map_parameters())
        self._batch, self._chats = batch, chats
        self._driven: Any = self._model if acceptance is None else Simulated(self._model, acceptance)
        self._speculations: dict[str, Any] = {}

    def decode(self, drafts: str, tokens: int, seed: int) -> _Round:
        """At most so many tokens of each prompt; "auto" goes on with what it has learnt."""
        size = self._model.metadata.page_size
        if drafts not in self._speculations:
            self._speculations[drafts] = speculation(drafts, has_mtp="draft" in self._model.metadata.functions)
        prompts = self._prompts(seed)
        longest, context = max(map(len, prompts)), self._model.metadata.context_window
        window = longest + tokens + 1
        if window > context:
            raise UserError(f"a prompt of {longest} tokens and {tokens} to decode do not fit in a context of {context}")
        engine = Engine(
            self._driven,
            num_pages=self._batch * -(-window // size) + 1,
            max_batch=self._batch,
            context_window=window,
            eos_token_ids=self._chats.eos_token_ids if self._chats else (),
            speculation=self._speculations[drafts],
        )
        params = SamplingParams(temperature=0, max_tokens=tokens)
        for prompt in prompts:
            engine.submit(prompt, params)
        faults, steps, self._timer.seconds = _page_faults(), 0, 0.0
        started = time.perf_counter()
        while engine.has_work:
            engine.step()
            steps += 1
        seconds, stats = time.perf_counter() - started, engine.stats
        return _Round(
            seconds=stats.decode_seconds,
            library_share=self._timer.seconds / seconds if self._model.metadata.device == "cpu" else None,
            faults_per_step=(_page_faults() - faults) / steps,
            tokens=stats.decode_tokens,
            steps=stats.decode_steps,
            drafted=list(stats.drafted),
            accepted=list(stats.accepted),
        )

    def _prompts(self, seed: int) -> list[list[int]]:
        random = np.random.default_rng(seed)
        if self._chats is None:
            ids = random.integers(0, self._model.config.vocab_size, (self._batch, DRAFTED_PROMPT))
            return ids.tolist()
        chosen = random.integers(0, len(self._chats.prompts), _ANSWERS * self._batch)
        return [self._chats.prompts[place] for place in chosen]


class FunctionTimer:
    """Sums up the seconds within a library's functions."""

    def __init__(self, library: Library) -> None:
        self.seconds = 0.0
        library.calls.wrap(self._timed)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


class Simulated:
    """A model whose drafts are right as often as asked for, by chance: random weights never agree with themselves. All
    that is computed is computed as ever."""

    def __init__(self, model: CompiledModel, acceptance: float) -> None:
        self._model, self._acceptance = model, acceptance
        self._verified: Batch | None = None
        self._step_output: StepOutput | None = None
        self._random = np.random.default_rng(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def step(self, batch: Batch) -> StepOutput:
        """The model's step; its rows are remembered."""
        self._verified = batch
        self._step_output = self._model.step(batch)
        return self._step_output

    def sample(self, output: StepOutput, draws: Sequence[Draw]) -> list[int]:
        """The model's choice, but in front of a draft that draft or another token."""
        tokens = self._model.sample(output, draws)
        if output is not self._step_output or self._verified is None:
            return tokens
        batch, changed = self._verified, list(tokens)
        for place, draw in enumerate(draws):
            row = int(batch.wanted[draw.row])
            following = row + 1
            if following < len(batch.tokens) and batch.sequences[following] == batch.sequences[row]:
                draft = int(batch.tokens[following])
                right = self._random.random() < self._acceptance
                changed[place] = draft if right else (draft + 1) % self._model.config.vocab_size
        return changed


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure_drafted(
    subject: Subject,
    threads: int,
    modes: Sequence[str],
    batches: Sequence[int],
    *,
    tokens: int,
    rounds: int,
    acceptance: float | None,
    chats: Chats | None,
    token_bytes: int,
) -> list[DraftedSpeed]:
    """Each mode beside plain decoding, in turns, `rounds` times."""
    found = []
    with progress("Decoding with drafts", total=len(batches) * rounds * (len(modes) + 1)) as advance:
        for batch in batches:
            arguments = (subject.artifact.path, subject.library, threads, batch, acceptance, chats, subject.ignored)
            with Remote(DraftedBench, *arguments) as process:
                process.call("decode", "off", 8, 0)
                taken: dict[str, list[_Round]] = {mode: [] for mode in ("off", *modes)}
                for number in range(rounds):
                    for mode, results in taken.items():
                        results.append(process.call("decode", mode, tokens, number))
                        advance(1)
            for mode in modes:
                found.append(_speed(subject, mode, batch, acceptance, taken["off"], taken[mode], token_bytes))
    return found


def _speed(
    subject: Subject,
    mode: str,
    batch: int,
    acceptance: float | None,
    plain: list[_Round],
    drafted: list[_Round],
    token_bytes: int,
) -> DraftedSpeed:
    speeds = [[each.tokens / each.seconds for each in side] for side in (plain, drafted)]
    ratios = [ours / theirs for theirs, ours in zip(*speeds, strict=True)]
    per_step = sum(each.tokens for each in drafted) / sum(each.steps for each in drafted)
    made, right = (np.sum([getattr(each, name) for each in drafted], axis=0) for name in ("drafted", "accepted"))
    speed_up = statistics.median(ratios)
    within = [each.library_share for each in drafted if each.library_share is not None]
    bound = None if mode == "auto" else _bound(subject, int(mode), batch, per_step, token_bytes)
    return DraftedSpeed(
        kind="drafted",
        quantization=subject.artifact.quantization,
        drafts=mode,
        batch=batch,
        simulated_acceptance=acceptance,
        tokens_per_second=statistics.median(speeds[1]),
        plain_tokens_per_second=statistics.median(speeds[0]),
        speed_up=speed_up,
        speed_up_min=min(ratios),
        speed_up_max=max(ratios),
        bound=bound,
        share_of_bound=speed_up / bound if bound else None,
        tokens_per_step=per_step,
        accepted=[float(r / m) for r, m in zip(right, made, strict=True) if m],
        host_share=1 - statistics.median(within) if within else None,
        faults_per_step=statistics.median(each.faults_per_step for each in drafted),
    )


def _bound(subject: Subject, drafts: int, batch: int, tokens_per_step: float, token_bytes: int) -> float:
    config, quantization = subject.artifact.model_config, subject.artifact.quantization

    def step(rows: int) -> int:
        return step_bytes(config, quantization, token_bytes, depth=DRAFTED_PROMPT, rows=rows, sequences=batch)

    # Drafts are made one at a time; the layer follows where a step gives a sequence more than one token.
    followed = batch * (tokens_per_step - 1)
    follow = min(1, followed) * follow_bytes(config, quantization, rows=max(1, round(followed)))
    return (
        tokens_per_step * step(1) / (step(drafts + 1) + drafts * draft_bytes(config, quantization, rows=batch) + follow)
    )
