"""What the native part refuses, orders and lets go of: modules' bytes, commands on one allocation, pipelines, files."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from on_device import build, device, needs_vulkan
from test_runtime import increment
from tvm.script import tirx as T

from mlc_dsv3.vulkan import native, spirv
from mlc_dsv3.vulkan.binary import module_bytes
from mlc_dsv3.vulkan.glsl.shader import Argument, Shader

pytestmark = needs_vulkan
POINTER, INT32 = 0, 1
SHADER = Shader("kernel", "", (Argument(POINTER, True, 0), Argument(INT32, False, 8)), 16, 12, False, 0)
SPIRV = struct.pack("<5I", 0x07230203, 0x00010500, 0, 1, 0)


def load(shader: Shader = SHADER, code: bytes = SPIRV, more: bytes = b"") -> tvm_ffi.Module:
    made = module_bytes([(shader, ["blockIdx.x"], code)])
    return tvm_ffi.get_global_func("mlc_dsv3.vulkan.make_module")(made + more, "")


def test_a_module_that_is_well() -> None:
    assert load().implements_function("kernel")


@pytest.mark.parametrize("code", [b"", SPIRV[:-1], SPIRV + b"\0", SPIRV[:16], b"\0" * 20], ids=len)
def test_code_that_is_not_spirv(code: bytes) -> None:
    with pytest.raises(ValueError, match=f"kernel kernel .* has {len(code)} bytes that are not SPIR-V"):
        load(code=code)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arguments": (Argument(INT32, False, 13),)}, "has 4 bytes at 13 of its arguments' 16"),
        ({"arguments": (Argument(INT32, False, 65535),)}, "has 4 bytes at 65535 of its arguments' 16"),
        ({"arguments": (Argument(POINTER, True, 12),)}, "has 8 bytes at 12 of its arguments' 16"),
        ({"arguments": (Argument(5, False, 0),)}, "has an argument of kind 5"),
        ({"block_offset": 13}, "has 4 bytes at 13 of its arguments' 16"),
        ({"block_offset": 2**32 - 2}, "has 4 bytes at 4294967294 of its arguments' 16"),
        ({"arguments_size": 2**32 - 4}, "has 4294967292 bytes of arguments, and 65536 is the most"),
    ],
)
def test_places_outside_of_the_arguments(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"kernel kernel of a Vulkan module {said}"):
        load(replace(SHADER, **changes))


def test_bytes_behind_the_kernels() -> None:
    with pytest.raises(ValueError, match="a Vulkan module has more bytes than kernels"):
        load(more=b"\0")


def test_bytes_that_end_anywhere() -> None:
    made = module_bytes([(SHADER, ["blockIdx.x"], SPIRV)])
    for size in range(len(made)):
        with pytest.raises(ValueError, match="end too early"):
            tvm_ffi.get_global_func("mlc_dsv3.vulkan.make_module")(made[:size], "")


@T.prim_func(s_tir=True)
def fill(a: T.Buffer((64,), "float32"), blocks: T.int32):
    for i in T.thread_binding(1, "blockIdx.x"):
        for j in T.thread_binding(blocks, "blockIdx.y"):
            for t in T.thread_binding(64, "threadIdx.x"):
                if i + j == 0:
                    a[t] = T.float32(1)


def test_a_grid_of_less_than_no_blocks() -> None:
    x = tvm.runtime.tensor(np.zeros(64, np.float32), device())
    with pytest.raises(ValueError, match="kernel main_kernel wants a grid of 1 x -2 x 1 blocks"):
        build(fill)["main"](x, -2)
    build(fill)["main"](x, 1)
    assert x.numpy().sum() == 64


def test_pipelines_go_with_their_kernels() -> None:
    x = tvm.runtime.tensor(np.zeros(8, np.float32), device())
    before = native.statistics()["pipelines"]
    for _ in range(6):
        build(increment)["main"](x, 8)
        device().sync()
    assert np.array_equal(x.numpy(), np.full(8, 6, np.float32))
    assert native.statistics()["pipelines"] <= before + 2, "the last one that went may still be there"


def test_a_kernel_may_go_while_its_commands_wait() -> None:
    x = tvm.runtime.tensor(np.zeros(8, np.float32), device())
    for _ in range(6):
        build(increment)["main"](x, 8)
    assert np.array_equal(x.numpy(), np.full(8, 6, np.float32))


def barriers(work: object) -> int:
    """Barriers that `work` takes between its commands."""
    device().sync()
    before = native.statistics()["barriers"]
    work()
    return native.statistics()["barriers"] - before


def test_a_kernel_waits_for_the_last_part_of_a_long_upload() -> None:
    """An upload of several parts is submitted part by part."""
    x, values = tvm.runtime.empty((9 << 18,), "float32", device()), np.zeros(9 << 18, np.float32)
    function, host = build(increment)["main"], tvm.runtime.tensor(values, tvm.cpu())

    def upload_and_use() -> None:
        host.copyto(x)
        function(x, len(values))

    assert barriers(upload_and_use) == 1
    assert np.array_equal(x.numpy(), values + 1)


@T.prim_func(s_tir=True)
def many(
    a0: T.Buffer((64,), "float32"),
    a1: T.Buffer((64,), "float32"),
    a2: T.Buffer((64,), "float32"),
    a3: T.Buffer((64,), "float32"),
    a4: T.Buffer((64,), "float32"),
    a5: T.Buffer((64,), "float32"),
    a6: T.Buffer((64,), "float32"),
    a7: T.Buffer((64,), "float32"),
    a8: T.Buffer((64,), "float32"),
    a9: T.Buffer((64,), "float32"),
    a10: T.Buffer((64,), "float32"),
    a11: T.Buffer((64,), "float32"),
    a12: T.Buffer((64,), "float32"),
    a13: T.Buffer((64,), "float32"),
    a14: T.Buffer((64,), "float32"),
    a15: T.Buffer((64,), "float32"),
    a16: T.Buffer((64,), "float32"),
    a17: T.Buffer((64,), "float32"),
):
    for t in T.thread_binding(64, "threadIdx.x"):
        a0[t] = (
            a0[t]
            + a1[t]
            + a2[t]
            + a3[t]
            + a4[t]
            + a5[t]
            + a6[t]
            + a7[t]
            + a8[t]
            + a9[t]
            + a10[t]
            + a11[t]
            + a12[t]
            + a13[t]
            + a14[t]
            + a15[t]
            + a16[t]
            + a17[t]
        )


def test_a_kernel_waits_for_one_whose_arguments_lie_in_memory() -> None:
    tensors = [tvm.runtime.tensor(np.full(64, i, np.float32), device()) for i in range(18)]
    first, second = build(many)["main"], build(increment)["main"]

    def both() -> None:
        first(*tensors)
        second(tensors[0], 64)

    assert barriers(both) == 2, "for the arguments, and for what the first one wrote"
    assert np.array_equal(tensors[0].numpy(), np.full(64, sum(range(18)) + 1, np.float32))


def test_timings_of_a_launch_in_parts_where_timestamps_are_nearly_used_up() -> None:
    function = build(increment)["main"]
    x, small = (tvm.runtime.tensor(np.zeros(size, np.float32), device()) for size in (65_536 * 64, 64))
    before = native.statistics()["launches"]
    function(x, 65_536 * 64)
    parts = native.statistics()["launches"] - before
    said = native.validation_messages()
    native.profile(True)
    for _ in range(2047):
        function(small, 64)
    function(x, 65_536 * 64)
    timings = native.profile(False)
    assert len(timings) == 2047 + parts
    assert all(0 < seconds < 10 for _, seconds in timings)
    assert native.validation_messages() == said
    if native.devices()[0]["type"] == "cpu":
        assert parts == 2, "lavapipe takes 65535 blocks at once"


@pytest.mark.parametrize("failing", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_shader_that_cannot_be_kept_leaves_no_file(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(spirv, "_compile", lambda *_: SPIRV)
    monkeypatch.setattr(native, "_call", lambda _: {"driver.bin": b"pipelines"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match="No space left"):
        spirv.compile_shader("kernel", "void main() {}")
    native._keep_pipelines(tmp_path / "pipelines")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
