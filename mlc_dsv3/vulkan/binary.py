"""The bytes of a module of kernels, as the native part reads them (`native/module.cc`)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from mlc_dsv3.vulkan.glsl.shader import Shader

_MAGIC = "mlc_vulkan 2"
_AXES = (*(f"blockIdx.{axis}" for axis in "xyz"), *(f"threadIdx.{axis}" for axis in "xyz"))
_AXIS_OF = {name: number for number, name in enumerate((*_AXES, "tirx.use_dyn_shared_memory"))}


def module_bytes(kernels: Sequence[tuple[Shader, Sequence[str], bytes]]) -> bytes:
    """The bytes of (shader, its launch parameters by TVM's names, SPIR-V)."""
    parts = [_text(_MAGIC.encode()), struct.pack("<I", len(kernels))]
    for shader, launch, spirv in kernels:
        parts += [
            _text(shader.name.encode()),
            struct.pack("<IIBI", shader.arguments_size, shader.block_offset, shader.indirect, shader.subgroup_size),
            struct.pack("<I", len(shader.arguments)),
            *(struct.pack("<BBH", each.kind, each.written, each.offset) for each in shader.arguments),
            _text(bytes(_AXIS_OF[name] for name in launch)),
            _text(spirv),
        ]
    return b"".join(parts)


def _text(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
