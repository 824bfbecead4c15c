"""What `compile --debug-dump` writes, and what a kernel may ask of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden.families import CHECKPOINTS
from marks import quick_first

from mlc_dsv3.compiler import compile_model
from mlc_dsv3.compiler.device_kernels import DeviceKernel, refuse_over_limits
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.errors import UserError
from relax_model.config import parse_config


@pytest.mark.parametrize(("device", "kernels"), quick_first([("cpu", None), ("metal", "3-kernels.metal")]))
def test_the_ir_after_each_phase_and_what_came_out(device: str, kernels: str | None, tmp_path: Path) -> None:
    config = parse_config(CHECKPOINTS["youtu"].config)
    library = compile_model(config, "q4f16_1", device, tmp_path / "library", dump=tmp_path / "dump")
    written = {path.name: path.read_text() for path in (tmp_path / "dump").iterdir()}
    assert sorted(written) == sorted(
        ["1-model.py", "2-lowered.py", "3-bytecode.txt", "3-host.s", *([kernels] if kernels else [])]
    )
    assert "R.call_tir" in written["1-model.py"]
    assert "R.call_tir" not in written["2-lowered.py"]
    for kernel in read_note(library)["kernels"]:
        assert f"kernel void {kernel['name']}(" in written[kernels]


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (DeviceKernel("linear", 2048, 0, 4), "kernel linear takes 2048 threads in a block, and cuda has 1024"),
        (
            DeviceKernel("experts", 64, 50000, 4),
            "kernel experts takes 50000 bytes of shared memory in a block, and cuda has 49152",
        ),
    ],
)
def test_a_kernel_over_a_limit_is_refused_by_its_name_and_the_limit(kernel: DeviceKernel, said: str) -> None:
    limits = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152}
    with pytest.raises(UserError, match=said):
        refuse_over_limits([kernel], limits, "cuda")


@pytest.mark.full
def test_a_tile_that_wants_too_much_ends_compilation_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlc_dsv3.compiler import targets

    description = targets.read_description("metal")
    smaller = {**description, "target": {**description["target"], "tvm": {**description["target"]["tvm"]}}}
    smaller["target"]["tvm"]["max_shared_memory_per_block"] = 1024
    read = targets.read_description
    monkeypatch.setattr(targets, "read_description", lambda device: smaller if device == "metal" else read(device))
    config = parse_config(CHECKPOINTS["youtu"].config)
    with pytest.raises(UserError, match=r"kernel \w+ takes \d+ bytes of shared memory in a block, and metal has 1024"):
        compile_model(config, "q4f16_1", "metal", tmp_path / "library")
    assert list(tmp_path.iterdir()) == []
