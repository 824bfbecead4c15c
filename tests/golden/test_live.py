"""transformers run now against the stored goldens (extra `[reference]`): neither they nor the oracle have drifted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden import checkpoints
from golden.families import CHECKPOINTS

torch = pytest.importorskip("torch", reason="the live oracle needs the extra [reference]")
pytest.importorskip("transformers", reason="the live oracle needs the extra [reference]")

from golden import make_golden  # noqa: E402  it imports torch

# Another machine's float32 sums differ in order; more than this is another model.
TOLERANCE = 5e-5


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_goldens_made_now_are_those_stored(name: str) -> None:
    made, stored = make_golden.make(name), checkpoints.golden(name)
    assert made.keys() == stored.keys()
    for array, expected in stored.items():
        if array.endswith("logits"):
            assert np.abs(made[array] - expected).max() < TOLERANCE * expected.std(), array
        elif expected.dtype.kind in "iU":
            assert np.array_equal(made[array], expected), array


@torch.no_grad()
@pytest.mark.parametrize("name", ["deepseek_v3", "joyai_llm_flash", "deepseek_v3_fp8"])
def test_generate_with_mtp_drafts_the_golden_draft(name: str, tmp_path: Path) -> None:
    golden = checkpoints.golden(name)
    model = make_golden.load(name, tmp_path)
    make_golden.expect_mtp_layers(model)
    drafted = []
    model._get_candidate_generator = _spy(model._get_candidate_generator, drafted)
    prompt = torch.from_numpy(checkpoints.prompt(name).astype(np.int64))[None]
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(golden["greedy"]),
        do_sample=False,
        use_mtp=True,
    )
    assert np.array_equal(generated[0, prompt.shape[1] :].numpy(), golden["greedy"])
    tokens, logits = drafted[0]
    assert tokens[-1] == golden["draft_tokens"][0]
    expected = golden["draft_logits"][-1]
    assert np.abs(logits[-1] - expected).max() < TOLERANCE * golden["draft_logits"].std()


def _spy(get_generator: Callable[..., Any], drafted: list[tuple[np.ndarray, np.ndarray]]) -> Callable[..., Any]:
    """Note what the candidate generator that `get_generator` makes drafts."""

    def get(*arguments: Any, **options: Any) -> Any:
        generator = get_generator(*arguments, **options)
        get_candidates = generator.get_candidates

        def noted(*arguments: Any, **options: Any) -> Any:
            tokens, logits = get_candidates(*arguments, **options)
            if logits is not None:
                drafted.append((tokens[0].numpy(), logits[0].numpy()))
            return tokens, logits

        generator.get_candidates = noted
        return generator

    return get
