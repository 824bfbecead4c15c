"""Values that pass between the threads of a warp: subgroups of a width that the kernel requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from marks import quick_first
from on_device import build, device, needs_vulkan, run
from tvm import tirx
from tvm.script import tirx as T

from mlc_dsv3.vulkan import native
from mlc_dsv3.vulkan.errors import Unsupported

pytestmark = needs_vulkan
RANDOM = np.random.default_rng(7)
ROWS, THREADS = 3, 64


def width() -> int:
    """A width that this device can be asked for."""
    widest = native.devices()[0]["max_required_subgroup"]
    if not widest:
        pytest.skip("the device gives no promise of its subgroups' width")
    return widest


def shuffling(dtype: str, warp: int, read: Callable[..., Any], threads: int = THREADS) -> tirx.PrimFunc:
    """A block a row; each thread stores what `read(value, thread)` gives it of another one's value."""

    @T.prim_func(private=True, s_tir=True)
    def shuffled(x: T.Buffer((ROWS, threads), dtype), y: T.Buffer((ROWS, threads), dtype)):
        T.func_attr({"tirx.noalias": True})
        with T.sblock("root"):
            for i in T.thread_binding(ROWS, "blockIdx.x"):
                for t in T.thread_binding(threads, "threadIdx.x"):
                    y[i, t] = read(x[i, t], t, warp)

    return shuffled


OPERATORS = {
    "from a lane": (
        lambda x, t, warp: T.tvm_warp_shuffle(T.uint32(0xFFFFFFFF), x, (t * 5 + 3) % warp, warp, warp),
        lambda lane, warp: (lane * 5 + 3) % warp,
    ),
    "of a section": (
        lambda x, t, warp: T.tvm_warp_shuffle(T.uint32(0xFFFFFFFF), x, 1, 4, warp),
        lambda lane, warp: lane // 4 * 4 + 1,
    ),
    "up": (
        lambda x, t, warp: T.tvm_warp_shuffle_up(T.uint32(0xFFFFFFFF), x, 3, warp, warp),
        lambda lane, warp: np.where(lane >= 3, lane - 3, lane),
    ),
    "down": (
        lambda x, t, warp: T.tvm_warp_shuffle_down(T.uint32(0xFFFFFFFF), x, 2, 4, warp),
        lambda lane, warp: np.where(lane % 4 < 2, lane + 2, lane),
    ),
    "across": (
        lambda x, t, warp: T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), x, 5, warp, warp),
        lambda lane, warp: lane ^ 5,
    ),
}


@pytest.mark.parametrize("dtype", quick_first(["float16", "float32", "int8", "int32", "int64", "uint32"]))
@pytest.mark.parametrize("operator", OPERATORS)
def test_shuffles(operator: str, dtype: str) -> None:
    (read, source), warp = OPERATORS[operator], width()
    x = (100 * RANDOM.standard_normal((ROWS, THREADS))).astype(dtype)
    (found,) = run(shuffling(dtype, warp, read), [x], (x.shape, dtype))
    threads = np.arange(THREADS)
    assert np.array_equal(found, x[:, threads // warp * warp + source(threads % warp, warp)])


def test_a_sum_over_a_warp_in_a_block_of_two_axes() -> None:
    """As CUDA has it, warps are neighbours along x first."""
    warp = width()

    @T.prim_func(private=True, s_tir=True)
    def summed(x: T.Buffer((8, 4, 2), "float32"), y: T.Buffer((8, 4, 2), "float32")):
        T.func_attr({"tirx.noalias": True})
        with T.sblock("root"):
            for z in T.thread_binding(2, "threadIdx.z"):
                for b in T.thread_binding(4, "threadIdx.y"):
                    for a in T.thread_binding(8, "threadIdx.x"):
                        part = T.alloc_buffer((1,), "float32", scope="local")
                        part[0] = x[a, b, z]
                        for step in T.unroll(warp.bit_length() - 1):
                            part[0] = part[0] + T.tvm_warp_shuffle_xor(
                                T.tvm_warp_activemask(), part[0], T.shift_left(1, step), warp, warp
                            )
                        y[a, b, z] = part[0]

    x = RANDOM.integers(-50, 50, (8, 4, 2)).astype(np.float32)
    (found,) = run(summed, [x], (x.shape, "float32"))
    flat = x.transpose(2, 1, 0).reshape(-1, warp)
    expected = np.repeat(flat.sum(axis=1), warp).reshape(2, 4, 8).transpose(2, 1, 0)
    assert np.array_equal(found, expected)


def test_memory_of_a_warp() -> None:
    """TVM keeps it in registers and reads other threads' by shuffles."""
    warp = width()

    @T.prim_func(private=True, s_tir=True)
    def reversed_(x: T.Buffer((ROWS, warp), "float32"), y: T.Buffer((ROWS, warp), "float32")):
        T.func_attr({"tirx.noalias": True})
        with T.sblock("root"):
            for i in T.thread_binding(ROWS, "blockIdx.x"):
                for t in T.thread_binding(warp, "threadIdx.x"):
                    held = T.alloc_buffer((warp,), "float32", scope="warp")
                    held[t] = x[i, t]
                    T.evaluate(T.tvm_storage_sync("warp"))
                    y[i, t] = held[warp - 1 - t]

    x = RANDOM.standard_normal((ROWS, warp)).astype(np.float32)
    (found,) = run(reversed_, [x], (x.shape, "float32"), thread_warp_size=warp)
    assert np.array_equal(found, x[:, ::-1])


def test_subgroups_that_the_device_does_not_have_are_refused_by_width() -> None:
    read, _ = OPERATORS["across"]
    module = build(shuffling("float32", 2 * width(), read, threads=2 * width()))
    x = np.zeros((ROWS, 2 * width()), np.float32)
    here, there = (native.devices()[0][f"{end}_required_subgroup"] for end in ("min", "max"))
    said = f"needs subgroups of {2 * width()} threads, and .* has {here} to {there}"
    with pytest.raises(ValueError, match=said):
        module["main"](*(tvm.runtime.tensor(x, device()) for _ in range(2)))


@pytest.mark.parametrize(
    ("warp", "threads", "said"),
    [(8, 12, "a block of 12 threads that are no whole warps of 8"), (6, 12, "a shuffle among 6 threads")],
)
def test_warps_that_do_not_fit_are_refused_by_name(warp: int, threads: int, said: str) -> None:
    read, _ = OPERATORS["from a lane"]
    with pytest.raises(Unsupported, match=said):
        build(shuffling("float32", warp, read, threads=threads))
