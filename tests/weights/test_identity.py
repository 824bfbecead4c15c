"""checkpoint_identity tells checkpoints apart by what decides the results, and by nothing else."""

import json
import shutil

import numpy as np
import pytest
from tiny_checkpoints import DEEPSEEK_V3, random_tensors, write_checkpoint

from mlc_dsv3.weights import checkpoint_identity, identity


@pytest.fixture
def folder(tmp_path):
    folder = write_checkpoint(tmp_path / "original", DEEPSEEK_V3)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_copy_has_the_same_identity(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("no weights")
    assert checkpoint_identity(copy) == checkpoint_identity(folder)


@pytest.mark.parametrize("sampled", [False, True])
def test_two_fine_tunes_of_one_config_differ(tmp_path, monkeypatch, sampled):
    if sampled:
        monkeypatch.setattr(identity, "_WHOLE", 0)
    tunes = [write_checkpoint(tmp_path / f"{i}", DEEPSEEK_V3, random_tensors(DEEPSEEK_V3, seed=i)) for i in range(2)]
    assert checkpoint_identity(tunes[0]) != checkpoint_identity(tunes[1])


def test_one_changed_weight_of_a_small_checkpoint_changes_it(folder):
    before = checkpoint_identity(folder)
    tensors = random_tensors(DEEPSEEK_V3)
    tensors["lm_head.weight"][3, 5] = np.nextafter(tensors["lm_head.weight"][3, 5], np.float32(9))
    write_checkpoint(folder, DEEPSEEK_V3, tensors)
    assert checkpoint_identity(folder) != before


@pytest.mark.parametrize(("file", "text"), [("tokenizer.json", "{ }"), ("generation_config.json", "{}")])
def test_a_changed_small_file_changes_it(folder, file, text):
    before = checkpoint_identity(folder)
    (folder / file).write_text(text)
    assert checkpoint_identity(folder) != before


def test_a_changed_config_changes_it(folder):
    before = checkpoint_identity(folder)
    (folder / "config.json").write_text(json.dumps({**DEEPSEEK_V3, "routed_scaling_factor": 2.5}))
    assert checkpoint_identity(folder) != before
