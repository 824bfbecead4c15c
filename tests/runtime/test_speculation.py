"""Speculative decoding on the fake model: the same tokens in fewer steps, whatever a request asks for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fake_model import FakeMetadata, FakeModel, FakeStream, make_engine, run, text_of, tokens_of

from mlc_dsv3 import errors
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.batch import DraftBatch, StepOutput
from mlc_dsv3.runtime.engine import Engine
from mlc_dsv3.runtime.sampler import _candidates
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.speculation import MOST_DRAFTS, Auto, Fixed, speculation

PROMPT = [3, 141, 59, 26, 53]
KINDS = {
    "greedy": SamplingParams(temperature=0, max_tokens=40),
    "drawn": SamplingParams(temperature=0.8, top_p=0.9, top_k=20, seed=11, max_tokens=40),
    "flat": SamplingParams(temperature=1.5, seed=12, max_tokens=40),
    "penalties": SamplingParams(temperature=0.7, seed=5, max_tokens=40, repetition_penalty=1.3, frequency_penalty=0.5),
    "bias": SamplingParams(temperature=0, max_tokens=40, logit_bias={7: 4.0}),
    "logprobs": SamplingParams(temperature=0.5, seed=3, max_tokens=40, logprobs=3),
    "stop token": SamplingParams(temperature=0.9, seed=8, max_tokens=60, stop_token_ids=range(0, 250, 9)),
    "odd length": SamplingParams(temperature=0, max_tokens=7),
    "one token": SamplingParams(temperature=0, max_tokens=1),
}


def engine_with(drafts: int | None, model: FakeModel | None = None, **options) -> Engine:
    return make_engine(model, speculation=Fixed(drafts) if drafts else None, **options)


def everything(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list:
    """What each request got: tokens, text, reason and logprobs."""
    requests = [engine.submit(prompt, params) for prompt in prompts]
    updates = run(engine)
    return [
        (
            tokens_of(updates[request]),
            text_of(updates[request]),
            updates[request][-1].finish_reason,
            [each for update in updates[request] for each in update.logprobs or []],
        )
        for request in requests
    ]


@pytest.mark.parametrize("drafts", range(1, MOST_DRAFTS + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_request_gets_what_it_would_get_without(kind: str, drafts: int) -> None:
    prompts = [PROMPT, PROMPT[:1], [*PROMPT, *range(30)], [9] * 17]
    with_drafts = everything(engine_with(drafts, detokenizer=FakeStream), prompts, KINDS[kind])
    assert with_drafts == everything(engine_with(None, detokenizer=FakeStream), prompts, KINDS[kind])


def test_where_the_layers_logits_are_not_finite_nothing_is_drafted_and_no_token_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflows(FakeModel):
        """The MTP layer overflows in one of the sequences, at the fifth draft."""

        def draft(self, batch: DraftBatch) -> StepOutput:
            output = super().draft(batch)
            if len(self.drafts) >= 5:
                output.logits[-1] = np.nan
            return output

    monkeypatch.setattr(errors, "_said", set())
    prompts, params = [PROMPT, PROMPT[:1], [9] * 17], SamplingParams(temperature=0, max_tokens=40)
    engine = engine_with(2, Overflows(), detokenizer=FakeStream)
    got = everything(engine, prompts, params)
    assert got == everything(engine_with(None, detokenizer=FakeStream), prompts, params)
    assert got == everything(engine, prompts, params)
    said = capsys.readouterr().err
    assert said.startswith("mlc_dsv3: warning: the MTP layer's logits are not finite in some places")
    assert said.count("\n") == 1
    assert engine.stats.accepted[0] > 20, "the others go on drafting"


@pytest.mark.parametrize("drafts", range(1, MOST_DRAFTS + 1))
def test_right_drafts_save_steps_and_are_counted(drafts: int) -> None:
    model = FakeModel()
    engine = engine_with(drafts, model)
    ((tokens, *_),) = everything(engine, [PROMPT], SamplingParams(temperature=0, max_tokens=60))
    stats = engine.stats
    assert stats.decode_tokens == len(tokens) - 1
    assert stats.decode_steps == len(model.steps) - 1
    assert stats.decode_steps + sum(stats.accepted) == stats.decode_tokens
    assert 0 < stats.accepted[0] < stats.drafted[0], "of the fake's drafts three in four are right"
    assert stats.drafted[drafts:] == [0] * (MOST_DRAFTS - drafts)
    assert stats.drafted[1:drafts] == stats.accepted[: drafts - 1], "a draft counts where those before it were right"


def test_a_stop_string_ends_inside_a_draft() -> None:
    class Repeats(FakeModel):
        """Counts up from any token; its drafts are right."""

        def _logits(self, history: np.ndarray) -> np.ndarray:
            return np.eye(256, dtype=np.float32)[(history[-1, 0] + 1) % 256]

        def draft(self, batch):
            output = super().draft(batch)
            output.logits_tensor = np.stack([self._logits(token) for token in batch.tokens[:, None, None]])
            return output

    params = SamplingParams(temperature=0, max_tokens=40, stop=["gh"])
    for drafts in (None, 1, 3, 4):
        engine = engine_with(drafts, Repeats(), detokenizer=FakeStream)
        ((tokens, text, reason, _),) = everything(engine, [[97]], params)
        assert (text, reason) == ("bcdef", "stop")
        assert tokens == list(b"bcdefgh")
        engine.clear_cache()
        assert engine.free_pages == 64


@pytest.mark.parametrize("drafts", [1, 4])
def test_a_full_context_ends_as_it_would_without(drafts: int) -> None:
    prompts = [[5] * 80, [6] * 93, [7] * 95]
    params = SamplingParams(temperature=0)
    assert everything(engine_with(drafts), prompts, params) == everything(engine_with(None), prompts, params)


def test_drafts_take_no_pages_from_others() -> None:
    """In the smallest cache that holds a window, with more requests than fit."""
    prompts = [[seed] * 9 for seed in range(6)]
    params = SamplingParams(temperature=0, max_tokens=50)
    plain, drafting = (engine_with(drafts, num_pages=24) for drafts in (None, 4))
    assert everything(drafting, prompts, params) == everything(plain, prompts, params)
    drafting.clear_cache()
    assert drafting.free_pages == 24


def test_rows_that_would_lose_their_bits_are_not_verified() -> None:
    model = FakeModel(FakeMetadata(exact_rows=8))
    engine = engine_with(4, model, max_batch=5)
    for seed in range(5):
        engine.submit([seed, 1], SamplingParams(temperature=0, max_tokens=20))
    run(engine)
    decoding = [batch for batch in model.steps[1:] if len(set(batch.sequences.tolist())) == 5]
    assert decoding
    assert max(len(batch.tokens) for batch in decoding) <= 8


def test_drawn_tokens_have_the_models_distribution() -> None:
    """Pearson's chi-square of the third token, which is a draft or behind one, over 4,000 draws."""
    model, number = FakeModel(vocab_size=6), 4000
    weights: Counter[int] = Counter()
    for first in range(6):
        for second in range(6):
            chance = 1.0
            for tokens, token in (([2], first), ([2, first], second)):
                chance *= _probabilities(model, tokens)[token]
            for third, share in enumerate(_probabilities(model, [2, first, second])):
                weights[third] += chance * share
    engine = engine_with(2, model, num_pages=600, max_batch=8)
    requests = [engine.submit([2], SamplingParams(temperature=1.0, seed=seed, max_tokens=3)) for seed in range(number)]
    updates = run(engine)
    counts = Counter(tokens_of(updates[request])[2] for request in requests)
    assert sum(engine.stats.accepted) > number / 2
    statistic = sum((counts[token] - number * share) ** 2 / (number * share) for token, share in weights.items())
    assert statistic < 20.5, "one in a thousand with five degrees of freedom"


def _probabilities(model: FakeModel, tokens: list[int]) -> np.ndarray:
    logits = model.reference(tokens, 1)
    _, shares = _candidates(logits - logits.max(), SamplingParams())
    return shares / shares.sum()


def test_trials_of_what_loses_cost_a_hundredth_of_the_time() -> None:
    auto, chosen = Auto(), []
    for _ in range(3000):
        drafts = auto.drafts(1)
        chosen.append(drafts)
        auto.accepted(drafts, 0)
        auto.took(1, drafts, 1.0 + 0.6 * drafts)
    # A step with a draft gives as much and takes 1.6 times as long. The first trials are when that is still learnt.
    assert any(chosen[300:])
    assert 0.6 * sum(chosen[300:]) < 0.012 * len(chosen[300:])


def test_speculation_by_its_name() -> None:
    assert speculation("off", has_mtp=True) is None
    assert speculation("auto", has_mtp=False) is None
    assert isinstance(speculation("auto", has_mtp=True), Auto)
    assert speculation("3", has_mtp=True).drafts(1) == speculation(3, has_mtp=True).drafts(1) == 3
    for wanted in (0, 5, "many", True, -1, 1.5):
        with pytest.raises(UserError, match="it is auto, off, or 1 to 4 drafted tokens"):
            speculation(wanted, has_mtp=True)
    with pytest.raises(UserError, match="no multi-token prediction layer"):
        speculation(2, has_mtp=False)


def simulate(chooser: Auto, steps: int, chance: float, seconds: list[float], seed: int = 0) -> tuple[float, list[int]]:
    """Tokens a second of so many steps, and the numbers of drafts: each is right by `chance`, a step takes `seconds`
    by the number, give or take a tenth."""
    random, taken, tokens, numbers, drafts = np.random.default_rng(seed), 0.0, 0, [], 0
    for _ in range(steps):
        following = chooser.drafts(1)
        right = next((i for i in range(drafts) if random.random() >= chance), drafts)
        took = seconds[drafts] * random.uniform(0.9, 1.1)
        if drafts:
            chooser.accepted(drafts, right)
        if following == drafts:
            chooser.took(1, drafts, took)
        taken, tokens, drafts = taken + took, tokens + right + 1, following
        numbers.append(drafts)
    return tokens / taken, numbers


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("chance", "seconds"),
    [
        (0.85, [1, 1.2, 1.4, 1.6, 1.8]),
        (0.85, [1, 1.5, 2.0, 2.5, 3.0]),
        (0.6, [1, 1.2, 1.5, 1.9, 2.4]),
        (0.02, [1, 1.4, 1.8, 2.2, 2.6]),
        (0.95, [1, 1.05, 1.1, 1.15, 1.2]),
        (0.5, [1, 1.6, 2.2, 2.8, 3.4]),
    ],
)
def test_what_pays_is_found(chance: float, seconds: list[float], seed: int) -> None:
    speed, _ = simulate(Auto(), 2000, chance, seconds, seed)
    tokens = np.cumsum(chance ** np.arange(MOST_DRAFTS + 1))
    fixed = tokens / seconds
    assert speed >= 0.95 * max(fixed)
    assert speed >= 0.97 * fixed[0]


def test_it_turns_itself_off_and_tries_again() -> None:
    chooser = Auto()
    _, numbers = simulate(chooser, 1000, 0.02, [1, 1.4, 1.8, 2.2, 2.6])
    assert numbers.count(0) > 900
    assert any(numbers[200:])
    _, numbers = simulate(chooser, 3000, 0.95, [1, 1.1, 1.2, 1.3, 1.4])
    assert np.mean(numbers[-500:]) > 2, "text that is easier to draft is noticed"
