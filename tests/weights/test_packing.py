"""Packing: an artifact in a target's layout holds the bytes that converting the checkpoint into it would have made."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import FAMILIES, write_checkpoint

from mlc_dsv3.weights import Artifact, Checkpoint, convert, pack_artifact


@pytest.mark.parametrize("quantization", ["q4f16_1", "q8f16_1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packing_an_artifact_is_converting_into_the_layout(tmp_path: Path, family: str, quantization: str) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "hf", FAMILIES[family]))
    plain = Artifact.open(convert(checkpoint, quantization, tmp_path / "plain"))
    direct = Artifact.open(convert(checkpoint, f"{quantization}+vnni16", tmp_path / "direct"))
    packed = Artifact.open(pack_artifact(plain, f"{quantization}+vnni16", tmp_path / "packed"))
    assert packed.quantization == direct.quantization
    expected = direct.map_parameters()
    found = packed.map_parameters()
    assert list(found) == list(expected)
    for name, array in found.items():
        assert np.array_equal(array, expected[name]), name
    packed.verify()
    assert json.loads((packed.path / "mlc-chat-config.json").read_text()) == direct.chat_config
