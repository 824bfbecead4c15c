"""What a server does under load: many clients, a shared beginning, a restart, and memory over many requests.

Client and server are two processes on one machine, so that the client takes some of the processor, too.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mlc_dsv3.bench.http_client import Answer, Client
from mlc_dsv3.bench.server_process import ServerProcess
from mlc_dsv3.progress import progress

STALL = 2.0  # seconds between two pieces of an answer that nobody should wait
SHARED_TOKENS, SHARED_REQUESTS, _OWN_TOKENS = 2000, 20, 20
_BESIDE_TOKENS, _BESIDE_PROMPTS = 1500, 5
_WINDOW = 1000  # requests whose memory is averaged

Ask = Callable[[Client, int], Answer]  # a question by its number


@dataclass(frozen=True)
class Load:
    """So many clients that ask one question after the other.

    tokens_per_second: of all answers together. first_*: seconds to the first piece of an answer, the median and the
    99th percentile. wrong: answers that differ from the same question's asked alone. http_ms: CPU milliseconds of the
    server's HTTP thread a token.
    """

    clients: int
    seconds: float
    requests: int
    tokens_per_second: float
    first_median: float
    first_99: float
    longest_gap: float
    stalls: int
    errors: int
    wrong: int | None
    http_ms: float | None
    first_error: str | None = None


@dataclass(frozen=True)
class Shared:
    """Requests that begin alike: seconds to the first token of the first, of the others (median) and of one after a
    restart, and how many tokens each took from the cache."""

    first: float
    others: float
    restarted: float
    reused_others: int
    reused_restarted: int


@dataclass(frozen=True)
class Beside:
    """Longest gap between two pieces of an answer, in seconds: alone, and while prompts of 2,000 tokens are read."""

    alone: float
    beside: float


@dataclass(frozen=True)
class Flatness:
    """Anonymous memory of the server, averaged over the first and over the last 1,000 of so many requests."""

    requests: int
    first_bytes: float
    last_bytes: float
    errors: int


@dataclass
class Questions:
    """What clients ask: question `number % count`, and the answers that each got alone."""

    ask: Ask
    count: int
    alone: dict[int, str] = field(default_factory=dict)

    def ask_alone(self, server: ServerProcess) -> None:
        """Ask each by itself."""
        client = Client(server.port)
        with progress("Asking alone", self.count) as advance:
            for number in range(self.count):
                self.alone[number] = self.ask(client, number).text
                advance(1)
        client.close()

    def differs(self, number: int, answer: Answer) -> bool:
        """Whether an answer differs from the one alone."""
        return (
            answer.error is None
            and number % self.count in self.alone
            and answer.text != self.alone[number % self.count]
        )


def measure_load(server: ServerProcess, questions: Questions, clients: int, seconds: float) -> Load:
    """Let `clients` ask for `seconds`; answers under way at the end are waited for."""
    started, http = time.perf_counter(), server.http_seconds()
    end = started + seconds
    answers: list[tuple[int, Answer]] = []
    lock = threading.Lock()

    def work(seed: int) -> None:
        choice, client = random.Random(seed), Client(server.port)
        while time.perf_counter() < end:
            number = choice.randrange(questions.count)
            answer = questions.ask(client, number)
            with lock:
                answers.append((number, answer))
        client.close()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    taken = time.perf_counter() - started
    good = [answer for _, answer in answers if answer.error is None]
    tokens = sum(answer.tokens for answer in good)
    firsts = sorted(answer.first for answer in good) or [0.0]
    gaps = [answer.longest_gap for answer in good] or [0.0]
    after = server.http_seconds()
    return Load(
        clients=clients,
        seconds=taken,
        requests=len(answers),
        tokens_per_second=tokens / taken,
        first_median=statistics.median(firsts),
        first_99=firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))],
        longest_gap=max(gaps),
        stalls=sum(gap > STALL for gap in gaps) + sum(first > STALL for first in firsts),
        errors=len(answers) - len(good),
        wrong=sum(questions.differs(number, answer) for number, answer in answers) if questions.alone else None,
        http_ms=1000 * (after - http) / tokens if after is not None and http is not None and tokens else None,
        first_error=next((answer.error for _, answer in answers if answer.error), None),
    )


def measure_shared(start: Callable[[], ServerProcess], vocab_size: int) -> Shared:
    """Requests with 2,000 tokens in common and 20 of their own, one after the other, and one more after a restart;
    `start()` makes servers that keep prefixes in the same folder."""
    tokens = random.Random(0)
    common = [tokens.randrange(vocab_size) for _ in range(SHARED_TOKENS)]

    def ask(client: Client) -> Answer:
        return client.complete([*common, *(tokens.randrange(vocab_size) for _ in range(_OWN_TOKENS))], 1)

    def warm(client: Client) -> None:
        """The kernels' and the connection's first use."""
        client.complete([tokens.randrange(vocab_size) for _ in range(_OWN_TOKENS)], 4)

    with start() as server:
        client = Client(server.port)
        warm(client)
        answers = [ask(client) for _ in range(SHARED_REQUESTS)]
        client.close()
    with start() as server:
        client = Client(server.port)
        warm(client)
        restarted = ask(client)
        client.close()
    return Shared(
        first=answers[0].first,
        others=statistics.median(answer.first for answer in answers[1:]),
        restarted=restarted.first,
        reused_others=min(answer.cached_tokens for answer in answers[1:]),
        reused_restarted=restarted.cached_tokens,
    )


def measure_beside(server: ServerProcess, vocab_size: int) -> Beside:
    """Stream one answer, and another while long prompts are read."""
    tokens = random.Random(1)

    def prompt(length: int) -> list[int]:
        return [tokens.randrange(vocab_size) for _ in range(length)]

    client, other = Client(server.port), Client(server.port)
    alone = client.complete(prompt(_OWN_TOKENS), _BESIDE_TOKENS)
    prompts = [prompt(SHARED_TOKENS) for _ in range(_BESIDE_PROMPTS)]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.complete, prompt(_OWN_TOKENS), _BESIDE_TOKENS)
        for each in prompts:
            other.complete(each, 1)
        beside = answer.result()
    client.close()
    other.close()
    return Beside(alone.longest_gap, beside.longest_gap)


def measure_flatness(server: ServerProcess, questions: Questions, requests: int, clients: int) -> Flatness:
    """Anonymous memory over so many requests."""
    held: list[int] = []
    errors = 0
    lock = threading.Lock()
    numbers = iter(range(requests))

    with progress("Asking many times", requests) as advance:

        def work(_: int) -> None:
            nonlocal errors
            client = Client(server.port)
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    break
                failed = questions.ask(client, number).error is not None
                memory = server.rss_anon()
                with lock:
                    errors += failed
                    held.append(memory or 0)
                    advance(1)
            client.close()

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(work, range(clients)))
    return Flatness(requests, _mean(held[:_WINDOW]), _mean(held[-_WINDOW:]), errors)


def _mean(values: Sequence[int]) -> float:
    return statistics.fmean(values)
