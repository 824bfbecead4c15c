"""`mlc_dsv3 bench --speculative`: what it prints and refuses, and what its simulation simulates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_shape import tiny

from mlc_dsv3.bench.counting import draft_bytes, follow_bytes, step_bytes
from mlc_dsv3.cli.main import main
from relax_model.config import parse_config
from relax_model.layout import layout_of
from relax_model.parameters import parameters

MTP = {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny(**MTP)))
    return path


@pytest.mark.full
def test_each_number_of_drafts_beside_plain_decoding(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model-config", str(config), "--random-weights", "--decode", "60", "--rounds", "2"]
    assert main(["bench", *options, "--speculative", "1,3,auto", "--acceptance", "0.75", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(result["kind"], result["drafts"], result["batch"]) for result in results] == [
        ("drafted", "1", 1),
        ("drafted", "3", 1),
        ("drafted", "auto", 1),
    ]
    for result in results:
        assert result["tokens_per_second"] > 0 and result["plain_tokens_per_second"] > 0
        assert result["speed_up_min"] <= result["speed_up"] <= result["speed_up_max"]
    one, three, auto = results
    # A draft in four is wrong, and what comes after it does not count.
    assert one["accepted"] == [pytest.approx(0.75, abs=0.1)]
    assert one["tokens_per_step"] == pytest.approx(1.75, abs=0.12)
    assert three["tokens_per_step"] > one["tokens_per_step"]
    assert 0 < one["bound"] < one["tokens_per_step"]
    assert auto["bound"] is None
    assert all(0 < result["host_share"] < 1 and 0 <= result["faults_per_step"] < 1000 for result in results)


@pytest.mark.full
def test_the_demo_answers_its_questions_and_others_what_they_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--decode", "24", "--rounds", "1", "--json"]
    assert main(["bench", "--speculative", "1", *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["simulated_acceptance"] is None
    assert result["accepted"][0] > 0.75
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 3 + 4?\n\nWhat is 12 + 30?\n")
    assert main(["bench", "--speculative", "2", "--prompts", str(prompts), *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert 1 < result["tokens_per_step"] <= 3


@pytest.mark.full
def test_the_table_says_the_same(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model-config", str(config), "--random-weights", "--decode", "4", "--rounds", "1"]
    assert main(["bench", *options, "--speculative", "2", "--batch", "1,2"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["drafts", "batch", "tok/s", "plain"]
    assert [row.split()[:2] for row in rows] == [["2", "1"], ["2", "2"]]


def test_drafts_read_the_layer_the_head_and_a_row_of_the_embedding() -> None:
    config = parse_config(tiny(**MTP, n_routed_experts=4, num_experts_per_tok=4))
    layout = layout_of("q0f32")
    sizes = {p.name: sum(spec.nbytes for spec in p.buffers(layout).values()) for p in parameters(config)}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.2."))
    row = sizes["model.embed_tokens"] // config.vocab_size
    assert draft_bytes(config, "q0f32") == layer + sizes["lm_head"] + row
    assert draft_bytes(config, "q0f32", rows=3) == layer + sizes["lm_head"] + 3 * row
    norms = ("enorm.weight", "hnorm.weight", "input_layernorm.weight", "self_attn.kv_a_layernorm.weight")
    products = ("eh_proj", "self_attn.kv_a_proj_with_mqa")
    appending = sum(sizes[f"model.layers.2.{name}"] for name in (*norms, *products))
    assert follow_bytes(config, "q0f32", rows=3) == appending + 3 * row
    without = parse_config(tiny())
    assert draft_bytes(without, "q0f32") < step_bytes(without, "q0f32", 0, depth=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--speculative", "5"], "speculative is '5'; it is auto, off, or 1 to 4 drafted tokens"),
        (["--speculative", "off"], "--speculative is off; it takes numbers of drafts"),
        (["--speculative", "1", "--acceptance", "1.5"], "--acceptance is 1.5; it is a share, from 0 to 1"),
        (["--prompts", "x"], "--prompts are for --speculative; leave them out"),
        (["--speculative", "1", "--prompts", "absent"], "--prompts is absent, and there is no such file"),
        (["--acceptance", "0.5"], "--acceptance is of the drafts of --speculative; leave it out"),
        (["--speculative", "1", "--profile"], "--speculative measures drafts alone; leave --profile out"),
    ],
)
def test_bad_options_are_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_model_without_the_layer_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(json.dumps(tiny()))
    assert main(["bench", "--model-config", str(config), "--random-weights", "--speculative", "1"]) == 2
    assert "has no multi-token prediction layer to draft with" in capsys.readouterr().err
