"""What `mlc_dsv3 bench` prints and refuses; how fast anything is, is no test's business."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_shape import tiny

from mlc_dsv3.bench.bandwidth import BandwidthMeter
from mlc_dsv3.cli.main import main

KEYS = {
    *("kind", "depth", "batch", "rows", "tokens", "tokens_per_second", "bytes_per_token", "gb_per_second"),
    *(
        "limit_gb_per_second",
        "share_of_limit",
        "limit_gflops_per_second",
        "share_of_arithmetic",
        "time_ratio",
        "profile",
        "versus",
    ),
    *("model", "quantization", "device", "level", "threads", "prefill_tokens", "decode_steps", "random_weights"),
    *("compile_seconds", "load_seconds", "first_token_seconds", "cold_load_seconds", "cold_first_token_seconds"),
    *("weight_bytes", "cache_bytes", "peak_rss_anon_bytes", "other_anon_bytes", "host_seconds_per_launch"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny config.json; what is made of it is kept between the tests of this file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    # A gigabyte takes a while; that it is the default is a test of its own.
    monkeypatch.setattr("mlc_dsv3.bench.bandwidth.DEFAULT_BYTES", 1 << 22)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny()))
    return path


def test_the_bandwidth_meter_keeps_its_best_pass() -> None:
    meter = BandwidthMeter(threads=2, nbytes=1 << 24)
    first = meter.measure(1)
    assert 0 < first <= meter.measure(3) == meter.best


def test_the_bandwidth_is_measured_over_a_gibibyte() -> None:
    from mlc_dsv3.bench import bandwidth

    assert bandwidth.DEFAULT_BYTES >= 1 << 30


@pytest.mark.full
def test_json_is_a_list_with_one_object_a_measurement(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prefill", "8", "--decode", "2", "--depth", "0,100", "--batch", "1,3", "--verify", "2", "--profile"]
    assert main(["bench", "--model-config", str(config), "--random-weights", *options, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    expected = [("prefill", 1, 8, 8), ("decode", 1, 1, 2), ("decode", 3, 1, 6), ("verify", 1, 2, 4)]
    found = [(result["kind"], result["batch"], result["rows"], result["tokens"]) for result in results]
    assert found == expected * 2
    assert [result["depth"] for result in results] == [0] * 4 + [100] * 4
    for result in results:
        assert result.keys() >= KEYS
        assert result["tokens_per_second"] > 0
        assert 0 < result["gb_per_second"] == pytest.approx(result["share_of_limit"] * result["limit_gb_per_second"])
        assert result["limit_gb_per_second"] == results[0]["limit_gb_per_second"]
        arithmetic = result["share_of_arithmetic"] * result["limit_gflops_per_second"]
        assert 0 < result["gflops_per_second"] == pytest.approx(arithmetic)
        assert (result["time_ratio"] is not None) == (result["kind"] == "verify")
        assert (result["dense_time_ratio"] is not None) == (result["kind"] == "verify")
        assert result["compile_seconds"] > 0
        assert (result["cold_load_seconds"] is None) == (result["cold_note"] is not None)
        assert any(kernel["operator"].startswith("quantized_linear") for kernel in result["profile"])
        assert result["random_weights"]
        assert result["weight_bytes"] > 0


@pytest.mark.full
def test_tables_name_what_they_show(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prefill", "8", "--decode", "2", "--profile"]
    assert main(["bench", "--model-config", str(config), "--random-weights", *options]) == 0
    shown = capsys.readouterr().out
    for text in (
        "prefill 8",
        "verify 2",
        "compilation",
        "then first token",
        "peak RssAnon",
        "by kernel",
        "step ratio",
    ):
        assert text in shown


@pytest.mark.full
def test_the_demo_is_measured_where_no_model_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("mlc_dsv3.bench.bandwidth.DEFAULT_BYTES", 1 << 22)
    assert main(["bench", "--prefill", "8", "--decode", "2", "--verify", "0", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["kind"] for result in results] == ["prefill", "decode"]
    assert {result["model"] for result in results} == {"demo"}
    assert results[0]["compile_seconds"] > 0
    assert not results[0]["random_weights"]


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra plot")
def test_plot_draws_a_picture(config: Path, tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    options = ["--prefill", "8", "--decode", "2", "--depth", "0,9", "--plot", str(picture), "--json"]
    assert main(["bench", "--model-config", str(config), "--random-weights", *options]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(find_spec("llama_cpp") is None or find_spec("gguf") is None, reason="needs the extra versus")
def test_versus_compares_every_measurement(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prefill", "8", "--decode", "2", "--versus", "llama.cpp", "--rounds", "2", "--json"]
    assert main(["bench", "--model-config", str(config), "--random-weights", *options]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [result["kind"] for result in results] == ["prefill", "decode", "verify"]
    for result in results:
        compared = result["versus"]
        assert compared["engine"].startswith("llama.cpp")
        assert 0 < compared["ratio_min"] <= compared["ratio"] <= compared["ratio_max"]
        assert compared["rounds"] == 2
        assert result["peer_quantization"] == "Q4_0"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--quality", "some/model"], "--quality measures the demo model"),
        (["--quality", "--plot", "speed.png"], "leave one of them out"),
        (["--model-config", "config.json"], "--model-config and --random-weights go together"),
        (["--decode", "0"], "--decode is 0"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--questions", "0"], "--questions is 0"),
        (["--depth", "0,-1"], "--depth is 0,-1"),
        (["--depth", "0,x"], "--depth is '0,x'"),
        (["--batch", "0"], "--batch is 0"),
        (["--batch", "9999"], "--batch is 9999"),
        (["--verify", "1"], "--verify is 1"),
        (["--quantization", "q5"], "quantization 'q5' is unknown"),
        (["--depth", "5000"], "the context window is"),
        (["--prefill", "2049"], "make 2049; the context window is 2048"),
        (["--prefill", "20", "--context-window", "16"], "make 65; the context window is 16"),
        (["--context-window", "0"], "--context-window is 0; the model takes 2 to 2048 tokens"),
        (["--quality", "--context-window", "16"], "leave --context-window out"),
        (["--speculative", "1", "--context-window", "16"], "leave --context-window out"),
        (["--threads", "0"], "--threads is 0"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--versus", "abacus"], "--versus is 'abacus'; known: llama.cpp"),
        (["--plot", "speed.txt"], "it takes a file that ends in .png"),
        (["--plot", "absent/speed.png"], "there is no folder absent"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_made(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--plot", "speed.png"], "--plot needs matplotlib: pip install 'mlc-dsv3[plot]'"),
        (["--versus", "llama.cpp"], "--versus llama.cpp needs llama_cpp and gguf: CMAKE_ARGS="),
    ],
)
def test_a_missing_extra_is_told_with_the_way_to_get_it(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlc_dsv3.bench.extras.find_spec", lambda name: None)
    assert main(["bench", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_cache_larger_than_the_memory_is_refused_with_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlc_dsv3.runtime.memory.available_memory", lambda: 1000)
    assert main(["bench"]) == 2
    assert "the latent caches need 0.00 GiB, and 0.00 GiB are available" in capsys.readouterr().err
