"""The device API: memory, copies, launches from several threads, libraries on disk, and what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi
from on_device import build, device, needs_vulkan, target
from tvm import relax
from tvm.script import tirx as T

from mlc_dsv3.vulkan import native

pytestmark = needs_vulkan
RANDOM = np.random.default_rng(6)


@T.prim_func(s_tir=True)
def increment(a: T.handle, n: T.int32):
    A = T.match_buffer(a, (n,), "float32")
    for i in T.thread_binding((n + 63) // 64, "blockIdx.x"):
        for t in T.thread_binding(64, "threadIdx.x"):
            if i * 64 + t < n:
                A[i * 64 + t] = A[i * 64 + t] + T.float32(1)


def test_the_device_says_what_it_is() -> None:
    first = native.devices()[0]
    assert first["name"] and first["lacking"] == "" and first["subgroup_size"] > 0
    assert device().exist and not tvm.device("vulkan", 99).exist
    assert device().device_name == first["name"]


@pytest.mark.parametrize("size", [0, 1, 3, 4096, 100_003, 20_000_001])
def test_bytes_go_there_and_come_back(size: int) -> None:
    x = RANDOM.integers(0, 256, size).astype(np.uint8)
    there = tvm.runtime.tensor(x, device())
    other = tvm.runtime.empty(x.shape, "uint8", device())
    there.copyto(other)
    assert np.array_equal(other.numpy(), x)


def test_launches_run_in_order_and_go_in_two_submissions() -> None:
    function, x = build(increment)["main"], tvm.runtime.tensor(np.zeros(1000, np.float32), device())
    function(x, 1000)
    device().sync()
    before = native.statistics()
    for _ in range(500):
        function(x, 1000)
    assert np.array_equal(x.numpy(), np.full(1000, 501, np.float32))
    after = native.statistics()
    assert after["launches"] - before["launches"] == 500
    assert after["submissions"] - before["submissions"] == 2


def test_independent_launches_need_no_barrier() -> None:
    function = build(increment)["main"]
    several = [tvm.runtime.tensor(np.zeros(64, np.float32), device()) for _ in range(8)]
    device().sync()
    before = native.statistics()["barriers"]
    for x in several:
        function(x, 64)
    assert native.statistics()["barriers"] == before
    for x in several:
        function(x, 64)
    assert all(np.array_equal(x.numpy(), np.full(64, 2)) for x in several)


def test_memory_does_not_grow_over_a_thousand_cycles() -> None:
    function = build(increment)["main"]

    def cycle(size: int) -> None:
        x = tvm.runtime.tensor(np.zeros(size, np.float32), device())
        function(x, size)

    cycle(5_000_000)
    device().sync()
    before = native.statistics()
    for number in range(1000):
        cycle(1000 + 37 * number)
    cycle(5_000_000)
    device().sync()
    after = native.statistics()
    assert after["allocations"] == before["allocations"] and after["used"] == before["used"]
    assert after["reserved"] <= before["reserved"]


def test_memory_is_not_handed_out_twice() -> None:
    sizes = RANDOM.integers(1, 3_000_000, 60)
    held = {}
    for number, size in enumerate(sizes):
        held[number] = tvm.runtime.tensor(np.full(size, number, np.int32), device())
        if number % 3 == 2:
            del held[number - 1]
    assert all(np.all(tensor.numpy() == number) for number, tensor in held.items())


def test_four_threads_at_once() -> None:
    function, failures = build(increment)["main"], []

    def work(seed: int) -> None:
        x = tvm.runtime.tensor(np.full(777 + seed, seed, np.float32), device())
        for _ in range(50):
            function(x, 777 + seed)
        if not np.array_equal(x.numpy(), np.full(777 + seed, seed + 50)):
            failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_kernel_works_on_a_part_of_a_tensor() -> None:
    @T.prim_func(s_tir=True)
    def increment_part(a: T.handle):
        A = T.match_buffer(a, (64,), "float32", offset_factor=1)
        for t in T.thread_binding(64, "threadIdx.x"):
            A[t] = A[t] + T.float32(1)

    x = tvm.runtime.tensor(np.zeros(128, np.float32), device())
    build(increment_part)["main"](x._create_view((64,), "float32", relative_byte_offset=12))
    expected = np.zeros(128)
    expected[3:67] = 1
    assert np.array_equal(x.numpy(), expected)


def test_views_at_any_byte_are_read_and_written() -> None:
    x = RANDOM.integers(0, 256, 1003).astype(np.uint8)
    whole = tvm.runtime.tensor(x, device())
    for start, size in ((1, 5), (3, 1000), (256, 512)):
        part = whole._create_view((size,), "uint8", relative_byte_offset=start)
        assert np.array_equal(part.numpy(), x[start : start + size])
        part.copyfrom(x[start : start + size][::-1].copy())
        x[start : start + size] = x[start : start + size][::-1]
    assert np.array_equal(whole.numpy(), x)


def test_a_tensor_of_more_than_2_31_elements() -> None:
    size = 2**31 + 4096
    first = native.devices()[0]
    if size > min(first["max_allocation"], first["memory"] // 2):
        pytest.skip(f"{first['name']} allocates at most {first['max_allocation']} bytes at once")

    @T.prim_func(s_tir=True)
    def number(a: T.handle):
        A = T.match_buffer(a, (T.int64(size),), "uint8")
        for i in T.thread_binding(T.int64(2048 // 64), "blockIdx.x"):
            for t in T.thread_binding(T.int64(64), "threadIdx.x"):
                A[T.int64(size - 2048) + i * T.int64(64) + t] = T.Cast("uint8", t)

    x = tvm.runtime.empty((size,), "uint8", device())
    build(number)["main"](x)
    end = x._create_view((2048,), "uint8", relative_byte_offset=size - 2048)
    assert np.array_equal(end.numpy(), np.tile(np.arange(64, dtype=np.uint8), 2048 // 64))


def test_a_library_on_disk_runs_in_another_process_without_the_compiler(tmp_path: Path) -> None:
    build(increment).export_library(str(tmp_path / "increment.so"))
    program = f"""
import numpy as np, sys
from mlc_dsv3.runtime.virtual_machine import load_runtime
load_runtime()
from mlc_dsv3.vulkan.native import load
load()
import tvm_ffi
module = tvm_ffi.load_module({str(tmp_path / "increment.so")!r})
x = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")((8,), "float32", tvm_ffi.device("vulkan", 0), None)
module["main"](x, 8)
assert "tvm" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pipelines_are_kept_for_the_next_process(tmp_path: Path) -> None:
    program = """
import numpy as np, tvm, on_device, test_runtime
x = tvm.runtime.tensor(np.zeros(8, np.float32), on_device.device())
on_device.build(test_runtime.increment)["main"](x, 8)
assert x.numpy().sum() == 8
"""
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": paths}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        kept = list((tmp_path / "mlc_dsv3" / "pipelines").iterdir())
        assert [path.suffix for path in kept] == [".bin"] and kept[0].stat().st_size > 0


def test_timings_of_launches() -> None:
    function, x = build(increment)["main"], tvm.runtime.tensor(np.zeros(100_000, np.float32), device())
    native.profile(True)
    for _ in range(3):
        function(x, 100_000)
    timings = native.profile(False)
    assert [name for name, _ in timings] == ["main_kernel"] * 3
    assert all(0 < seconds < 10 for _, seconds in timings)
    function(x, 100_000)
    assert native.profile(False) == []


def test_an_allocation_that_does_not_fit_names_the_numbers_and_the_process_lives() -> None:
    with pytest.raises(MemoryError, match=r"has no memory left: allocating 4398046511104 bytes, with \d+ reserved"):
        tvm.runtime.empty((1 << 42,), "uint8", device())
    assert tvm.runtime.tensor(np.ones(4, np.float32), device()).numpy().sum() == 4


def test_more_than_all_memory_is_refused_before_the_driver_is_asked() -> None:
    """Which a driver need not refuse: the validation layers would tell."""
    size, said = native.devices()[0]["memory"] + 4096, native.validation_messages()
    with pytest.raises(MemoryError, match=f"allocating {size} bytes"):
        tvm.runtime.empty((size,), "uint8", device())
    assert native.validation_messages() == said


def test_a_shader_that_is_none_and_bytes_that_end_early() -> None:
    make = tvm_ffi.get_global_func("mlc_dsv3.vulkan.make_module")
    with pytest.raises(ValueError, match="end too early"):
        make(b"\x0c\x00\x00\x00mlc_vulkan 2\x05\x00", "")
    with pytest.raises(ValueError, match="another version"):
        make(b"\x0c\x00\x00\x00mlc_vulkan 0\x00\x00\x00\x00", "")


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="there is no Vulkan device 7; this machine has"):
        tvm.runtime.empty((4,), "float32", tvm.device("vulkan", 7))


def test_a_relax_function_of_any_length() -> None:
    rows = tvm.tirx.Var("rows", "int64")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((rows, 64), "float32"))
    w = relax.Var("w", relax.TensorType((64, 48), "float32"))
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = builder.emit(relax.op.nn.softmax(relax.op.matmul(x, w)))
            y = builder.emit_output(relax.op.multiply(y, relax.const(2, "float32")))
        builder.emit_func_output(y)
    from tvm.s_tir import dlight

    with target():
        module = relax.get_pipeline("zero")(builder.finalize())
        rules = (dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback())
        module = dlight.ApplyDefaultSchedule(*rules)(module)
        machine = relax.VirtualMachine(tvm.compile(module, target()), device())
    weights = RANDOM.standard_normal((64, 48), np.float32)
    for rows in (1, 9, 130):
        values = RANDOM.standard_normal((rows, 64), np.float32)
        found = machine["main"](tvm.runtime.tensor(values, device()), tvm.runtime.tensor(weights, device())).numpy()
        e = np.exp(values.astype(np.float64) @ weights)
        np.testing.assert_allclose(found, 2 * e / e.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6)
