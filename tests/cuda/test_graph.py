"""The memory of CUDA graphs, on an NVIDIA GPU or an emulated one."""

from __future__ import annotations

import pytest
import tvm_ffi

from mlc_dsv3.cuda import driver
from mlc_dsv3.cuda.graph import record
from mlc_dsv3.runtime.memory import DeviceMemory
from mlc_dsv3.runtime.virtual_machine import load_runtime

load_runtime()
pytestmark = pytest.mark.skipif(driver.missing() is not None, reason=str(driver.missing()))
SIZE = 1 << 20


@pytest.fixture
def memory() -> DeviceMemory:
    return DeviceMemory("cuda")


def taken(memory: DeviceMemory, count: int) -> list[tvm_ffi.Tensor]:
    return [memory.empty((SIZE,), "int8") for _ in range(count)]


def test_what_is_allocated_while_recording_stays_the_graphs(memory: DeviceMemory) -> None:
    def allocate() -> tuple[int, tvm_ffi.Tensor]:
        first = taken(memory, 1)[0].data_ptr()
        return first, taken(memory, 1)[0]

    graph, (first, held) = record(allocate)
    assert held.data_ptr() == first, "what was given back is taken again"
    del held
    assert first not in {tensor.data_ptr() for tensor in taken(memory, 20)}
    graph.destroy()


def test_memory_comes_back_with_the_last_of_graph_and_tensors(memory: DeviceMemory) -> None:
    graph, held = record(lambda: taken(memory, 2))
    free = driver.free_memory()
    graph.destroy()
    assert driver.free_memory() == free, "somebody holds tensors"
    memory.write(held[0], memory.read(held[1]))
    del held
    assert driver.free_memory() >= free + 2 * SIZE


def test_what_was_allocated_before_is_given_back_to_the_device(memory: DeviceMemory) -> None:
    before = taken(memory, 1)
    free = driver.free_memory()
    graph, _ = record(before.clear)
    assert driver.free_memory() >= free + SIZE
    graph.destroy()


def test_a_function_that_fails_leaves_nothing_recorded(memory: DeviceMemory) -> None:
    free = driver.free_memory()
    with pytest.raises(ZeroDivisionError):
        record(lambda: (taken(memory, 1), 1 / 0))
    assert driver.free_memory() == free
    graph, _ = record(lambda: taken(memory, 1))
    assert graph.kernels == 0
    graph.destroy()
