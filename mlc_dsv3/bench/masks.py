"""What grammars cost a step on the host: `python -m mlc_dsv3.bench.masks FOLDER`, for the tokenizer in FOLDER.

Answers are walked along token by token, each time with a new matcher: nothing is known of one from the walk before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlc_dsv3.cli.output import print_table
from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler
from mlc_dsv3.runtime.grammar_matcher import GrammarMatcher, allows
from mlc_dsv3.runtime.tokenizer import Tokenizer

_LONGEST_TOKEN = 64  # bytes of one that a walk takes
_ROUNDS = 20
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "biography": {"type": "string", "maxLength": 200},
        "height": {"type": "number", "minimum": 0, "maximum": 3},
        "fields": {"type": "array", "items": {"enum": ["mathematics", "poetry", "music"]}, "maxItems": 3},
        "parents": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name", "born", "biography", "height", "fields"],
    "additionalProperties": False,
}
_ADA = (
    '{"name": "Ada Lovelace", "born": "1815-12-10", "biography": "She wrote the first program, “Note G”, for a machine '
    'that was never built.", "height": 1.65, "fields": ["mathematics", "poetry"], "parents": [{"name": "Byron", '
    '"born": "1788-01-22", "biography": "", "height": 1.74, "fields": ["poetry"]}]}'
)
# A grammar, and an answer that matches it.
EXAMPLES = {
    "any JSON object": (Grammar.json_object(), _ADA),
    "JSON schema": (Grammar.json_schema(_PERSON), _ADA),
    "regular expression": (
        Grammar.regex(r"\(\d{3}\) \d{3}-\d{4}, [A-Z][a-z]+ (Street|Road) [1-9][0-9]*( [a-z]{1,12}){0,8}"),
        "(555) 123-4567, Analytical Road 42 behind the old mill",
    ),
    "Lark grammar": (
        Grammar.lark(
            'start: sum\nsum: product (("+" | "-") product)*\nproduct: value (("*" | "/") value)*\n'
            'value: /[0-9]+/ | NAME | "(" sum ")" | NAME "(" sum ("," sum)* ")"\nNAME: /[a-z_]{1,30}/'
        ),
        "max(width*2,height)+(left-right)/sqrt(area_of_all_rooms*3)-17",
    ),
}


@dataclass(frozen=True)
class MaskCost:
    """Seconds: `compilation` of a grammar, and `steps`, of each token of walks along an answer."""

    compilation: float
    steps: list[float]


def measure(tokenizer: Tokenizer, rounds: int) -> dict[str, MaskCost]:
    """The cost of each of `EXAMPLES`: masks, what is forced, and going on by a token."""
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    tokens = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    found = {}
    for name, (grammar, text) in EXAMPLES.items():
        compiler.matcher(grammar)  # makes the vocabulary, and tries the grammar
        compilations, steps = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            matcher = compiler.matcher(grammar)
            compilations.append(time.perf_counter() - started)
            steps += _walk(matcher, text.encode(), tokens)
        found[name] = MaskCost(statistics.median(compilations), steps)
    return found


def _walk(matcher: GrammarMatcher, text: bytes, tokens: dict[bytes, int]) -> Iterator[float]:
    """Seconds of each step along a text, by the longest tokens that the masks allow."""
    while text:
        started = time.perf_counter()
        matcher.forced()
        (mask,) = matcher.masks()
        seconds = time.perf_counter() - started
        length, token = next(
            (length, token)
            for length in range(min(len(text), _LONGEST_TOKEN), 0, -1)
            if (token := tokens.get(text[:length])) is not None and allows(mask, token)
        )
        started = time.perf_counter()
        matcher.accept(token)
        yield seconds + time.perf_counter() - started
        text = text[length:]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m mlc_dsv3.bench.masks", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a checkpoint, or of its tokenizer alone")
    tokenizer = Tokenizer.load(parser.parse_args().folder)
    rows = []
    for name, cost in measure(tokenizer, _ROUNDS).items():
        steps = sorted(cost.steps)
        at = steps[len(steps) // 2], statistics.fmean(steps), steps[int(0.99 * len(steps))], steps[-1]
        rows.append((name, len(steps), *(f"{1e6 * seconds:.0f}" for seconds in at), f"{1e3 * cost.compilation:.2f}"))
    print(f"{tokenizer.vocab_size} tokens")
    print_table(rows, ("grammar", "steps", "median µs", "mean µs", "99 % µs", "most µs", "compilation ms"))


if __name__ == "__main__":
    main()
