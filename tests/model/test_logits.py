"""The compiled model's logits against transformers', for every family and every way to cut the work into steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from golden import checkpoints
from golden.driver import Driver, mixed_schedule
from golden.families import CHECKPOINTS
from marks import quick_first

# Largest error allowed, in standard deviations of the golden logits.
TOLERANCE = 1e-3

# The first checkpoint of each model type, and the others behind them.
FAMILIES = {checkpoint.config["model_type"]: name for name, checkpoint in reversed(CHECKPOINTS.items())}.values()
NAMES = [*FAMILIES, *(name for name in CHECKPOINTS if name not in FAMILIES)]
WITH_LONG = [name for name, checkpoint in CHECKPOINTS.items() if checkpoint.long]


@pytest.fixture(scope="module", params=quick_first(NAMES, len(FAMILIES), whole=True))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(logits - expected).max() / expected.std())


def test_whole_prefill(name: str, driver: Callable[..., Driver]) -> None:
    result = driver(name).prefill(checkpoints.prompt(name))
    assert error(result.logits, checkpoints.golden(name)["logits"]) <= TOLERANCE


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_by_chunks(name: str, chunk: int, driver: Callable[..., Driver]) -> None:
    result = driver(name).prefill(checkpoints.prompt(name), chunk)
    assert error(result.logits, checkpoints.golden(name)["logits"]) <= TOLERANCE


def test_decode_gives_the_greedy_tokens(name: str, driver: Callable[..., Driver]) -> None:
    prompt, greedy = checkpoints.prompt(name), checkpoints.golden(name)["greedy"]
    tokens = np.concatenate([prompt, greedy[:-1]])
    schedule = [[(0, 0, len(prompt))], *([(0, at, at + 1)] for at in range(len(prompt), len(tokens)))]
    logits = driver(name).run([tokens], schedule)[0].logits
    assert np.array_equal(logits[len(prompt) - 1 :].argmax(axis=1), greedy)


def test_four_sequences_of_different_length_in_one_batch(name: str, driver: Callable[..., Driver]) -> None:
    # A prefix's logits are the prompt's own, so that four lengths need no golden more.
    prompt, golden = checkpoints.prompt(name), checkpoints.golden(name)["logits"]
    lengths = [len(prompt), 41, 8, 1]
    schedule = mixed_schedule(lengths, [9, 1, 5, 1])
    results = driver(name).run([prompt[:length] for length in lengths], schedule)
    for result, length in zip(results, lengths, strict=True):
        assert np.abs(result.logits - golden[:length]).max() <= TOLERANCE * golden.std()


@pytest.mark.parametrize("name", quick_first(WITH_LONG))
@pytest.mark.parametrize("forms", quick_first(["as the engine chooses", "absorbed"]))
def test_3000_tokens_past_the_original_context(name: str, forms: str, driver: Callable[..., Driver]) -> None:
    chosen, prompt = driver(name), checkpoints.prompt(name, checkpoints.LONG_LENGTH)
    if forms == "absorbed":
        result = chosen.prefill(prompt)
    else:
        result, blocks = chosen.prefill_as_the_engine(prompt)
        assert blocks >= 3
    assert error(result.logits[-checkpoints.LONG_KEPT :], checkpoints.golden(name)["long_logits"]) <= TOLERANCE


def test_fp8_weights_give_the_logits_of_the_same_weights_dequantized(
    driver: Callable[..., Driver], compiled: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from mlc_dsv3.runtime.model import CompiledModel
    from mlc_dsv3.weights import Artifact, Checkpoint, convert

    name = "deepseek_v3_fp8"
    folder = tmp_path_factory.mktemp("dequantized")
    config = {field: value for field, value in CHECKPOINTS[name].config.items() if field != "quantization_config"}
    plain = Checkpoint.open(checkpoints.write_folder(folder / "plain", config, checkpoints.tensors(name)))
    artifact = Artifact.open(convert(plain, "q0f32", folder / "plain-MLC"))
    dequantized = Driver(CompiledModel.load(artifact, compiled(name).library))
    prompt = checkpoints.prompt(name)
    assert np.array_equal(driver(name).prefill(prompt).logits, dequantized.prefill(prompt).logits)
