"""The memory that attention's kernels are planned to take, beside what their TIR allocates."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from marks import quick_first
from tvm import tirx

from mlc_dsv3.compiler import resolve_target
from mlc_dsv3.compiler.compile import build_options
from relax_model.config import ModelConfig, parse_config
from relax_model.kernels import registry
from relax_model.kernels.attention.scratch import absorbed_scratch, expanded_scratch
from relax_model.kernels.attention.shape import AttentionShape

TARGETS = (("cpu", "x86-64-avx512vnni"), ("cpu", "aarch64-neon"), ("cuda", None), ("vulkan", "integrated"))
PAGE, BLOCK = 16, 512
# How a size is written in TVMScript, as Python.
SCRIPT = SimpleNamespace(
    int64=int,
    Cast=lambda _, value: value,
    if_then_else=lambda condition, yes, no: yes if condition else no,
    max=max,
)


@pytest.fixture(params=["glm_4_7_flash", "deepseek_v3"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return parse_config(json.loads((Path(__file__).parents[1] / "shapes" / f"{request.param}.json").read_text()))


def allocated(kernel: tirx.PrimFunc, rows: int, tokens: int) -> int:
    """Bytes of the buffers whose sizes hang on rows or on the longest sequence's pages."""
    found = re.findall(r"= T\.alloc_buffer\((\(.*\))(?:, \"(\w+)\")?\)$", kernel.script(), re.MULTILINE)
    sizes = {"T": SCRIPT, "m": rows, "longest": -(-tokens // PAGE)}
    dynamic = [(shape, dtype or "float32") for shape, dtype in found if re.search(r"\b(m|longest)\b", shape)]
    assert dynamic
    return sum(math.prod(eval(shape, sizes)) * np.dtype(dtype).itemsize for shape, dtype in dynamic)


def kernel(operator: str, config: ModelConfig, device: str, level: str | None, *more: int) -> tirx.PrimFunc:
    quantization = "q4f16_1+vnni16" if device == "cpu" else "q4f16_1"
    options = build_options(resolve_target(device, level), quantization)
    shape = AttentionShape(
        heads=config.num_attention_heads,
        kv_lora_rank=config.kv_lora_rank,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        v=config.v_head_dim,
        interleaved=True,
        scale=0.1,
        page_size=PAGE,
        cache_dtype="int8",
    )
    return registry.build(operator, options.family, options.layout, shape, *more, tile=options.tile)


@pytest.mark.parametrize(("device", "level"), quick_first(TARGETS))
@pytest.mark.parametrize("tokens", [160, 163_840])
def test_of_few_rows_in_the_absorbed_form(config: ModelConfig, device: str, level: str | None, tokens: int) -> None:
    family, tile = ("cpu" if device == "cpu" else "gpu"), dict(resolve_target(device, level).tuned)
    made = kernel("absorbed_attention" if device == "cpu" else "absorbed_values", config, device, level)
    most = max(allocated(made, rows, tokens) for rows in range(1, 16 if family == "cpu" else tile["few"] + 1))
    assert most <= absorbed_scratch(config, family, tile, tokens) <= 1.05 * most


@pytest.mark.parametrize(("device", "level"), quick_first(TARGETS))
@pytest.mark.parametrize("tokens", [160, 163_840])
def test_of_the_expanded_form(config: ModelConfig, device: str, level: str | None, tokens: int) -> None:
    family, tile = ("cpu" if device == "cpu" else "gpu"), dict(resolve_target(device, level).tuned)
    taken = allocated(kernel("expanded_attention", config, device, level, BLOCK), BLOCK, tokens)
    planned = expanded_scratch(config, family, tile, "int8", tokens)
    assert taken <= planned
    assert planned <= max(1.05 * taken, tile.get("scratch", 0))
