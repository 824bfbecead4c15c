"""The compiled demo answers held-out questions, and four bits cost it little: a sample of `bench --quality`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlc_dsv3.bench.quality import measure_quality


@pytest.fixture(scope="module")
def qualities():
    found = measure_quality(["q0f32", "q4f16_1"], count=100)
    return {quality.quantization: quality for quality in found}


@pytest.mark.full
def test_most_held_out_questions_are_answered_right(qualities) -> None:
    assert qualities["q0f32"].accuracy >= 0.8
    assert qualities["q4f16_1"].accuracy >= 0.75


@pytest.mark.full
def test_that_is_far_above_always_giving_the_commonest_answer(qualities) -> None:
    quality = qualities["q0f32"]
    commonest = quality.commonest_by_kind
    assert sum(quality.accuracy_by_kind.values()) > 2 * sum(commonest.values())


def test_four_bits_diverge_a_little_and_the_reference_not_at_all(qualities) -> None:
    assert qualities["q0f32"].divergence == 0
    assert 0 < qualities["q4f16_1"].divergence < 0.2


def test_four_bits_are_the_smaller_artifact(qualities) -> None:
    assert qualities["q4f16_1"].size_bytes < qualities["q0f32"].size_bytes / 4


def test_the_embedded_checkpoint_is_the_packages_own() -> None:
    from mlc_dsv3 import demo

    assert demo.checkpoint_path().parent == Path(demo.__file__).parent
