"""The GGUF for the comparison: read back by gguf's own reader, and run by llama.cpp where that is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_shape import tiny

from mlc_dsv3.bench.gguf_model import gguf_type, refuse_unknown_to_llama, write_gguf
from mlc_dsv3.bench.speed import StepShape
from mlc_dsv3.errors import UserError
from relax_model.config import parse_config

V3 = {
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16", "BF16", "F32"])
def test_the_file_holds_the_models_tensors_in_the_format(tmp_path: Path, kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    write_gguf(parse_config(tiny()), kind, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    # GGUF lists the fastest dimension first.
    assert tensors["blk.1.ffn_down_exps.weight"].shape.tolist() == [32, 64, 4]
    assert tensors["blk.0.attn_k_b.weight"].shape.tolist() == [32, 32, 2]
    assert tensors["token_embd.weight"].tensor_type.name == kind
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"
    for tensor in tensors.values():
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all()
        assert values.std() < 2 * values.shape[-1] ** -0.5


def test_the_fields_are_the_configurations(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    write_gguf(parse_config(tiny(**V3)), "Q4_0", tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    expected = {
        "block_count": 2,
        "leading_dense_block_count": 1,
        "attention.q_lora_rank": 32,
        "attention.kv_lora_rank": 32,
        "attention.key_length": 48,
        "attention.key_length_mla": 48,
        "attention.value_length_mla": 32,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_gating_func": gguf.ExpertGatingFuncType.SIGMOID.value,
        "expert_group_count": 2,
    }
    assert {name: reader.get_field(f"deepseek2.{name}").contents() for name in expected} == expected
    assert any(tensor.name == "blk.1.exp_probs_b.bias" for tensor in reader.tensors)


@pytest.mark.parametrize("changes", [{}, V3], ids=["v2-lite", "v3"])
def test_llama_cpp_loads_and_runs_it(tmp_path: Path, changes: dict[str, object]) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from mlc_dsv3.bench.llama import LlamaBench

    config = parse_config(tiny(**changes))
    write_gguf(config, "Q4_0", tmp_path / "model.gguf")
    llama = LlamaBench(tmp_path / "model.gguf", 1, 2, 64)
    assert llama.first_token().load_seconds > 0
    assert llama.prefill(8, 16) > 0
    times = llama.steps(20, 3, [StepShape(1, 1), StepShape(2, 1), StepShape(1, 2)])
    assert [len(taken) for taken in times] == [3, 3, 3]
    assert llama.prefill(4, 8) > 0, "it goes back to a smaller depth"


def test_layouts_share_a_format() -> None:
    assert gguf_type("q4f16_1") == gguf_type("q4f16_1+packed") == "Q4_0"
    assert gguf_type("q8f16_1") == "Q8_0"
    assert gguf_type("q0bf16") == "BF16"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_hidden_layers": 4, "moe_layer_freq": 2}, "no dense layers between"),
        ({"n_shared_experts": None}, "needs shared experts"),
        ({"num_hidden_layers": 27, "q_lora_rank": 32}, "takes 27 layers for a model without q_lora_rank"),
        ({"moe_intermediate_size": 40}, r"multiples of 32; blk.1.ffn_down_exps.weight has 40"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_told(changes: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        refuse_unknown_to_llama(parse_config(tiny(**changes)), "Q4_0")
