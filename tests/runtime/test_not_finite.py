"""A checkpoint whose rotary keys are beyond float16: one line that says what to try, and what it says helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden import checkpoints, tokenizer
from golden.families import CHECKPOINTS

from mlc_dsv3 import LLM, SamplingParams
from mlc_dsv3.cli.main import main
from mlc_dsv3.errors import NotFiniteError, UserError
from mlc_dsv3.weights import Checkpoint, convert

NAME, FACTOR = "deepseek_v3", 2.0**20
PROMPT = checkpoints.prompt(NAME)[:20].tolist()
GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In every layer rotary keys are multiplied by a power of two and rotary queries divided by it, so that in float32
    the results keep their bits."""
    config, values = CHECKPOINTS[NAME].config, checkpoints.tensors(NAME)
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    for name in values:
        if name.endswith("kv_a_proj_with_mqa.weight"):
            values[name][config["kv_lora_rank"] :] *= FACTOR
        elif name.endswith(("q_b_proj.weight", "q_proj.weight")):
            rows = values[name].reshape(heads, -1, values[name].shape[1])
            rows[:, nope:] /= FACTOR
    folder = checkpoints.write_folder(tmp_path_factory.mktemp("models") / "tiny", config, values)
    tokenizer.write(folder)
    output = folder.parent / "tiny-q0f32-MLC"
    convert(Checkpoint.open(folder), "q0f32", output, balance=False)
    return output


def test_keys_beyond_float16_end_the_request_with_what_to_try(
    artifact: Path, compiled: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    library = compiled(NAME, "q0f32", "float16").library
    options = ["chat", str(artifact), "--model-lib", str(library), "--temperature", "0"]
    for more in (["--prompt", "a b c"], ["--prompt", "a b c", "--json"], ["--raw", "--prompt", "a b c"]):
        assert main([*options, *more]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "logits at position" in shown.err and "not finite" in shown.err
        assert "the latent cache is in float16, try --cache-dtype float32" in shown.err
        # With --model-lib, --cache-dtype is refused: a library has its cache's dtype.
        assert "for a --model-lib, give it to compile instead" in shown.err
        assert shown.err.count("\n") == 1


def test_the_engine_goes_on_after_a_request_that_was_not_finite(artifact: Path, compiled: Callable) -> None:
    with LLM(artifact, model_lib=compiled(NAME, "q0f32", "float16").library) as llm:
        for _ in range(2):
            with pytest.raises(NotFiniteError) as error:
                llm.generate([PROMPT, PROMPT[:5]], GREEDY)
            assert isinstance(error.value, UserError)
        assert not llm._loop.run(lambda: llm._engine.has_work)


def test_a_float32_cache_holds_them_and_the_answer_is_the_plain_checkpoints(artifact: Path, compiled: Callable) -> None:
    made = compiled(NAME)
    with LLM(artifact, model_lib=made.library) as llm, LLM(made.artifact, model_lib=made.library) as plain:
        assert llm.generate([PROMPT], GREEDY) == plain.generate([PROMPT], GREEDY)
        np.testing.assert_array_equal(llm.logits(PROMPT), plain.logits(PROMPT))
