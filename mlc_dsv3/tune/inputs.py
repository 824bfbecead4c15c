"""Arguments to run a kernel on: random, and for decode in so many copies that weights come from memory each time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_dsv3.runtime.aligned import ALIGNMENT, aligned_zeros
from mlc_dsv3.runtime.cache_content import set_scales
from mlc_dsv3.tune.cases import Workload, shape_of
from mlc_dsv3.tune.device import TuneDevice

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

    from relax_model.graph import KernelCall

MOST_COPIES = 128
_BLOCK = 1 << 18  # random values, which are repeated: drawing them takes longer than any kernel


def arguments(func: PrimFunc, call: KernelCall, regime: str, workload: Workload, device: TuneDevice) -> list[list[Any]]:
    """Lists of a call's tensors in the device's memory, outputs included; a pass over all of them is what is timed.

    A regime with many rows has one list: it is bound by arithmetic. Of experts no more are chosen than come to
    `cold_bytes`, by proportionally fewer rows.
    """
    names = [str(parameter.name).lower() for parameter in func.params[: len(call.inputs)]]
    if "starts" in names:
        return _routed(names, call, regime, workload, device)
    if call.operator == "experts":
        return _choosing(names, call, regime, workload, device)
    nbytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in _types(call.inputs, workload.sizes))
    copies = min(MOST_COPIES, -(-device.cold_bytes // nbytes)) if regime == "decode" else 1
    outputs = outputs_of(call, workload.sizes, device)
    return [inputs_of(names, call, workload.sizes, {}, device) + outputs for _ in range(copies)]


def _routed(names: list[str], call: KernelCall, regime: str, workload: Workload, device: TuneDevice) -> list[list[Any]]:
    """The weights of all experts once, and rows that choose others of them each time."""
    types = dict(zip(names, _types(call.inputs, workload.sizes), strict=True))
    experts, top_k = types["starts"][0][0] - 1, types["pairs"][0][1]
    stored = [name for name in ("data", "scale") if name in types]
    nbytes = sum(math.prod(types[name][0]) * np.dtype(types[name][1]).itemsize for name in stored) // experts
    usable = min(experts, max(top_k, -(-device.cold_bytes // nbytes)))
    shared = {name: placed(_filled(*types[name], limit=usable), device) for name in stored}
    rows = workload.rows if regime == "decode" else max(1, workload.rows * usable // experts)
    sizes = {**workload.sizes, "rows": rows}
    lists, outputs = [], outputs_of(call, sizes, device)
    for copy in range(-(-usable // top_k) if regime == "decode" else 1):
        routing = _routing(rows, top_k, experts, usable, copy * top_k)
        pairs, starts = (placed(array, device) for array in routing)
        lists.append(inputs_of(names, call, sizes, {**shared, "pairs": pairs, "starts": starts}, device) + outputs)
    return lists


def _choosing(
    names: list[str], call: KernelCall, regime: str, workload: Workload, device: TuneDevice
) -> list[list[Any]]:
    """The same for kernels that choose by logits: neighbours, which group-limited routing does not part."""
    types = dict(zip(names, _types(call.inputs, workload.sizes), strict=True))
    (rows, experts), top_k = types["logits"][0], call.arguments[1].num_experts_per_tok
    stored = [name for name in names if name.startswith(("up_", "down_"))]
    nbytes = sum(math.prod(types[name][0]) * np.dtype(types[name][1]).itemsize for name in stored) // experts
    shared = {name: placed(_filled(*types[name]), device) for name in stored}
    lists, outputs = [], outputs_of(call, workload.sizes, device)
    passes = max(1, min(experts // top_k, -(-device.cold_bytes // (nbytes * top_k)))) if regime == "decode" else 1
    for copy in range(passes):
        logits = aligned_zeros((rows, experts), "float32")
        chosen = (copy * top_k + np.arange(rows * top_k)).reshape(rows, top_k) % experts
        np.put_along_axis(logits, chosen, 16, axis=1)
        lists.append(
            inputs_of(names, call, workload.sizes, {**shared, "logits": placed(logits, device)}, device) + outputs
        )
    return lists


def _routing(rows: int, top_k: int, experts: int, usable: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Every usable expert in turn: pairs (rows, top-k) by expert, and where each expert's begin."""
    chosen = (first + np.arange(rows * top_k)) % usable
    pairs = np.argsort(chosen, kind="stable").astype(np.int32).reshape(rows, top_k)
    starts = np.searchsorted(np.sort(chosen), np.arange(experts + 1)).astype(np.int32)
    return pairs, starts


def inputs_of(
    names: list[str], call: KernelCall, sizes: dict[str, int], given: dict[str, Any], device: TuneDevice
) -> list[Any]:
    """Tensors of a call's inputs, of these names: those that are `given`, and for the others one sequence's."""
    tensors = []
    for name, (shape, dtype) in zip(names, _types(call.inputs, sizes), strict=True):
        if name in given:
            tensors.append(given[name])
            continue
        if name == "positions":
            array = sizes["depth"] + np.arange(shape[0], dtype=np.int32)
        elif name == "sequences":
            array = np.zeros(shape, np.int32)
        elif name == "pagetable":
            array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        else:
            array = _filled(shape, dtype)
            if name == "cache" and dtype == "int8":
                set_scales(array)
        tensors.append(placed(array, device))
    return tensors


def outputs_of(call: KernelCall, sizes: dict[str, int], device: TuneDevice) -> list[Any]:
    """The same for all lists: a GPU then starts a call when the one before is through, as in a model's step."""
    return [device.memory.empty(shape, dtype) for shape, dtype in _types(call.outputs, sizes)]


def placed(array: np.ndarray, device: TuneDevice) -> Any:
    """A tensor of its values in the device's memory."""
    if array.ctypes.data % ALIGNMENT:
        unaligned, array = array, aligned_zeros(array.shape, str(array.dtype))
        array[...] = unaligned
    (tensor,) = device.memory.place([array])
    return tensor


def _types(types: tuple[Any, ...], sizes: dict[str, int]) -> Iterator[tuple[tuple[int, ...], str]]:
    return ((shape_of(type_, sizes), str(type_.dtype)) for type_ in types)


def _filled(shape: tuple[int, ...], dtype: str, limit: int | None = None) -> np.ndarray:
    """An array of random values, or of zeros that take no memory from its part number `limit` on."""
    array = aligned_zeros(shape, dtype)
    flat = array[:limit].reshape(-1)
    values = _random(dtype, min(_BLOCK, max(1, flat.size)))
    for start in range(0, flat.size, values.size):
        part = flat[start : start + values.size]
        part[...] = values[: part.size]
    return array


def _random(dtype: str, count: int) -> np.ndarray:
    """Values of moderate size in any storage: codes are any bits, bfloat16 has its bits in uint16.

    int32 is an offset, or else the number of a token or row: zero is within all bounds.
    """
    draw = np.random.default_rng(0)
    if dtype == "uint32":
        return draw.integers(0, 2**32, count, np.uint32)
    if dtype == "int32":
        return np.zeros(count, np.int32)
    if dtype == "int8":
        return draw.integers(-127, 128, count, np.int8)
    values = 0.1 * draw.standard_normal(count, np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "uint16" else values.astype(dtype)
