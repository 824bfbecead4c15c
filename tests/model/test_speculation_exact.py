"""Speculative decoding of the demo model: what comes out is what plain decoding gives, and drafts are good."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mlc_dsv3 import LLM, SamplingParams
from mlc_dsv3.demo.questions import held_out_questions

CONVERSATIONS = [list(question.messages) for question in held_out_questions(64)]
FEW = 12


@pytest.fixture(scope="module")
def demo() -> Iterator[Callable[..., LLM]]:
    """`demo(speculative, **options)`: the demo model, made once and loaded for each test."""
    opened: list[LLM] = []

    def load(speculative: str | int, **options: object) -> LLM:
        opened.append(LLM(speculative=speculative, device="cpu", **options))
        return opened[-1]

    yield load
    for model in opened:
        model.close()


GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.9, top_p=0.95, seed=7, max_tokens=40, ignore_eos=True)


def answers(model: LLM, params: SamplingParams, count: int = FEW) -> list[list[int]]:
    """The tokens of each of the first `count` conversations' answers."""
    return [completion.token_ids for completion in model.chat(CONVERSATIONS[:count], params)]


@pytest.fixture(scope="module")
def plain(demo: Callable[..., LLM]) -> LLM:
    """Decodes one conversation at a time, without drafts."""
    return demo("off", max_batch=1)


@pytest.fixture(scope="module")
def greedy(plain: LLM) -> list[list[int]]:
    """What comes out so."""
    return answers(plain, GREEDY, len(CONVERSATIONS))


def test_greedy_tokens_are_the_same(demo, greedy: list[list[int]]) -> None:
    assert sum(map(len, greedy)) == 40 * len(CONVERSATIONS)
    assert answers(demo(3, max_batch=32), GREEDY, len(CONVERSATIONS)) == greedy


@pytest.mark.parametrize("max_batch", [1, 8])
@pytest.mark.parametrize("speculative", [1, 4, "auto"])
def test_greedy_tokens_are_the_same_in_every_batch(speculative, max_batch: int, demo, greedy: list[list[int]]) -> None:
    assert answers(demo(speculative, max_batch=max_batch), GREEDY) == greedy[:FEW]


def test_drawn_tokens_are_the_same(demo, plain: LLM) -> None:
    assert answers(demo(2), DRAWN) == answers(plain, DRAWN)


def test_most_first_drafts_are_right_on_chats_that_training_never_saw(demo) -> None:
    model = demo(2)
    model.chat(CONVERSATIONS, SamplingParams(temperature=0, max_tokens=64))
    stats = model.stats
    assert stats.accepted[0] >= 0.75 * stats.drafted[0]
    assert stats.decode_tokens > 1.5 * stats.decode_steps
