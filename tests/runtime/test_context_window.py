"""The context window of the demo where memory is scarce, through every verb that runs a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlc_dsv3 import LLM, SamplingParams
from mlc_dsv3.cli.main import main
from mlc_dsv3.compiler import resolve_target
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.capacity import MemoryNeed, memory_need
from mlc_dsv3.weights import Checkpoint

pytestmark = pytest.mark.usefixtures("demo_is_made")


@pytest.fixture(scope="module")
def need() -> MemoryNeed:
    from mlc_dsv3.demo import checkpoint_path

    config, sizes = Checkpoint.open(checkpoint_path()).model_config, {"page_size": 16, "max_rows": 512, "max_batch": 32}
    tile = dict(resolve_target("cpu").tuned)
    return memory_need(config, "q4f16_1+vnni16", device="cpu", attention_tile=tile, cache_dtype="int8", **sizes)


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch, need: MemoryNeed):
    """`memory_for(tokens)`: the machine has memory for the demo with a context of so many tokens."""

    def have(tokens: int) -> None:
        # Of so little memory, a quarter is less than the weights take.
        left = need.weights + need.working(tokens) + need.cache(tokens)
        monkeypatch.setattr("mlc_dsv3.runtime.memory.available_memory", lambda: left)

    return have


def test_the_default_window_is_what_fits_and_chat_goes_on(memory_for, capsys: pytest.CaptureFixture[str]) -> None:
    memory_for(992)
    with LLM() as model:
        assert model.context_window == 992
        shown = capsys.readouterr().err
        assert shown.startswith("mlc_dsv3: the context window is 992 of the model's ")
        assert "--context-window N" in shown
        assert shown.count("\n") == 1
        (answer,) = model.chat([{"role": "user", "content": "What is 34 + 57?"}], SamplingParams(temperature=0))
        assert "91" in answer.text


def test_a_chosen_window_is_taken_without_a_word(memory_for, capsys: pytest.CaptureFixture[str]) -> None:
    memory_for(992)
    assert main(["chat", "--context-window", "512", "--prompt", "What is 34 + 57?", "--temperature", "0"]) == 0
    shown = capsys.readouterr()
    assert "91" in shown.out
    assert shown.err == ""
    with LLM(context_window=512) as model:
        assert model.context_window == 512


@pytest.mark.parametrize(
    "verb",
    [
        ["chat", "--prompt", "x"],
        ["rebalance", "--text", "text.txt"],
        ["bench", "--prefill", "16", "--decode", "2"],
        ["bench", "--experts", "text.txt"],
    ],
    ids=lambda verb: " ".join(verb[:2]),
)
def test_a_window_that_does_not_fit_is_refused_before_anything_is_made(
    verb: list[str], memory_for, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Some words.")
    monkeypatch.setattr("mlc_dsv3.runtime.memory.available_memory", lambda: 1_000_000)
    assert main([*verb, "--context-window", "2048"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "mlc_dsv3: error: the latent cache" in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("verb", [["chat"], ["rebalance", "--text", "text.txt"], ["bench"], ["tune"]])
def test_a_window_beyond_the_models_is_refused(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("Some words.")
    assert main([*verb, "--context-window", "1000000"]) == 2
    assert "is 1000000; the model takes 2 to " in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_gpu_that_cannot_hold_the_weights_says_so_before_they_are_converted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlc_dsv3.compiler.targets import resolve_target
    from mlc_dsv3.demo import checkpoint_path
    from mlc_dsv3.runtime.capacity import Room
    from mlc_dsv3.runtime.prepare import prepare

    class Small:
        def available(self) -> int:
            return 2**20

    target = resolve_target("vulkan", "discrete-32")
    monkeypatch.setattr("mlc_dsv3.runtime.prepare.resolve_target", lambda device, **_: target)
    monkeypatch.setattr("mlc_dsv3.runtime.prepare.memory_of", lambda device: Small())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"beside 0\.00 GiB of weights, and 0\.00 GiB .* smaller model"):
        prepare(checkpoint_path(), None, "vulkan", None, room=Room())
    assert not (tmp_path / "cache").exists()


def test_a_text_is_read_in_contexts_of_the_window() -> None:
    from mlc_dsv3.experts.reading import Reader
    from mlc_dsv3.runtime.model import CompiledModel
    from mlc_dsv3.runtime.prepare import prepare

    demo = prepare(None, None, "cpu", None)
    tokens = np.random.default_rng(0).integers(0, demo.artifact.model_config.vocab_size, 1400).tolist()
    reader = Reader(CompiledModel.load(demo.artifact, demo.library), 700)
    stretches = reader.stretches(tokens)
    assert [(each.start, len(each.tokens)) for each in stretches] == [(0, 512), (512, 188)] * 2
    found = np.concatenate([reader.read(each, want_logits=True).logits for each in stretches])
    with LLM() as model:
        expected = np.concatenate([model.logits(tokens[:700]), model.logits(tokens[700:])])
    # The engine reads a whole block in attention's expanded form, which is off by a little.
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95
