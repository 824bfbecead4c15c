"""What the live oracle saves of a model is read: a fine-tune without its MTP layer, and a base model without a head."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the live oracle needs the extra [reference]")
transformers = pytest.importorskip("transformers", reason="the live oracle needs the extra [reference]")

from golden.families import CHECKPOINTS  # noqa: E402
from mlc_dsv3.errors import UserError  # noqa: E402
from mlc_dsv3.weights import Artifact, Checkpoint, convert  # noqa: E402


def save(kind: str, folder: Path) -> None:
    config = transformers.DeepseekV3Config(**CHECKPOINTS["deepseek_v3"].config)
    model = getattr(transformers, kind)(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="200KB")


def test_a_saved_fine_tune_is_converted_without_the_mtp_layer_that_its_config_announces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save("DeepseekV3ForCausalLM", tmp_path)
    assert '"num_nextn_predict_layers": 1' in (tmp_path / "config.json").read_text()
    checkpoint = Checkpoint.open(tmp_path)
    artifact = Artifact.open(convert(checkpoint, "q4f16_1", tmp_path / "artifact"))
    assert artifact.model_config.num_nextn_predict_layers == 0
    assert capsys.readouterr().err.count("the checkpoint has no MTP layer; going on without it") == 1


def test_of_a_saved_base_model_only_the_head_is_missing(tmp_path: Path) -> None:
    save("DeepseekV3Model", tmp_path)
    with pytest.raises(UserError, match=r"tensor lm_head.weight is missing$"):
        convert(Checkpoint.open(tmp_path), "q4f16_1", tmp_path / "artifact")
