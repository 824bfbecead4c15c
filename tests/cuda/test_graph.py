"""The memory of CUDA graphs, on an NVIDIA GPU or an emulated one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from mlc_dsv3._pins import tvm_library
from mlc_dsv3.cuda import driver
from mlc_dsv3.cuda.graph import record
from mlc_dsv3.runtime.graphs import GraphCalls
from mlc_dsv3.runtime.memory import DeviceMemory
from mlc_dsv3.runtime.virtual_machine import load_runtime

load_runtime()
pytestmark = pytest.mark.skipif(driver.missing() is not None, reason=str(driver.missing()))
SIZE = 1 << 20
CUDA, DEVICE_TO_DEVICE = 2, 3  # DLPack's code of the device, and CUDA's of a copy


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


def elsewhere(work: Callable[[], Any]) -> Any:
    """What `work` returns on a thread of its own, which ends."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_what_another_thread_allocates_meanwhile_is_its_own(memory: DeviceMemory) -> None:
    def allocate_elsewhere() -> tuple[int, int]:
        before = driver.free_memory()
        elsewhere(lambda: taken(memory, 3).clear())
        return before, driver.free_memory()

    graph, (before, after) = record(allocate_elsewhere)
    assert before == after, "what it let go of went to the graph"
    graph.destroy()


def test_another_thread_works_on_while_one_records(memory: DeviceMemory) -> None:
    tensor, values = taken(memory, 1)[0], np.arange(SIZE).astype(np.int8)

    def write_and_read() -> np.ndarray:
        memory.write(tensor, values)
        return memory.read(tensor)

    graph, read = record(lambda: elsewhere(write_and_read))
    np.testing.assert_array_equal(read, values)
    graph.destroy()


def test_two_threads_record_at_once(memory: DeviceMemory) -> None:
    graph, (inner, held) = record(lambda: elsewhere(lambda: record(lambda: taken(memory, 1))))
    free = driver.free_memory()
    graph.destroy()
    assert driver.free_memory() == free, "the memory is the other graph's"
    inner.destroy()
    held.clear()
    assert driver.free_memory() >= free + SIZE


def test_a_thread_records_one_graph_at_a_time(memory: DeviceMemory) -> None:
    def record_twice() -> list[tvm_ffi.Tensor]:
        with pytest.raises(RuntimeError, match="this thread is recording a CUDA graph already"):
            record(lambda: None)
        return taken(memory, 1)

    free = driver.free_memory()
    graph, held = record(record_twice)
    assert driver.free_memory() <= free - SIZE
    graph.destroy()
    held.clear()
    assert driver.free_memory() == free


@pytest.mark.skipif("EMULATED_GPU_FOLDER" not in os.environ, reason="a GPU does not fail when asked to")
@pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_a_recording_that_fails_leaves_the_thread_as_it_was(
    function: str, memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, values = driver.free_memory(), np.ones(SIZE, np.int8)
    with monkeypatch.context() as patch:
        patch.setenv("EMULATED_GPU_FAILS", function)
        with pytest.raises(RuntimeError, match="recording a CUDA graph|cudaStreamBeginCapture"):
            record(lambda: taken(memory, 1).clear())
    assert driver.free_memory() == free
    (tensor,) = taken(memory, 1)
    memory.write(tensor, values)  # nothing is captured any more
    np.testing.assert_array_equal(memory.read(tensor), values)
    record(lambda: None)[0].destroy()


def test_a_graph_that_nobody_holds_is_given_back(memory: DeviceMemory) -> None:
    free = driver.free_memory()
    graph, held = record(lambda: taken(memory, 1))
    del graph, held
    assert driver.free_memory() == free


class Workspace:
    """Temporary memory for kernels, as a library's code asks for it, of TVM's pool for this thread."""

    def __init__(self) -> None:
        ours, ffi = ctypes.CDLL(str(tvm_library("libtvm_runtime.so"))), ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
        self._take, self._give_back = ours.TVMBackendAllocWorkspace, ours.TVMBackendFreeWorkspace
        self._take.restype = ctypes.c_void_p
        self._take.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int]
        self._give_back.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
        self._copy = ctypes.CDLL("libcudart.so.13").cudaMemcpyAsync
        self._copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        self._stream = ffi.TVMFFIEnvGetStream
        self._stream.restype = ctypes.c_void_p

    def use(self, size: int) -> None:
        """Take so many bytes and give them back: the pool exchanges what it has for more where it has less."""
        self._give_back(CUDA, 0, self._take(CUDA, 0, size, 0, 8))

    def copy(self, source: tvm_ffi.Tensor, target: tvm_ffi.Tensor) -> None:
        """Copy a tensor by way of temporary memory."""
        between, stream = self._take(CUDA, 0, SIZE, 0, 8), self._stream(CUDA, 0)
        for to, from_ in ((between, source.data_ptr()), (target.data_ptr(), between)):
            assert self._copy(to, from_, SIZE, DEVICE_TO_DEVICE, stream) == 0
        self._give_back(CUDA, 0, between)

    @contextmanager
    def held(self, memory: DeviceMemory, parts: int) -> Iterator[None]:
        """So many times SIZE bytes of it in use, and nobody else writes there."""
        values, read = np.full(SIZE, 7, np.int8), taken(memory, 1)[0]
        place = self._take(CUDA, 0, parts * SIZE, 0, 8)
        memory.write(read, values)
        for part in range(parts):
            assert self._copy(place + part * SIZE, read.data_ptr(), SIZE, DEVICE_TO_DEVICE, None) == 0
        yield
        for part in range(parts):
            assert self._copy(read.data_ptr(), place + part * SIZE, SIZE, DEVICE_TO_DEVICE, None) == 0
            np.testing.assert_array_equal(memory.read(read), values)
        self._give_back(CUDA, 0, place)


def copied(calls: GraphCalls, value: int) -> np.ndarray:
    """What a call of the only function gives for SIZE bytes of `value`, in rows so that they are few."""
    return DeviceMemory("cuda").read(calls("copy", [np.full((1, SIZE // 4), value, np.int32)]))


@pytest.fixture
def calls(memory: DeviceMemory) -> GraphCalls:
    workspace = Workspace()

    def copy(source: tvm_ffi.Tensor) -> tvm_ffi.Tensor:
        target = memory.empty((1, SIZE // 4), "int32")
        workspace.copy(source, target)
        return target

    return GraphCalls(lambda name: copy, lambda name: copy, memory)


def started_as_graph(calls: GraphCalls, value: int) -> bool:
    """Whether the call was one graph. What others hold in memory stays as it is."""
    before = driver.call("graph_launches")
    assert (copied(calls, value) == value).all()
    return driver.call("graph_launches") > before


@contextmanager
def others_in_memory(memory: DeviceMemory) -> Iterator[None]:
    """Tensors that are allocated now, and that nobody writes to."""
    values, tensors = np.full(SIZE, 7, np.int8), taken(memory, 20)
    for tensor in tensors:
        memory.write(tensor, values)
    yield
    assert all(np.array_equal(memory.read(tensor), values) for tensor in tensors)


def test_others_on_the_thread_may_exchange_its_temporary_memory(memory: DeviceMemory, calls: GraphCalls) -> None:
    assert [started_as_graph(calls, value) for value in range(4)] == [False, False, True, True]
    # Another model's kernels, that need more.
    with Workspace().held(memory, 8), others_in_memory(memory):
        assert started_as_graph(calls, 5)


def test_the_thread_that_made_a_graph_may_end(memory: DeviceMemory, calls: GraphCalls) -> None:
    assert elsewhere(lambda: [started_as_graph(calls, value) for value in range(4)]) == [False, False, True, True]
    with others_in_memory(memory):
        assert started_as_graph(calls, 5)


def test_graphs_of_other_shapes_stay_when_one_is_recorded(memory: DeviceMemory) -> None:
    calls = GraphCalls(lambda name: lambda source: source, lambda name: lambda source: source, memory)
    for rows in (1, 2, 3):
        for _ in range(3):
            calls("same", [np.zeros((rows, 1), np.int32)])
    assert len(calls._graphs) == 3


def test_graphs_are_recorded_anew_where_a_larger_call_exchanges_their_temporary_memory(memory: DeviceMemory) -> None:
    workspace, sizes = Workspace(), {"small": SIZE, "large": 8 * SIZE}

    def function(name: str) -> Callable[[tvm_ffi.Tensor], tvm_ffi.Tensor]:
        def copy(source: tvm_ffi.Tensor) -> tvm_ffi.Tensor:
            target = memory.empty((1, SIZE // 4), "int32")
            workspace.use(sizes[name])
            workspace.copy(source, target)
            return target

        return copy

    calls = GraphCalls(function, function, memory)
    for name in ("small", "large", "small"):
        with workspace.held(memory, 8), others_in_memory(memory):
            for value in range(4):
                returned = memory.read(calls(name, [np.full((1, SIZE // 4), value, np.int32)]))
                assert (returned == value).all()
