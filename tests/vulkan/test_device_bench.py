"""What `bench` measures of a GPU by kernels of its own."""

from __future__ import annotations

import json

import pytest
from golden.families import CHECKPOINTS
from on_device import DEVICE, needs_gpu

from mlc_dsv3.bench.attention import AttentionBench
from mlc_dsv3.bench.device_arithmetic import Arithmetic
from mlc_dsv3.bench.device_bandwidth import _Stream
from mlc_dsv3.compiler import resolve_target
from relax_model.config import parse_config

pytestmark = needs_gpu


def test_limits_are_positive() -> None:
    assert Arithmetic(resolve_target(DEVICE), blocks=2, steps=3).best(2) > 0
    assert _Stream(resolve_target(DEVICE), 1 << 20).best(1) > 0


@pytest.mark.full
def test_attention_alone_is_timed() -> None:
    config = parse_config(json.loads(json.dumps(CHECKPOINTS["deepseek_v3"].config)))
    assert AttentionBench(config, "q4f16_1", resolve_target(DEVICE), 1, 3, 40).seconds() > 0
