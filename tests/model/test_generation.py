"""`LLM` on the tiny checkpoints: greedy continuations and logits equal transformers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from golden import checkpoints
from golden.families import CHECKPOINTS
from marks import quick_first

from mlc_dsv3 import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=checkpoints.GREEDY_LENGTH, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(compiled: Callable[..., Any]) -> Callable[[str], LLM]:
    def load(name: str) -> LLM:
        made = compiled(name)
        return LLM(str(made.artifact), model_lib=str(made.library), device="cpu")

    return load


@pytest.mark.parametrize("name", quick_first(CHECKPOINTS))
def test_greedy_tokens_alone_and_in_a_batch(name: str, llm: Callable[[str], LLM]) -> None:
    model = llm(name)
    prompt, greedy = checkpoints.prompt(name).tolist(), checkpoints.golden(name)["greedy"].tolist()
    assert model.generate([prompt], GREEDY)[0].token_ids == greedy
    others = [prompt[:33], prompt[5:45], prompt[:1]]
    batch = [completion.token_ids for completion in model.generate([prompt, *others, prompt], GREEDY)]
    assert batch[0] == greedy
    assert batch[-1] == greedy
    for other, tokens in zip(others, batch[1:-1], strict=True):
        assert model.generate([other], GREEDY)[0].token_ids == tokens


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2", "glm4_moe_lite"])
def test_logits(name: str, llm: Callable[[str], LLM]) -> None:
    golden = checkpoints.golden(name)["logits"]
    logits = llm(name).logits(checkpoints.prompt(name).tolist())
    assert logits.shape == golden.shape
    assert logits.dtype == np.float32
    assert np.abs(logits - golden).max() <= 1e-3 * golden.std()


def test_a_reused_prefix_changes_no_token(llm: Callable[[str], LLM]) -> None:
    model = llm("deepseek_v3")
    prompt, greedy = checkpoints.prompt("deepseek_v3").tolist(), checkpoints.golden("deepseek_v3")["greedy"].tolist()
    model.generate([prompt + greedy[:7]], GREEDY)
    assert model.generate([prompt], GREEDY)[0].token_ids == greedy
    assert model.generate([prompt + greedy[:20]], GREEDY)[0].token_ids[:12] == greedy[20:]
