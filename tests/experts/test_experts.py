"""The experts' load by a text, and routers' biases that are learnt anew."""

from __future__ import annotations

import io
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from golden.routing import ROUTERS, choose

from mlc_dsv3 import LLM, SamplingParams
from mlc_dsv3.cli.main import main
from mlc_dsv3.demo.questions import held_out_questions
from mlc_dsv3.experts.load import count_load, recent_load
from mlc_dsv3.experts.reading import Reader
from mlc_dsv3.experts.routing import chosen_experts
from mlc_dsv3.runtime.model import CompiledModel
from mlc_dsv3.runtime.prepare import prepare
from mlc_dsv3.runtime.tokenizer import Tokenizer
from mlc_dsv3.weights import Artifact

TEXT = "\n".join(message["content"] for question in held_out_questions(200) for message in question.messages)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file with questions about the demo's world."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def demo():
    return prepare(None, None, "cpu", None)


@pytest.mark.parametrize("name", ROUTERS)
def test_the_hosts_choice_is_the_papers(name: str) -> None:
    router, random = ROUTERS[name], np.random.default_rng(1)
    logits = random.normal(size=(40, router.n_routed_experts)).astype(np.float32)
    bias = random.normal(0, 0.2, router.n_routed_experts).astype(np.float32)
    found = chosen_experts(router, logits, bias if router.has_correction_bias else None)
    for row, experts in zip(logits, found, strict=True):
        assert set(experts.tolist()) == set(choose(router, row, bias)[0].tolist())


def test_the_routers_of_every_layer_are_watched(demo) -> None:
    config, arrays = demo.artifact.model_config, demo.artifact.map_parameters()
    reader = Reader(CompiledModel.load(demo.artifact, demo.library))
    tokens = Tokenizer.load(demo.artifact.path).encode(TEXT)[:700]
    reads = list(reader.read_all(tokens))
    assert [len(read.routed[0][1]) for read in reads] == [512, 188]
    for read in reads:
        for layer, (logits, ids) in zip(reader.moe_layers, read.routed, strict=True):
            bias = arrays[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]
            expected = chosen_experts(config.router, logits, bias)
            assert np.array_equal(np.sort(ids, axis=1), np.sort(expected, axis=1))
    load = count_load(config.router, reader.moe_layers, reads)
    assert load.counts.sum(axis=1).tolist() == [700 * config.router.num_experts_per_tok] * len(reader.moe_layers)
    assert np.allclose(load.violation, load.counts.max(axis=1) / load.counts.mean(axis=1) - 1)


def test_the_last_tokens_of_a_conversation_are_read(demo) -> None:
    conversation = [{"role": "user", "content": TEXT[:4000]}, {"role": "assistant", "content": "Good."}]
    with LLM() as model:
        before = model.chat([{"role": "user", "content": "What is 3 + 4?"}], SamplingParams(temperature=0))
        tokens, load = recent_load(model, conversation)
        whole = model.tokenizer.chat_prompt(conversation)
        assert (tokens, load.layers) == (512, (1, 2, 3)) and len(whole) > 512
        assert recent_load(model, "What is 3 + 4?")[0] == len(
            model.tokenizer.encode("What is 3 + 4?", add_special_tokens=True)
        )
        after = model.chat([{"role": "user", "content": "What is 3 + 4?"}], SamplingParams(temperature=0))
        assert after[0].text == before[0].text, "requests are not disturbed"
    reader = Reader(CompiledModel.load(demo.artifact, demo.library))
    expected = count_load(demo.artifact.model_config.router, reader.moe_layers, reader.read_all(whole[-512:]))
    # The engine reads a whole block in attention's expanded form, which may change the choice where two are close.
    assert load.counts.sum() == expected.counts.sum()
    assert np.abs(load.counts - expected.counts).sum() < 0.05 * load.counts.sum()


def test_a_model_without_experts_has_no_load(compiled) -> None:
    made = compiled("youtu", "q4f16_1")
    with LLM(made.artifact, model_lib=made.library) as model:
        assert recent_load(model, [1, 2, 3]) is None


def test_bench_tells_the_load_with_the_bias_and_without(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--experts", str(text), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with_bias, without = found["with the correction bias"], found["without"]
    assert [each["layer"] for each in with_bias] == [each["layer"] for each in without] == [1, 2, 3]
    # The demo was trained by the same rule.
    for one, other in zip(with_bias, without, strict=True):
        assert one["violation"] < other["violation"]
        assert sum(one["counts"]) == sum(other["counts"]) == 4 * found["tokens"]
    assert main(["bench", "--experts", str(text)]) == 0
    assert capsys.readouterr().out.startswith("layer  with the correction bias: busiest above the mean")


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_bench_draws_the_load(text: Path, tmp_path: Path) -> None:
    assert main(["bench", "--experts", str(text), "--plot", str(tmp_path / "load.png")]) == 0
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_rebalancing_evens_the_load_and_changes_biases_alone(
    demo, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rebalanced"
    assert main(["rebalance", "--text", str(text), "-o", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    before, after = ([each["violation"] for each in found[name]] for name in ("before", "after"))
    assert np.mean(after) < 0.7 * np.mean(before)
    assert 0 < found["divergence"] < 0.1
    made = Artifact.open(output)
    made.verify()
    old, new = demo.artifact.map_parameters(), made.map_parameters()
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2, 3)}
    # It is a model like any other, and is as balanced as it was said to be.
    assert main(["bench", str(output), "--experts", str(text), "--json"]) == 0
    again = [each["violation"] for each in json.loads(capsys.readouterr().out)["with the correction bias"]]
    assert np.mean(again) < 0.7 * np.mean(before)
    assert main(["chat", str(output), "--prompt", "What is 3 + 4?", "--temperature", "0"]) == 0
    assert "7" in capsys.readouterr().out


@pytest.mark.full
def test_what_cannot_be_rebalanced_is_refused(
    compiled, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    output = tmp_path / "out"
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    other = compiled("deepseek_v2_lite", "q4f16_1").artifact
    assert "has no e_score_correction_bias to learn" in said("rebalance", other, "--text", text, "-o", output)
    assert "tokens; 128 at least" in said("rebalance", "--text", short, "-o", output)
    assert "and there is no such file" in said("rebalance", "--text", tmp_path / "absent", "-o", output)
    assert "--passes is 0" in said("rebalance", "--text", text, "--passes", "0")
    assert "--speed is 2.0" in said("rebalance", "--text", text, "--speed", "2")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "which is empty" in said("rebalance", "--text", "-", "-o", output)
    assert not output.exists()
    assert "leave --profile out" in said("bench", "--experts", text, "--profile")
