"""Where a model's tensors live: on the CPU NumPy's arrays themselves, on a GPU copies of them."""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.aligned import ALIGNMENT, aligned_zeros
from mlc_dsv3.runtime.available import available_memory, gib
from mlc_dsv3.runtime.virtual_machine import DEVICE_CODES, load_runtime


class Memory(Protocol):
    """One device's."""

    def place(self, arrays: list[np.ndarray]) -> list[Any]:
        """Tensors that last: parameters. On the CPU they are the arrays, which must be aligned to 64 bytes."""

    def pass_in(self, array: np.ndarray, dtype: str) -> Any:
        """A tensor for one step, as `dtype`."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A tensor to be written, of zeros where it is the host's."""

    def read(self, tensor: Any) -> np.ndarray:
        """A tensor's values; on the CPU its own memory."""

    def write(self, tensor: Any, values: np.ndarray) -> None:
        """New values for the whole of a tensor."""

    def read_rows(self, tensor: Any, rows: Sequence[int]) -> np.ndarray:
        """A copy of some rows of a tensor's first axis."""

    def write_rows(self, tensor: Any, rows: Sequence[int], values: np.ndarray) -> None:
        """New values for some rows of a tensor's first axis."""

    def wait(self) -> None:
        """Return once all that was started has run."""

    def launches(self) -> int:
        """How many times a kernel was started on the device since the process began; 0 on the CPU."""

    def available(self) -> int:
        """Bytes that caches may share."""


def memory_of(device: str) -> Memory:
    """The memory of a device by its name. UserError where it is not there."""
    return HostMemory() if device == "cpu" else DeviceMemory(device)


class HostMemory:
    """The CPU's: nothing is copied but a step's inputs, for their alignment."""

    def place(self, arrays: list[np.ndarray]) -> list[Any]:
        """See `Memory`."""
        import tvm_ffi

        assert all(array.ctypes.data % ALIGNMENT == 0 for array in arrays)
        return [tvm_ffi.from_dlpack(array) for array in arrays]

    def pass_in(self, array: np.ndarray, dtype: str) -> Any:
        """See `Memory`."""
        tensor = self.empty(array.shape, dtype)
        self.read(tensor)[...] = array
        return tensor

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """See `Memory`."""
        import tvm_ffi

        return tvm_ffi.from_dlpack(aligned_zeros(shape, dtype))

    def read(self, tensor: Any) -> np.ndarray:
        """See `Memory`."""
        return np.from_dlpack(tensor)

    def write(self, tensor: Any, values: np.ndarray) -> None:
        """See `Memory`."""
        self.read(tensor)[...] = values

    def read_rows(self, tensor: Any, rows: Sequence[int]) -> np.ndarray:
        """See `Memory`."""
        return self.read(tensor)[list(rows)]

    def write_rows(self, tensor: Any, rows: Sequence[int], values: np.ndarray) -> None:
        """See `Memory`."""
        self.read(tensor)[list(rows)] = values

    def wait(self) -> None:
        """See `Memory`: calls return when they are through."""

    def launches(self) -> int:
        """See `Memory`."""
        return 0

    def available(self) -> int:
        """See `Memory`."""
        return available_memory()


_DRIVERS = {"vulkan": "mlc_dsv3.vulkan.native", "cuda": "mlc_dsv3.cuda.driver", "metal": "mlc_dsv3.metal.driver"}


def driver_of(device: str) -> ModuleType:
    """What knows of a GPU: `first_device`, `launches`, `free_memory` and `shares_memory`."""
    return importlib.import_module(_DRIVERS[device])


class DeviceMemory:
    """A GPU's, through TVM's device API."""

    def __init__(self, device: str) -> None:
        load_runtime()
        import tvm_ffi

        self._driver = driver_of(device)
        self._driver.first_device()
        self._device = tvm_ffi.device(device, 0)
        self._device_name = device
        self._allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        # Waits for nothing, unlike the copying of bytes; what is given may change at once.
        self._copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
        self._wait = tvm_ffi.get_global_func("runtime.Device_StreamSync")
        self._view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
        self._copy_out = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
        assert self._device.dlpack_device_type() == DEVICE_CODES[device]

    def place(self, arrays: list[np.ndarray]) -> list[Any]:
        """See `Memory`. UserError, before anything is copied, where they do not fit."""
        placed, needed, free = [], sum(array.nbytes for array in arrays), self.available()
        if needed > free:
            raise UserError(
                f"the model's weights take {gib(needed)}, and {gib(free)} of {self._device_name}'s memory are free; "
                "take a quantization of fewer bits, a smaller model or the device cpu"
            )
        with progress(f"Loading to {self._device_name}", total=needed) as advance:
            for array in arrays:
                placed.append(self.pass_in(array, str(array.dtype)))
                advance(array.nbytes)
        return placed

    def pass_in(self, array: np.ndarray, dtype: str) -> Any:
        """See `Memory`."""
        tensor = self.empty(array.shape, dtype)
        self.write(tensor, array)
        return tensor

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """See `Memory`."""
        import tvm_ffi

        return self._allocate(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), self._device, None)

    def read(self, tensor: Any) -> np.ndarray:
        """See `Memory`."""
        values = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._copy_out(tensor, ctypes.c_void_p(values.ctypes.data), values.nbytes)
        return values

    def write(self, tensor: Any, values: np.ndarray) -> None:
        """See `Memory`."""
        import tvm_ffi

        values = np.require(values, str(tensor.dtype), ["C", "W"])
        self._copy(tvm_ffi.from_dlpack(values), tensor)

    def read_rows(self, tensor: Any, rows: Sequence[int]) -> np.ndarray:
        """See `Memory`."""
        return np.stack([self.read(self._row(tensor, row)) for row in rows])

    def write_rows(self, tensor: Any, rows: Sequence[int], values: np.ndarray) -> None:
        """See `Memory`."""
        for row, value in zip(rows, values, strict=True):
            self.write(self._row(tensor, row), value)

    def _row(self, tensor: Any, row: int) -> Any:
        """One row of a tensor's first axis, in the tensor's own memory."""
        import tvm_ffi

        shape = tuple(tensor.shape)[1:]
        nbytes = math.prod(shape) * np.dtype(str(tensor.dtype)).itemsize
        return self._view(tensor, tvm_ffi.Shape(shape), tensor.dtype, row * nbytes)

    def wait(self) -> None:
        """See `Memory`."""
        self._wait(self._device, 0)

    def launches(self) -> int:
        """See `Memory`."""
        return self._driver.launches()

    def available(self) -> int:
        """See `Memory`. On a device that shares the host's, no more than the host has left."""
        free = self._driver.free_memory()
        return min(free, available_memory()) if self._driver.shares_memory() else free
