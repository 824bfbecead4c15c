"""The model under the clock does what is timed: the steps, their rows, and the kernels in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlc_dsv3.bench.counting import step_bytes
from mlc_dsv3.bench.speed import SpeedBench, StepShape


@pytest.fixture(scope="module")
def bench(compiled: Callable[..., Any]) -> SpeedBench:
    model = compiled("deepseek_v3", "q4f16_1")
    made = SpeedBench(model.artifact, model.library, 1, 3, 40)
    made.fill()
    return made


@pytest.mark.full
def test_loading_and_the_first_token_are_timed(bench: SpeedBench) -> None:
    startup = bench.first_token()
    assert startup.load_seconds > 0
    assert startup.first_token_seconds > 0


@pytest.mark.full
def test_steps_take_turns_and_advance(bench: SpeedBench, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    step = bench._model.step
    monkeypatch.setattr(bench._model, "step", lambda batch: batches.append(batch) or step(batch))
    times = bench.steps(30, 2, [StepShape(3, 1), StepShape(1, 2)])
    assert [len(taken) for taken in times] == [2, 2]
    assert [batch.positions.tolist() for batch in batches] == [[30] * 3, [30, 31], [31] * 3, [31, 32]]
    assert [batch.sequences.tolist() for batch in batches] == [[0, 1, 2], [0, 0]] * 2
    assert [len(batch.wanted) for batch in batches] == [3, 2, 3, 2]
    pages = batches[0].page_table
    assert len(set(pages.flat)) == pages.size, "every sequence has pages of its own"


@pytest.mark.full
def test_a_filled_cache_in_codes_has_normal_scales(compiled: Callable[..., Any]) -> None:
    model = compiled("deepseek_v3", "q4f16_1", "int8")
    made = SpeedBench(model.artifact, model.library, 1, 1, 40)
    made.fill()
    for cache in made._model.caches:
        config = made._model.config
        groups = -(-config.kv_lora_rank // 32) + -(-config.qk_rope_head_dim // 32)
        bits = np.ascontiguousarray(np.from_dlpack(cache)[..., -2 * groups :]).view(np.uint16)
        assert (bits == np.float32(2.0**-20).view(np.uint32) >> 16).all()


def test_filled_caches_hold_finite_latents_everywhere(bench: SpeedBench) -> None:
    caches = [np.from_dlpack(cache) for cache in bench._model.caches]
    for cache in caches:
        assert np.isfinite(cache).all()
        assert cache.reshape(len(cache), -1).any(axis=1).all()
    assert bench.memory().cache_bytes == sum(cache.nbytes for cache in caches)


def test_the_profile_has_every_kernel_of_a_step(bench: SpeedBench) -> None:
    kernels, wider = bench.profile_steps(8, [StepShape(1, 2), StepShape(3, 1)])
    config = bench._model.config
    layers, moe = config.num_hidden_layers, sum(config.moe_layers[: config.num_hidden_layers])
    calls: Counter[str] = Counter()
    for kernel in kernels:
        calls[kernel.operator.rstrip("0123456789")] += kernel.calls
    assert calls["latent_append"] == layers
    assert calls["route"] == moe
    assert not any(name.startswith(("vm.", "shape_func")) for name in calls)
    assert sum(kernel.share for kernel in kernels) == pytest.approx(1)
    head = (2, config.vocab_size)
    assert any(kernel.shape == (3, config.vocab_size) for kernel in wider)
    assert any(kernel.shape == head for kernel in kernels), "the head's output tells it from other products"
    assert all(kernel.bytes > 0 for kernel in kernels)


def test_a_steps_kernels_move_what_the_step_has_to_read_and_little_more(bench: SpeedBench) -> None:
    """The weights and the cache, counted from the configuration, and beside them small activations."""
    (kernels,) = bench.profile_steps(30, [StepShape(1, 1)])
    config, metadata = bench._model.config, bench._model.metadata
    token = metadata.cache_width * np.dtype(metadata.cache_dtype).itemsize
    least = step_bytes(config, metadata.quantization, token, depth=31)
    moved = sum(kernel.bytes for kernel in kernels)
    assert least < moved < 1.25 * least


def test_watching_ends_with_the_profile(bench: SpeedBench) -> None:
    with bench._timer() as timer:
        bench.prefill(0, 8)
    assert timer._run.calls
    watched = dict(timer._run.calls)
    bench.prefill(0, 8)
    assert timer._run.calls == watched
