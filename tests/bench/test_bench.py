"""What bench counts and prints; how fast anything is, is no test's business."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mlc_dsv3.bench.bandwidth import BandwidthMeter
from mlc_dsv3.bench.weights import bytes_per_token, random_weights
from mlc_dsv3.cli.main import main
from relax_model.config import parse_config
from relax_model.layout import QUANTIZATIONS, layout_of
from relax_model.parameters import parameters

LITE9 = Path(__file__).parents[1] / "shapes" / "lite9.json"


def test_a_token_reads_the_dense_weights_its_experts_and_the_head() -> None:
    config = parse_config(json.loads(LITE9.read_text()))
    # 815 million active parameters, counted by hand from the shape, less the embedding, of which it reads one row.
    attention = 2048 * 3072 + 576 * 2048 + 4096 * 512 + 2048 * 2048
    moe = 8 * 3 * 2048 * 1408
    dense = 3 * 2048 * 10944
    values = 9 * attention + 8 * moe + dense + 32768 * 2048 + 2048
    router_and_norms = 4 * (8 * 64 * 2048 + 9 * (2 * 2048 + 512) + 2048)
    assert bytes_per_token(config, "q0f32", 4, depth=0) == 4 * values + router_and_norms
    assert bytes_per_token(config, "q4f16_1", 2, depth=0) == values * 18 // 32 + router_and_norms


def test_depth_adds_the_latents_of_every_layer() -> None:
    config = parse_config(json.loads(LITE9.read_text()))
    at_depth = bytes_per_token(config, "q4f16_1", 2, depth=4096)
    assert at_depth - bytes_per_token(config, "q4f16_1", 2, depth=0) == 4096 * 9 * 576 * 2


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_random_weights_are_all_there_aligned_and_finite(quantization: str) -> None:
    small = json.loads(LITE9.read_text()) | {"num_hidden_layers": 2, "n_routed_experts": 4, "hidden_size": 64}
    small |= {"intermediate_size": 96, "moe_intermediate_size": 32, "vocab_size": 100, "num_experts_per_tok": 2}
    config = parse_config(small)
    arrays = random_weights(config, quantization)
    layout = layout_of(quantization)
    expected = {name: spec for p in parameters(config) for name, spec in p.buffers(layout).items()}
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.shape == expected[name].shape
        assert array.nbytes == expected[name].nbytes
        assert array.ctypes.data % 64 == 0
        assert array.any()
        if array.dtype.kind == "f":
            assert np.isfinite(array).all()


def test_the_bandwidth_meter_keeps_its_best_pass() -> None:
    meter = BandwidthMeter(threads=2, nbytes=1 << 24)
    first = meter.measure(1)
    assert 0 < first <= meter.measure(3) == meter.best


def test_json_is_a_list_with_one_object_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["bench", "--prefill", "8", "--decode", "2", "--depth", "0,600", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(result["kind"], result["depth"]) for result in results] == [
        ("prefill", 0),
        ("decode", 0),
        ("prefill", 600),
        ("decode", 600),
    ]
    for result in results:
        assert result["tokens_per_second"] > 0
        assert result["limit_gb_per_second"] > 0
        assert (result["share_of_limit"] is None) == (result["kind"] == "prefill")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--quality", "some/model"], "--quality measures the demo model"),
        (["--decode", "0"], "--decode is 0"),
        (["--depth", "0,-1"], "--depth is '0,-1'"),
        (["--quantization", "q5"], "quantization 'q5' is unknown"),
        (["--depth", "5000"], "the context window is"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert shown.err.count("\n") == 1
