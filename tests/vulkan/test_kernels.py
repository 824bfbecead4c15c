"""Kernels written out in TIR: what the operators of a library do not show, and what the backend refuses."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from on_device import build, device, needs_vulkan, run
from tvm.script import tirx as T

pytestmark = needs_vulkan
RANDOM = np.random.default_rng(5)
# What a device may lack: narrow memory accesses, and arithmetic in float16.
WITHOUT = {
    "nothing": {},
    "8-bit storage": {"supports_8bit_buffer": False},
    "16-bit storage": {"supports_16bit_buffer": False, "supports_float16": False},
    "float16": {"supports_float16": False},
}


def test_sizes_known_at_run_time() -> None:
    @T.prim_func(s_tir=True)
    def scale(a: T.handle, b: T.handle, n: T.int64):
        A = T.match_buffer(a, (n, 5), "float32")
        B = T.match_buffer(b, (n, 5), "float32")
        for i in T.thread_binding((n + 63) // 64, "blockIdx.x"):
            for t in T.thread_binding(64, "threadIdx.x"):
                if i * 64 + t < n:
                    for j in range(5):
                        B[i * 64 + t, j] = A[i * 64 + t, j] * T.float32(3)

    module = build(scale)
    for n in (1, 64, 1000):
        x = RANDOM.standard_normal((n, 5), np.float32)
        out = tvm.runtime.empty(x.shape, "float32", device())
        module["main"](tvm.runtime.tensor(x, device()), out, n)
        assert np.array_equal(out.numpy(), x * 3)


def test_a_grid_longer_than_the_device_takes_goes_in_parts() -> None:
    blocks = 200_001

    @T.prim_func(s_tir=True)
    def number(a: T.handle):
        A = T.match_buffer(a, (blocks,), "int32")
        for i in T.thread_binding(blocks, "blockIdx.x"):
            for _ in T.thread_binding(1, "threadIdx.x"):
                A[i] = i

    assert np.array_equal(run(number, [], ((blocks,), "int32"))[0], np.arange(blocks))


@pytest.mark.parametrize("lacking", WITHOUT)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float16", "bool"])
def test_narrow_elements_on_devices_with_less(dtype: str, lacking: str) -> None:
    """Neighbours are stored by different threads."""

    @T.prim_func(s_tir=True)
    def copy(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (128,), dtype)
        B = T.match_buffer(b, (128,), dtype)
        for t in T.thread_binding(128, "threadIdx.x"):
            B[127 - t] = A[t]

    x = RANDOM.integers(0, 2 if dtype == "bool" else 100, 128).astype(dtype)
    assert np.array_equal(run(copy, [x], ((128,), dtype), **WITHOUT[lacking])[0], x[::-1])


@pytest.mark.parametrize("lacking", ["nothing", "float16"])
def test_float16_is_rounded_after_every_operation(lacking: str) -> None:
    @T.prim_func(s_tir=True)
    def polynomial(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (64,), "float16")
        B = T.match_buffer(b, (64,), "float16")
        for t in T.thread_binding(64, "threadIdx.x"):
            B[t] = (A[t] * A[t] + T.float16(0.1)) * A[t] - T.float16(2)

    x = RANDOM.standard_normal(64).astype(np.float16)
    expected = (x * x + np.float16(0.1)) * x - np.float16(2)
    found = run(polynomial, [x], ((64,), "float16"), **WITHOUT[lacking])[0]
    # A device may fuse a product and a sum.
    tolerance = 0 if lacking == "float16" else 4e-3
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_vectors_are_loaded_and_stored_whole(dtype: str) -> None:
    @T.prim_func(s_tir=True)
    def double(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (16, 8), dtype)
        B = T.match_buffer(b, (16, 8), dtype)
        for t in T.thread_binding(16, "threadIdx.x"):
            for v in T.vectorized(8):
                B[t, v] = A[t, 7 - v] + A[t, v]

    x = RANDOM.integers(0, 50, (16, 8)).astype(dtype)
    module = build(double)
    assert "ref_" in module.imports[0].inspect_source() and "vec4" in module.imports[0].inspect_source()
    assert np.array_equal(run(double, [x], (x.shape, dtype))[0], x + x[:, ::-1])


def test_words_are_taken_for_bytes_and_halves() -> None:
    @T.prim_func(s_tir=True)
    def bytes_of(a: T.handle, b: T.handle, c: T.handle, d: T.handle):
        A = T.match_buffer(a, (8,), "uint32")
        B = T.match_buffer(b, (8, 4), "int8")
        C = T.match_buffer(c, (8, 2), "float16")
        D = T.match_buffer(d, (8,), "float32")
        for t in T.thread_binding(8, "threadIdx.x"):
            B[t, 0:4] = T.reinterpret("int8x4", A[t])
            C[t, 0:2] = T.reinterpret("float16x2", A[t])
            D[t] = T.reinterpret("float32", T.reinterpret("uint32", T.reinterpret("int8x4", A[t])))

    x = RANDOM.integers(0, 2**30, 8, np.uint32)
    found = run(bytes_of, [x], ((8, 4), "int8"), ((8, 2), "float16"), ((8,), "float32"))
    assert np.array_equal(found[0], x.view(np.int8).reshape(8, 4))
    assert np.array_equal(found[1], x.view(np.float16).reshape(8, 2))
    assert np.array_equal(found[2], x.view(np.float32))


def test_shared_memory_is_used_again_for_another_type() -> None:
    @T.prim_func(s_tir=True)
    def twice(a: T.handle, b: T.handle, c: T.handle):
        A = T.match_buffer(a, (64,), "float32")
        B = T.match_buffer(b, (64,), "float16")
        C = T.match_buffer(c, (64,), "int64")
        for t in T.thread_binding(64, "threadIdx.x"):
            S = T.alloc_buffer((64,), "float32", scope="shared.dyn")
            H = T.alloc_buffer((64,), "float16", scope="shared.dyn")
            W = T.alloc_buffer((64,), "int64", scope="shared.dyn")
            L = T.alloc_buffer((1,), "float32", scope="local")
            S[t] = A[t]
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            L[0] = S[63 - t]
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            H[t] = T.Cast("float16", L[0])
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            B[t] = H[(t + 1) % 64]
            L[0] = T.Cast("float32", H[t])
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            W[t] = T.Cast("int64", L[0]) * T.int64(10000000000)
            T.evaluate(T.tvm_storage_sync("shared.dyn"))
            C[t] = W[63 - t]

    x = RANDOM.integers(-100, 100, 64).astype(np.float32)
    found = run(twice, [x], ((64,), "float16"), ((64,), "int64"))
    assert np.array_equal(found[0], np.roll(x[::-1], -1).astype(np.float16))
    assert np.array_equal(found[1], x.astype(np.int64) * 10_000_000_000)  # reversed twice


def test_a_guard_keeps_what_it_guards_from_being_read() -> None:
    @T.prim_func(s_tir=True)
    def shifted(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (32,), "float32")
        B = T.match_buffer(b, (32,), "int32")
        for t in T.thread_binding(32, "threadIdx.x"):
            B[t] = T.if_then_else(t > 1000000, T.Cast("int32", A[t * 100000000]), t)
            if t >= 30 and T.if_then_else(t > 3, A[t], T.float32(0)) > T.float32(0):
                B[t] = -1

    x = np.ones(32, np.float32)
    assert run(shifted, [x], ((32,), "int32"))[0].tolist() == [*range(30), -1, -1]


def test_loops_that_end_early() -> None:
    @T.prim_func(s_tir=True)
    def collatz(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (32,), "int32")
        B = T.match_buffer(b, (32,), "int32")
        for t in T.thread_binding(32, "threadIdx.x"):
            N = T.alloc_buffer((1,), "int32", scope="local")
            N[0] = A[t]
            B[t] = 0
            while N[0] != 1:
                N[0] = T.if_then_else(N[0] % 2 == 0, N[0] // 2, N[0] * 3 + 1)
                B[t] = B[t] + 1

    def steps(n: int) -> int:
        count = 0
        while n != 1:
            n, count = (n // 2 if n % 2 == 0 else n * 3 + 1), count + 1
        return count

    x = np.arange(1, 33, dtype=np.int32)
    assert run(collatz, [x], ((32,), "int32"))[0].tolist() == [steps(n) for n in range(1, 33)]


def test_a_kernel_of_many_arguments() -> None:
    """More than a device takes as push constants: they go through memory."""

    @T.prim_func(s_tir=True)
    def many(
        a0: T.handle,
        a1: T.handle,
        a2: T.handle,
        a3: T.handle,
        a4: T.handle,
        a5: T.handle,
        a6: T.handle,
        a7: T.handle,
        a8: T.handle,
        a9: T.handle,
        b0: T.handle,
        b1: T.handle,
        b2: T.handle,
        b3: T.handle,
        b4: T.handle,
        b5: T.handle,
        b6: T.handle,
        out: T.handle,
    ):
        A0, A1, A2 = T.match_buffer(a0, (8,)), T.match_buffer(a1, (8,)), T.match_buffer(a2, (8,))
        A3, A4, A5 = T.match_buffer(a3, (8,)), T.match_buffer(a4, (8,)), T.match_buffer(a5, (8,))
        A6, A7, A8 = T.match_buffer(a6, (8,)), T.match_buffer(a7, (8,)), T.match_buffer(a8, (8,))
        A9, B0, B1 = T.match_buffer(a9, (8,)), T.match_buffer(b0, (8,)), T.match_buffer(b1, (8,))
        B2, B3, B4 = T.match_buffer(b2, (8,)), T.match_buffer(b3, (8,)), T.match_buffer(b4, (8,))
        B5, B6, OUT = T.match_buffer(b5, (8,)), T.match_buffer(b6, (8,)), T.match_buffer(out, (8,))
        for t in T.thread_binding(8, "threadIdx.x"):
            OUT[t] = (
                A0[t]
                + A1[t]
                + A2[t]
                + A3[t]
                + A4[t]
                + A5[t]
                + A6[t]
                + A7[t]
                + A8[t]
                + A9[t]
                + B0[t]
                + B1[t]
                + B2[t]
                + B3[t]
                + B4[t]
                + B5[t]
                + B6[t]
            )

    inputs = [RANDOM.integers(0, 9, 8).astype(np.float32) for _ in range(17)]
    assert np.array_equal(run(many, inputs, ((8,), "float32"))[0], sum(inputs))


def test_float64_where_the_device_has_it() -> None:
    @T.prim_func(s_tir=True)
    def root(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (16,), "float64")
        B = T.match_buffer(b, (16,), "float64")
        for t in T.thread_binding(16, "threadIdx.x"):
            B[t] = T.sqrt(A[t]) + T.float64(1) / T.float64(3)

    x = RANDOM.random(16)
    np.testing.assert_allclose(run(root, [x], ((16,), "float64"), supports_float64=True)[0], np.sqrt(x) + 1 / 3, 1e-15)
    with pytest.raises(Exception, match="float64, which the device does not compute"):
        build(root, supports_float64=False)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_atomic_sums(dtype: str) -> None:
    @T.prim_func(s_tir=True)
    def histogram(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (1024,), "int32")
        B = T.match_buffer(b, (8,), dtype)
        for i in T.thread_binding(16, "blockIdx.x"):
            for t in T.thread_binding(64, "threadIdx.x"):
                T.evaluate(
                    T.call_intrin(
                        dtype, "tirx.atomic_add", T.address_of(B[A[i * 64 + t]]), T.Cast(dtype, A[i * 64 + t])
                    )
                )

    x = RANDOM.integers(0, 8, 1024).astype(np.int32)
    found = run(histogram, [x, np.zeros(8, dtype)])[1]
    assert np.array_equal(found, np.bincount(x, minlength=8) * np.arange(8))


def refused(function: tvm.tirx.PrimFunc, text: str, **changed: object) -> None:
    with pytest.raises(Exception, match=text):
        build(function, **changed)


def test_what_is_missing_is_refused_by_name() -> None:
    @T.prim_func(s_tir=True)
    def threads(a: T.handle):
        A = T.match_buffer(a, (512,), "float32")
        for t in T.thread_binding(512, "threadIdx.x"):
            A[t] = T.float32(1)

    refused(
        threads, "kernel main_kernel needs 512 threads a block, where the target has 256", max_threads_per_block=256
    )

    @T.prim_func(s_tir=True)
    def shared(a: T.handle):
        A = T.match_buffer(a, (64,), "float32")
        for t in T.thread_binding(64, "threadIdx.x"):
            S = T.alloc_buffer((16384,), "float32", scope="shared")
            S[t * 260] = A[t]
            T.evaluate(T.tvm_storage_sync("shared"))
            A[t] = S[t * 259 + 5]

    refused(shared, "bytes of shared memory, where the target has 32768")

    @T.prim_func(s_tir=True)
    def external(a: T.handle):
        A = T.match_buffer(a, (64,), "float32")
        for t in T.thread_binding(64, "threadIdx.x"):
            A[t] = T.call_pure_extern("float32", "bessel", A[t])

    refused(external, "the external function bessel")

    @T.prim_func(s_tir=True)
    def eight_bit_float(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (64,), "float32")
        B = T.match_buffer(b, (64,), "float4_e2m1fn")
        for t in T.thread_binding(64, "threadIdx.x"):
            B[t] = T.Cast("float4_e2m1fn", A[t])

    refused(eight_bit_float, "values of type float4_e2m1fn")
