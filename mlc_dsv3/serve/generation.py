"""A request while it runs: prompt and parameters in, pieces of its answers out. Every dialect translates these pieces.

dialect ──Job──▶ Generation ──Piece: events, logprobs, finish reason──▶ dialect
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from mlc_dsv3.runtime.completion import Update
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.sequence import Sequence as Request
from mlc_dsv3.serve.answer import Answer, Piece
from mlc_dsv3.serve.formats import Reader
from mlc_dsv3.serve.service import Service


@dataclass(frozen=True)
class Job:
    """What to generate: `choices` answers to each of the prompts, numbered from the first prompt's first on.

    `reader` makes the events of one answer's text, of whose calls no more than `most_calls` are passed on.
    """

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    choices: int
    reader: Callable[[], Reader]
    most_calls: int | None = None

    @property
    def answers(self) -> int:
        """How many there are."""
        return len(self.prompts) * self.choices


@dataclass
class Usage:
    """Tokens and seconds of a request, all of its answers together."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    _cached: dict[int, int] = field(default_factory=dict)  # by request ids, as the next
    _drafts: dict[int, tuple[int, int]] = field(default_factory=dict)  # made, and right
    started: float = field(default_factory=time.monotonic)
    first: float | None = None  # token
    last: float | None = None

    def count(self, update: Update, now: float, *, reads_prompt: bool) -> None:
        """Add an update's tokens, which came `now`; of the answers to one prompt the first one reads it."""
        self.completion_tokens += len(update.token_ids)
        self._drafts[update.request_id] = update.drafted, update.accepted
        if reads_prompt:
            self._cached[update.request_id] = update.reused_tokens
        self.first = self.first or now
        self.last = now

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that the cache spared."""
        return sum(self._cached.values())

    def timings(self) -> dict[str, float | int]:
        """Seconds until the first token, seconds from then on, and what drafts did."""
        first = self.first or time.monotonic()
        decoding = (self.last or first) - first
        drafted, accepted = (sum(counts) for counts in zip((0, 0), *self._drafts.values(), strict=True))
        later = self.completion_tokens - 1
        return {
            "prefill_seconds": round(first - self.started, 6),
            "decode_seconds": round(decoding, 6),
            "tokens_per_second": round(later / decoding, 3) if decoding > 0 and later > 0 else 0.0,
            "drafted": drafted,
            "accepted": accepted,
        }


class Generation:
    """One request's answers. `pieces` runs it. Whoever has one must call `close` in the end, whatever happened."""

    def __init__(self, service: Service, job: Job, requests: list[Request]) -> None:
        self.job, self.usage = job, Usage(prompt_tokens=sum(map(len, job.prompts)))
        self._service, self._requests = service, requests

    @staticmethod
    async def prepare(service: Service, answers: int, make: Callable[[], Job]) -> Generation:
        """Take places in the queue and call `make`, which may take long. ApiError or UserError for a wrong request."""
        started = time.monotonic()
        service.admit(answers)
        try:
            job, requests = await asyncio.to_thread(_prepared, service, make)
        except BaseException:
            service.release(answers, time.monotonic() - started)
            raise
        service.expert_shares.follow(requests[-1].tokens)
        return Generation(service, job, requests)

    def close(self) -> None:
        """Give the places in the queue back."""
        self._service.release(self.job.answers, time.monotonic() - self.usage.started)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The answers' pieces as they come; closing this cancels what still runs. Raises what a request fails with."""
        job = self.job
        answers = [Answer(choice, job.reader(), most_calls=job.most_calls) for choice in range(job.answers)]
        async with aclosing(self._updates()) as updates:
            async for choice, update in updates:
                now = time.monotonic()
                self.usage.count(update, now, reads_prompt=choice % job.choices == 0)
                answers[choice].measure(update, now, self.usage.started, self._service.metrics)
                piece = answers[choice].piece(update)
                self.usage.reasoning_tokens += len(update.token_ids) if answers[choice].thinks else 0
                if piece.events or piece.logprobs or piece.finish_reason:
                    yield piece

    async def _updates(self) -> AsyncGenerator[tuple[int, Update], None]:
        """Updates of all answers, each with its answer's number."""
        if self.job.answers == 1:
            async with aclosing(self._service.engine.follow(self._requests[0])) as updates:
                async for update in updates:
                    yield 0, update
            return
        merged: asyncio.Queue[tuple[int, Update | Exception]] = asyncio.Queue()
        # The first answer to a prompt reads it, and the others find it in the cache.
        read = [asyncio.Event() for _ in self.job.prompts]

        async def follow(choice: int) -> None:
            prompt_is_read = read[choice // self.job.choices]
            if choice % self.job.choices > 0:
                await prompt_is_read.wait()
            try:
                async with aclosing(self._service.engine.follow(self._requests[choice])) as updates:
                    async for update in updates:
                        merged.put_nowait((choice, update))
                        prompt_is_read.set()
            except Exception as error:
                merged.put_nowait((choice, error))

        tasks = [asyncio.create_task(follow(choice)) for choice in range(self.job.answers)]
        try:
            running = len(tasks)
            while running:
                choice, item = await merged.get()
                if isinstance(item, Exception):
                    raise item
                running -= item.finish_reason is not None
                yield choice, item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _prepared(service: Service, make: Callable[[], Job]) -> tuple[Job, list[Request]]:
    """A job and the requests that it comes to."""
    job = make()
    each = [_numbered(job.params, number) for number in range(job.choices)]
    return job, [service.llm.prepare(tokens, params) for tokens in job.prompts for params in each]


def _numbered(params: SamplingParams, number: int) -> SamplingParams:
    """For one of several answers: a seed gives each answer another text, and always the same."""
    return params if params.seed is None else replace(params, seed=(params.seed + number) % 2**64)
