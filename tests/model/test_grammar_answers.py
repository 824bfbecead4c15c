"""The demo model's answers to grammars: valid at any temperature, and the same however they are computed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from json_schemas import QUESTION, answers_are_valid, asked
from marks import quick_first

from mlc_dsv3 import LLM, Grammar, SamplingParams


@pytest.fixture(scope="module")
def demo() -> Iterator[Callable[[str], LLM]]:
    """`demo(speculative)`: the demo model, loaded once for each."""
    loaded: dict[str, LLM] = {}

    def load(speculative: str) -> LLM:
        if speculative not in loaded:
            loaded[speculative] = LLM(device="cpu", speculative=speculative, context_window=2048)
        return loaded[speculative]

    yield load
    for llm in loaded.values():
        llm.close()


@pytest.mark.parametrize("examples", quick_first([6, 60]))
def test_answers_are_valid_by_any_schema_with_and_without_drafts(demo: Callable[[str], LLM], examples: int) -> None:
    answers_are_valid([demo("off"), demo("auto"), demo("3")], examples)


def test_neighbours_without_a_grammar_keep_their_answers(demo: Callable[[str], LLM]) -> None:
    llm = demo("auto")
    free = [SamplingParams(temperature=1.0, seed=seed, max_tokens=40, logprobs=2) for seed in range(3)]
    schema = {"type": "object", "properties": {"who": {"enum": ["Anna", "Ben"]}}, "required": ["who"]}
    alone = [llm.chat(QUESTION, params)[0] for params in free]
    params = [free[0], asked(schema, 1), free[1], asked(schema, 2), free[2]]
    together = llm.chat([QUESTION] * 5, params)
    for one, other in zip(alone, together[::2], strict=True):
        assert (one.token_ids, one.text, one.logprobs) == (other.token_ids, other.text, other.logprobs)


def test_a_regular_expression_and_a_lark_grammar(demo: Callable[[str], LLM]) -> None:
    grammars = [
        Grammar.regex(r"(Anna|Ben) has [0-9]{1,2} (red|green) balls?\."),
        Grammar.lark('start: "I know: " ("yes" | "no")'),
    ]
    params = [SamplingParams(temperature=1.0, seed=3, grammar=grammar) for grammar in grammars]
    first, second = demo("auto").chat([QUESTION] * 2, params)
    assert re.fullmatch(grammars[0].text, first.text)
    assert second.text in ("I know: yes", "I know: no")
    assert demo("auto").stats.forced > 0


def test_any_object_is_json(demo: Callable[[str], LLM]) -> None:
    params = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=150, grammar=Grammar.json_object()) for seed in range(8)
    ]
    answers = demo("auto").chat([QUESTION] * len(params), params)
    ended = [answer for answer in answers if answer.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(answer.text), dict) for answer in ended)
