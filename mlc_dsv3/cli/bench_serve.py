"""`mlc_dsv3 bench serve`: a server under load, with clients on the same machine."""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from mlc_dsv3.cli.arguments import (
    add_cache_dtype,
    add_context_window,
    add_ignore_config_field,
    add_quantization,
    add_speculative,
)
from mlc_dsv3.cli.output import print_json, print_table, size
from mlc_dsv3.errors import UserError

if TYPE_CHECKING:
    from mlc_dsv3.bench.serving import Beside, Flatness, Load, Questions, Shared

_QUESTIONS = 100
_MAX_TOKENS = 48
_PROMPT_TOKENS = 64  # of models other than the demo, which get random tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or org/name (the demo model)")
    add_quantization(parser, default="the target's default")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="where to run; `mlc_dsv3 devices` lists devices (auto: cpu)"
    )
    add_context_window(parser, help="tokens of a conversation (as many as fit in memory)")
    add_cache_dtype(parser)
    add_speculative(parser)
    parser.add_argument("--clients", default="1,4,16,64", metavar="N,N", help="clients at once (1,4,16,64)")
    parser.add_argument("--seconds", type=float, default=10, metavar="S", help="how long each asks (10)")
    parser.add_argument(
        "--requests",
        type=int,
        default=10_000,
        metavar="N",
        help="requests over which memory is watched (10000; 0: none)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Measure and print tables or JSON."""
    clients = _clients(parsed.clients)
    if parsed.seconds <= 0:
        raise UserError(f"--seconds is {parsed.seconds}; it must be above 0")
    if parsed.requests < 0:
        raise UserError(f"--requests is {parsed.requests}; it must be at least 0")
    from mlc_dsv3.bench.server_process import ServerProcess
    from mlc_dsv3.bench.serving import measure_beside, measure_flatness, measure_load, measure_shared

    options, vocab_size, window = _made(parsed)
    questions = _demo_questions() if parsed.model is None else _random_questions(vocab_size)
    with ServerProcess(options) as server:
        questions.ask_alone(server)
        loads = [measure_load(server, questions, count, parsed.seconds) for count in clients]
    flatness, shared, beside = None, None, None
    if parsed.requests:
        with ServerProcess(options) as server:
            flatness = measure_flatness(server, questions, parsed.requests, clients=8)
    if window >= _least_window():
        with tempfile.TemporaryDirectory() as folder:
            start = partial(ServerProcess, [*options, "--cache-dir", folder])
            shared = measure_shared(start, vocab_size)
        with ServerProcess(options) as server:
            beside = measure_beside(server, vocab_size)
    if parsed.json:
        parts = {"shared": shared, "beside": beside, "memory": flatness}
        found = {name: asdict(part) for name, part in parts.items() if part is not None}
        print_json({"load": [asdict(load) for load in loads], **found})
    else:
        _print(loads, shared, beside, flatness)


def _made(parsed: argparse.Namespace) -> tuple[list[str], int, int]:
    """The server's options, the vocabulary's size and the context window; the model is converted and compiled."""
    from mlc_dsv3.runtime.llm import LLM

    options = [] if parsed.model is None else [parsed.model]
    given = ("quantization", "device", "context_window", "cache_dtype", "speculative")
    chosen = {name: getattr(parsed, name) for name in given if getattr(parsed, name) is not None}
    for name, value in chosen.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    for field in parsed.ignore_config_field:
        options += ["--ignore-config-field", field]
    with LLM(parsed.model, **chosen, ignore_config_fields=parsed.ignore_config_field) as llm:
        return options, llm.artifact.model_config.vocab_size, llm.context_window


def _demo_questions() -> Questions:
    from mlc_dsv3.bench.serving import Questions
    from mlc_dsv3.demo.questions import held_out_questions

    chats = [question.messages for question in held_out_questions(_QUESTIONS)]
    return Questions(lambda client, number: client.chat(chats[number % _QUESTIONS], _MAX_TOKENS), _QUESTIONS)


def _random_questions(vocab_size: int) -> Questions:
    from mlc_dsv3.bench.serving import Questions

    def prompt(number: int) -> list[int]:
        tokens = random.Random(number)
        return [tokens.randrange(vocab_size) for _ in range(_PROMPT_TOKENS)]

    return Questions(lambda client, number: client.complete(prompt(number), _MAX_TOKENS), _QUESTIONS)


def _least_window() -> int:
    from mlc_dsv3.bench.serving import SHARED_TOKENS

    return SHARED_TOKENS + 48


def _print(loads: list[Load], shared: Shared | None, beside: Beside | None, flatness: Flatness | None) -> None:
    from mlc_dsv3.bench.serving import SHARED_REQUESTS, SHARED_TOKENS

    columns = [
        "clients",
        "requests",
        "tok/s",
        "first token",
        "99 %",
        "longest gap",
        "stalls",
        "errors",
        "wrong",
        "HTTP CPU",
    ]
    rows = [
        [
            load.clients,
            load.requests,
            f"{load.tokens_per_second:.1f}",
            _ms(load.first_median),
            _ms(load.first_99),
            _ms(load.longest_gap),
            load.stalls,
            load.errors,
            "" if load.wrong is None else load.wrong,
            "" if load.http_ms is None else f"{load.http_ms:.3f} ms a token",
        ]
        for load in loads
    ]
    print_table(rows, columns)
    for load in loads:
        if load.first_error:
            print(f"{load.clients} clients: {load.first_error}")
    if shared:
        print(f"\n{SHARED_REQUESTS} requests that begin with the same {SHARED_TOKENS} tokens: time to the first token")
        shares = [shared.others / shared.first, shared.restarted / shared.first]
        print_table(
            [
                ["first", _ms(shared.first), "", 0],
                ["others", _ms(shared.others), f"{shares[0]:.0%}", shared.reused_others],
                ["after a restart", _ms(shared.restarted), f"{shares[1]:.0%}", shared.reused_restarted],
            ],
            ["request", "ms", "share", "tokens reused"],
        )
    if beside:
        print(
            f"\nlongest gap in an answer: {_ms(beside.alone)} alone, {_ms(beside.beside)} while prompts of "
            f"{SHARED_TOKENS} tokens are read"
        )
    if flatness:
        change = flatness.last_bytes / flatness.first_bytes - 1
        print(
            f"\nmemory over {flatness.requests} requests: {size(int(flatness.first_bytes))} at first, "
            f"{size(int(flatness.last_bytes))} at last ({change:+.1%}), {flatness.errors} errors"
        )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _clients(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"--clients is {text!r}; give numbers from 1 up, such as 1,16")
    return found
