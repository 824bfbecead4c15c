"""Random weights are an artifact like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_shape import tiny

from mlc_dsv3.bench.weights import random_artifact
from mlc_dsv3.quantization import dequantize
from relax_model.layout import QUANTIZATIONS, layout_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_artifact_is_whole_aligned_and_finite(quantization: str) -> None:
    artifact = random_artifact(tiny(), quantization)
    artifact.verify()
    assert artifact.quantization == quantization
    for array in artifact.map_parameters().values():
        assert array.ctypes.data % 64 == 0
        assert array.any()
        if array.dtype.kind == "f":
            assert np.isfinite(array).all()


@pytest.mark.parametrize("quantization", ["q4f16_1", "q8f16_1"])
def test_values_have_a_trained_models_magnitude_and_both_signs(quantization: str) -> None:
    stored = random_artifact(tiny(), quantization).map_parameters()
    prefix = "model.layers.0.mlp.gate_up_proj."
    values = dequantize(layout_of(quantization), {name: stored[prefix + name] for name in ("q_weight", "q_scale")}, 64)
    assert abs(values.mean()) < 0.1 * values.std()
    assert values.std() == pytest.approx(64**-0.5, rel=0.1)


def test_it_is_written_once_and_again_for_another_shape(cache: Path) -> None:
    first = random_artifact(tiny(), "q4f16_1")
    written = first.path.stat().st_mtime_ns
    assert random_artifact(tiny(), "q4f16_1").path == first.path
    assert first.path.stat().st_mtime_ns == written
    assert random_artifact(tiny(v_head_dim=64), "q4f16_1").path != first.path
    assert not list(cache.rglob(".partial"))


def test_an_array_larger_than_the_random_block_is_filled_to_its_end() -> None:
    artifact = random_artifact(tiny(vocab_size=200_000), "q0f32")
    embedding = artifact.map_parameters()["model.embed_tokens.weight"]
    assert embedding.nbytes > 32 << 20, "more than one piece, and pieces of more than one block"
    assert embedding.any(axis=1).all()
