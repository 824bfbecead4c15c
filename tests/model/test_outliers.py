"""Outliers that are undone elsewhere cost the demo nothing: of whole keys by the kernels, of channels by conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden import checkpoints
from marks import quick_first
from outliers import RECIPES, mean_divergence, read, write_outliers

from mlc_dsv3 import LLM
from mlc_dsv3.compiler import compile_model
from mlc_dsv3.demo import checkpoint_path
from mlc_dsv3.weights import Artifact, Checkpoint, convert

QUANTIZATION = "q4f16_1+vnni16"  # the CPU's default, with an 8-bit cache
QUESTIONS = 20


def _arrays(artifact: Path) -> dict[str, np.ndarray]:
    return Artifact.open(artifact).map_parameters()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[np.ndarray]]:
    """`demo(recipe, factor, balance)`: what the demo with these outliers thinks of the first questions."""
    folder = tmp_path_factory.mktemp("outliers")
    compile_model(Checkpoint.open(checkpoint_path()).model_config, QUANTIZATION, "cpu", folder / "demo.so")

    def think(recipe: str, factor: float, balance: bool) -> list[np.ndarray]:
        source = write_outliers(checkpoint_path(), folder / f"{recipe}-{factor}", recipe, factor)
        artifact = convert(
            Checkpoint.open(source), QUANTIZATION, folder / f"{recipe}-{factor}-{balance}", balance=balance
        )
        return read(artifact, folder / "demo.so", "cpu", QUESTIONS)

    return think


@pytest.fixture(scope="module")
def plain(demo: Callable[..., list[np.ndarray]]) -> list[np.ndarray]:
    return demo("keys", 1, balance=True)


@pytest.mark.parametrize("factor", [4096, 256])
@pytest.mark.full
def test_integer_attention_keeps_latents_beside_rotary_keys_of_any_size(demo, plain, factor: int) -> None:
    assert mean_divergence(plain, demo("keys", factor, balance=False)) < 0.005


@pytest.mark.parametrize("recipe", ["rotary_pair", "latent_channel", "normed_channel"])
@pytest.mark.full
def test_outliers_of_channels_are_balanced_away(demo, plain, recipe: str) -> None:
    assert mean_divergence(plain, demo(recipe, 256, balance=False)) > 0.1
    assert mean_divergence(plain, demo(recipe, 256, balance=True)) < 0.005


# Rotary pairs that are neighbours; those that lie in halves, of queries without q_a_proj.
@pytest.mark.parametrize("name", quick_first(["deepseek_v3", "deepseek_v3_half_rope"]))
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_balanced_outliers_leave_float32_logits_their_bits(
    name: str, recipe: str, compiled: Callable, tmp_path: Path
) -> None:
    plain = compiled(name)
    source = write_outliers(plain.checkpoint, tmp_path / "outliers", recipe, 4096)
    balanced = convert(Checkpoint.open(source), "q0f32", tmp_path / "balanced")
    as_it_is = convert(Checkpoint.open(source), "q0f32", tmp_path / "as it is", balance=False)
    before = _arrays(as_it_is)
    moved = {name for name, array in _arrays(balanced).items() if not np.array_equal(array, before[name])}
    query = "q_b_proj" if name == "deepseek_v3" else "q_proj"
    keys = {f"self_attn.{query}", "self_attn.kv_a_proj_with_mqa"}
    latents = {"self_attn.kv_b_proj", "self_attn.kv_a_layernorm"}
    inputs = {"self_attn.q_a_proj" if name == "deepseek_v3" else "self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"}
    mlp = {"mlp.gate_up_proj", "mlp.gate", "mlp.experts.gate_up_proj", "mlp.shared_experts.gate_up_proj"}
    expected = {
        "keys": keys,
        "rotary_pair": keys,
        "latent_channel": latents,
        "normed_channel": {"input_layernorm", "post_attention_layernorm", *inputs, *mlp},
    }
    assert {name.split(".", 3)[3].removesuffix(".weight") for name in moved} == expected[recipe]
    prompt = checkpoints.prompt(name)[:20].tolist()
    with LLM(balanced, model_lib=plain.library) as one, LLM(as_it_is, model_lib=plain.library) as other:
        np.testing.assert_array_equal(one.logits(prompt), other.logits(prompt))


@pytest.mark.parametrize("quantization", ["q0f32", "q4f16_1"])
def test_a_checkpoint_without_outliers_is_stored_as_it_is(
    quantization: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = (
        convert(Checkpoint.open(checkpoint_path()), quantization, tmp_path / str(balance), balance=balance)
        for balance in (True, False)
    )
    assert "balanced" not in capsys.readouterr().err
    found = _arrays(other)
    for name, array in _arrays(one).items():
        assert np.array_equal(array.view(np.uint8), found[name].view(np.uint8)), name
