"""Figures from times: rates, shares and ratios, with times made up."""

from __future__ import annotations

import pytest
from tiny_shape import tiny

from mlc_dsv3.bench.counting import prefill_bytes, step_bytes
from mlc_dsv3.bench.measurement import Scale, Timing
from mlc_dsv3.bench.profile import KernelTime
from mlc_dsv3.bench.speed import StepShape
from relax_model.config import parse_config

CONFIG = parse_config(tiny())


TOKEN = 2 * CONFIG.latent_width  # bytes in a float16 cache


def scale(peer: str | None = None) -> Scale:
    return Scale(CONFIG, "q4f16_1", "float16", 512, limit_gb_per_second=10.0, limit_gflops_per_second=200.0, peer=peer)


def kernel(operator: str, milliseconds: float) -> KernelTime:
    return KernelTime(operator, (1, 8), 1, milliseconds, 0.5, 0)


def test_a_decode_steps_figures_come_from_its_median_and_its_middle_depth() -> None:
    [found] = scale().measurements([Timing("decode", 100, StepShape(1, 1), [[0.01, 0.02, 0.5]])])
    nbytes = step_bytes(CONFIG, "q4f16_1", TOKEN, depth=101)
    assert (found.tokens, found.seconds, found.tokens_per_second) == (3, 0.02, 50)
    assert found.bytes_per_token == nbytes
    assert found.gb_per_second == pytest.approx(nbytes * 50 / 1e9)
    assert found.share_of_limit == pytest.approx(found.gb_per_second / 10)
    assert found.share_of_arithmetic == pytest.approx(found.gflops_per_second / 200)
    assert found.time_ratio is None


def test_a_batchs_rate_counts_every_sequence_and_its_bytes_are_shared_out() -> None:
    [found] = scale().measurements([Timing("decode", 0, StepShape(4, 1), [[0.1, 0.1]])])
    assert (found.batch, found.tokens, found.tokens_per_second) == (4, 8, 40)
    assert found.bytes_per_token == round(step_bytes(CONFIG, "q4f16_1", TOKEN, depth=1, sequences=4) / 4)


def test_a_prompts_rate_is_of_its_tokens() -> None:
    [found] = scale().measurements([Timing("prefill", 64, StepShape(1, 128), [[2.0], [1.0], [4.0]])])
    assert (found.tokens, found.tokens_per_second) == (128, 64)
    assert found.bytes_per_token == round(
        prefill_bytes(CONFIG, "q4f16_1", TOKEN, depth=64, tokens=128, block=512) / 128
    )


def test_a_verifying_step_is_told_as_a_ratio_to_a_decoding_one() -> None:
    plain = [kernel("linear", 3.0), kernel("expert_linear", 5.0)]
    wider = [kernel("linear", 3.3), kernel("expert_linear1", 9.0)]
    decode = Timing("decode", 0, StepShape(1, 1), [[0.008]], profile=plain)
    verify = Timing("verify", 0, StepShape(1, 2), [[0.012]], profile=wider)
    _, found = scale().measurements([decode, verify])
    assert found.time_ratio == pytest.approx(1.5)
    assert found.dense_time_ratio == pytest.approx(1.1)
    assert found.tokens_per_second == pytest.approx(2 / 0.012)


def test_shared_experts_count_as_dense() -> None:
    assert kernel("expert_linear3", 1).is_expert
    assert not kernel("shared_expert_linear", 1).is_expert


def test_a_peer_is_compared_round_by_round() -> None:
    ours, theirs = [[0.01, 0.01], [0.02], [0.01]], [[0.03], [0.02], [0.02, 0.02]]
    [found] = scale("peer").measurements([Timing("decode", 0, StepShape(1, 1), ours, theirs)])
    assert found.versus is not None
    assert found.versus.engine == "peer"
    assert found.versus.tokens_per_second == pytest.approx(50)
    assert (found.versus.ratio_min, found.versus.ratio, found.versus.ratio_max) == pytest.approx((1, 2, 3))
    assert found.versus.rounds == 3
