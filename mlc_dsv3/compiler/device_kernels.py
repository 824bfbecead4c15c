"""What kernels ask of a GPU, read off TIR where host and device have just been parted, and held against its limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc_dsv3.errors import UserError

if TYPE_CHECKING:
    import tvm

_SHARED = ("shared", "shared.dyn")


@dataclass(frozen=True)
class DeviceKernel:
    """One kernel: threads of a block, bytes of memory that these share, and parameters."""

    name: str
    threads: int
    shared_bytes: int
    parameters: int


@contextmanager
def watched(kind: str) -> Iterator[list[DeviceKernel]]:
    """A list that fills with the kernels of what TVM builds inside for a target of this kind.

    UserError, from the build, for a kernel that takes more than the target has.
    """
    import tvm  # noqa: F401  it registers the hook
    import tvm_ffi

    hook = f"target.build.{kind}"
    original = tvm_ffi.get_global_func(hook)
    found: list[DeviceKernel] = []
    refused: list[UserError] = []

    def build(module: tvm.IRModule, target: tvm.target.Target) -> Any:
        kernels = [device_kernel(variable.name_hint, function) for variable, function in module.functions.items()]
        try:
            refuse_over_limits(kernels, {str(name): value for name, value in target.attrs.items()}, kind)
        except UserError as error:
            refused.append(error)
            raise
        found.extend(kernels)
        return original(module, target)

    tvm_ffi.register_global_func(hook, build, override=True)
    try:
        yield found
    except RuntimeError:
        # TVM hands an error of ours on as one of its own.
        if refused:
            raise refused[0] from None
        raise
    finally:
        tvm_ffi.register_global_func(hook, original, override=True)


def device_kernel(name: str, function: tvm.tirx.PrimFunc) -> DeviceKernel:
    """What a device function asks for."""
    import tvm
    import tvm_ffi

    extents: dict[str, int] = {}
    shared: list[int] = []

    def axis(node: tvm.tirx.AttrStmt) -> None:
        if node.attr_key == "thread_extent" and node.node.thread_tag.startswith("threadIdx"):
            extents[node.node.thread_tag] = int(node.value)

    def memory(node: tvm.tirx.AllocBuffer) -> None:
        type_ = node.buffer.ty
        if str(type_.storage_scope) in _SHARED:
            shared.append(math.prod(int(size) for size in type_.shape) * tvm.DataType(str(type_.dtype)).itemsize)

    tvm_ffi.structural_walk(function.body, [(tvm.tirx.AttrStmt, axis), (tvm.tirx.AllocBuffer, memory)])
    symbol = str(function.attrs.get("global_symbol", name))
    return DeviceKernel(symbol, math.prod(extents.values()), sum(shared), len(function.params))


def refuse_over_limits(kernels: list[DeviceKernel], limits: dict[str, Any], kind: str) -> None:
    """UserError, by the kernel's name and the limit, where one takes more than a target has."""
    for kernel in kernels:
        for taken, attribute, what in (
            (kernel.threads, "max_threads_per_block", "threads in a block"),
            (kernel.shared_bytes, "max_shared_memory_per_block", "bytes of shared memory in a block"),
            (kernel.parameters, "max_function_args", "parameters"),
        ):
            limit = limits.get(attribute)
            if limit is not None and taken > int(limit):
                raise UserError(f"kernel {kernel.name} takes {taken} {what}, and {kind} has {int(limit)}")
