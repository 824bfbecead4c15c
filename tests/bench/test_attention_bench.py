"""`bench --attention`: what it prints and refuses, and that its peer computes the same."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from marks import quick_first
from tiny_shape import tiny

from mlc_dsv3.cli.main import main
from mlc_dsv3.errors import UserError
from relax_model.config import parse_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("mlc_dsv3.bench.bandwidth.DEFAULT_BYTES", 1 << 22)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny()))
    return str(path)


def bench(config: str, *options: str) -> int:
    return main(["bench", "--model-config", config, "--random-weights", "--attention", *options])


@pytest.mark.parametrize(
    ("batches", "depths", "found"),
    quick_first([("3", "40", [(3, 40)]), ("1,3", "40,100", [(1, 40), (3, 40), (1, 100), (3, 100)])]),
)
@pytest.mark.full
def test_each_batch_is_measured_at_each_depth(
    batches: str, depths: str, found: list[tuple[int, int]], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(config, "--batch", batches, "--depth", depths, "--rounds", "2", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert [(each["batch"], each["depth"]) for each in results] == found
    fields = tiny()
    for each in results:
        assert each["heads"] == fields["num_attention_heads"]
        assert each["cache_dtype"] == "int8"
        tokens, rank = each["batch"] * each["depth"], fields["kv_lora_rank"]
        operations = 2 * tokens * each["heads"] * (2 * rank + fields["qk_rope_head_dim"])
        assert each["tflops"] == pytest.approx(operations / each["seconds"] / 1e12)
        assert each["gb_per_second"] == pytest.approx(each["share_of_limit"] * each["limit_gb_per_second"])
        assert each["share_of_tflops"] == pytest.approx(each["tflops"] / each["limit_tflops"])
        assert each["ratio"] is None


@pytest.mark.full
def test_the_table_has_the_limits(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(config, "--depth", "40", "--rounds", "1", "--cache-dtype", "float16") == 0
    shown = capsys.readouterr().out
    assert "float16" in shown
    assert "limits: " in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--depth is 0, where there is nothing to attend to"),
        (("--depth", "40", "--profile"), "--attention measures one kernel alone; leave --profile out"),
        (("--depth", "40", "--versus", "llama.cpp"), "beside --attention it is torch"),
        (("--depth", "1000000"), "the context window is"),
    ],
)
def test_what_it_cannot_do_is_refused(
    config: str, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(config, *options) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.strip().splitlines()) == 1


def test_torch_is_a_peer_of_attention_alone(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model-config", config, "--random-weights", "--versus", "torch"]) == 2
    assert "--versus torch is of attention alone; give --attention, too" in capsys.readouterr().err
    assert main(["bench", "--attention", "--depth", "40"]) == 2
    assert "--model-config FILE --random-weights" in capsys.readouterr().err


def test_without_torch_it_says_how_to_install_it(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlc_dsv3.bench.extras.find_spec", lambda name: None)
    assert bench(config, "--depth", "40", "--versus", "torch") == 2
    assert "--versus torch needs torch: pip install torch" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_peer_computes_the_same_products(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from mlc_dsv3.bench.torch_attention import by_one_call, by_products

    draw = np.random.default_rng(0)
    queries, latents = draw.standard_normal((2, 3, 12)), draw.standard_normal((2, 20, 12))
    scores = np.exp(0.3 * queries @ latents.transpose(0, 2, 1))
    expected = scores / scores.sum(axis=-1, keepdims=True) @ latents[..., :8]
    for way in (by_one_call, by_products):
        found = way(torch.tensor(queries), torch.tensor(latents), 8, 0.3)
        assert np.allclose(found.numpy(), expected)
    assert bench(config, "--depth", "40", "--rounds", "3", "--versus", "torch", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["ratio_min"] <= result["ratio"] <= result["ratio_max"]
    assert result["peer"].startswith("PyTorch ")


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_a_peer_without_the_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from mlc_dsv3.bench.torch_attention import TorchAttention

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch .* finds no GPU; install its build for CUDA, or leave --versus out"):
        TorchAttention(parse_config(tiny()), "cuda", 1, 1, 40)
