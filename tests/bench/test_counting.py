"""Bytes and operations of a step, against counts made by hand."""

from __future__ import annotations

import json

import pytest
from tiny_shape import LITE9, tiny

from mlc_dsv3.bench.counting import chunks, prefill_bytes, prefill_flops, step_bytes, step_flops
from relax_model.config import parse_config

ATTENTION = 2048 * 3072 + 576 * 2048 + 4096 * 512 + 2048 * 2048
EXPERT = 3 * 2048 * 1408
DENSE = 9 * ATTENTION + 8 * 2 * EXPERT + 3 * 2048 * 10944 + 32768 * 2048
EXACT = 4 * (8 * 64 * 2048 + 9 * (2 * 2048 + 512) + 2048)


@pytest.fixture
def lite9():
    return parse_config(json.loads(LITE9.read_text()))


def test_a_token_reads_the_dense_weights_its_experts_and_the_head(lite9) -> None:
    values = DENSE + 8 * 6 * EXPERT + 2048  # of the embedding one row
    assert step_bytes(lite9, "q0f32", 4 * 576, depth=0) == 4 * values + EXACT
    assert step_bytes(lite9, "q4f16_1", 2 * 576, depth=0) == values * 18 // 32 + EXACT


def test_depth_adds_the_latents_of_every_layer_and_sequence(lite9) -> None:
    latents = 4096 * 9 * 576 * 2
    for sequences in (1, 3):
        shallow, deep = (step_bytes(lite9, "q4f16_1", 2 * 576, depth=depth, sequences=sequences) for depth in (0, 4096))
        assert deep - shallow == sequences * latents


def test_rows_of_one_sequence_share_its_latents(lite9) -> None:
    one, two = (step_bytes(lite9, "q4f16_1", 2 * 576, depth=4096, rows=rows) for rows in (1, 2))
    # Two tokens touch 64 · (1 − (58/64)²) = 11.4375 of 64 experts, and a second row of the embedding.
    assert two - one == (8 * (11.4375 - 6) * EXPERT + 2048) * 18 // 32


def test_a_batch_reads_dense_weights_once_and_at_most_every_expert(lite9) -> None:
    many = step_bytes(lite9, "q0f32", 4 * 576, depth=0, sequences=512)
    every = 4 * (DENSE + 8 * 64 * EXPERT + 512 * 2048) + EXACT
    assert 0.999 * every < many <= every


def test_drafting_layers_are_not_read_by_plain_steps() -> None:
    without = step_bytes(parse_config(tiny()), "q4f16_1", 2 * 576, depth=10)
    assert step_bytes(parse_config(tiny(num_nextn_predict_layers=1)), "q4f16_1", 2 * 576, depth=10) == without


def test_a_prompt_is_cut_at_multiples_of_the_block() -> None:
    assert chunks(0, 512, 512) == [(0, 512)]
    assert chunks(100, 1000, 512) == [(100, 412), (512, 512), (1024, 76)]


def test_a_prompt_reads_the_weights_once_a_block(lite9) -> None:
    first, second = (step_bytes(lite9, "q4f16_1", 2 * 576, depth=depth, rows=512) for depth in (0, 512))
    assert prefill_bytes(lite9, "q4f16_1", 2 * 576, depth=0, tokens=1024, block=512) == first + second


def test_a_token_takes_two_operations_a_weight_and_attention_over_its_depth(lite9) -> None:
    router = 8 * 64 * 2048
    weights = DENSE + 8 * 6 * EXPERT + router
    assert step_flops(lite9, depth=0) == pytest.approx(2 * weights, rel=1e-3)
    more = step_flops(lite9, depth=4096) - step_flops(lite9, depth=0)
    assert more == pytest.approx(2 * 9 * 16 * 4096 * (576 + 512), rel=1e-2)


def test_a_long_prompt_takes_the_expanded_form_of_attention(lite9) -> None:
    # Keys and values of every head are made of each latent once; then scores and sums are over a head's own width.
    kv_b, pairs = 16 * 256 * 512, 16 * (192 + 128) * 512 * 513 / 2
    head, rest = 32768 * 2048, DENSE + 8 * 6 * EXPERT + 8 * 64 * 2048 - 32768 * 2048 - 9 * kv_b
    products = 512 * rest + head + 9 * (512 * kv_b + pairs)
    assert prefill_flops(lite9, depth=0, tokens=512, block=512) == pytest.approx(2 * products, rel=1e-9)
