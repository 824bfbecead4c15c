"""One kernel of TIR → one compute shader: its text, and how its arguments lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlc_dsv3.vulkan.errors import Unsupported
from mlc_dsv3.vulkan.glsl.buffers import ATOMIC_ADD_FLOAT, WORD_ACCESSES, GlobalBuffer, References
from mlc_dsv3.vulkan.glsl.expressions import INT32, Value
from mlc_dsv3.vulkan.glsl.intrinsics import helpers
from mlc_dsv3.vulkan.glsl.scope import Code
from mlc_dsv3.vulkan.glsl.statements import Statements
from mlc_dsv3.vulkan.glsl.subgroups import find_warps
from mlc_dsv3.vulkan.glsl.types import Features, Scalar, Types, scalar

# What every device takes as push constants, in bytes.
PUSHED = 128
# Kinds of arguments, as the runtime knows them.
POINTER, INT_32, INT_64, FLOAT_32, FLOAT_64 = range(5)
_SIZES = {POINTER: 8, INT_32: 4, INT_64: 8, FLOAT_32: 4, FLOAT_64: 8}
_TYPES = {POINTER: "uint64_t", INT_32: "int", INT_64: "int64_t", FLOAT_32: "float", FLOAT_64: "double"}
_EXTENSIONS = {
    "float16_t": ("GL_EXT_shader_16bit_storage", "GL_EXT_shader_explicit_arithmetic_types_float16"),
    "f16vec": ("GL_EXT_shader_16bit_storage", "GL_EXT_shader_explicit_arithmetic_types_float16"),
    "int16_t": ("GL_EXT_shader_16bit_storage", "GL_EXT_shader_explicit_arithmetic_types_int16"),
    "16vec": ("GL_EXT_shader_16bit_storage", "GL_EXT_shader_explicit_arithmetic_types_int16"),
    "int8_t": ("GL_EXT_shader_8bit_storage", "GL_EXT_shader_explicit_arithmetic_types_int8"),
    "8vec": ("GL_EXT_shader_8bit_storage", "GL_EXT_shader_explicit_arithmetic_types_int8"),
    "gl_Subgroup": ("GL_KHR_shader_subgroup_basic",),
    "subgroupShuffle": ("GL_KHR_shader_subgroup_shuffle",),
}
_ALWAYS = (
    "GL_EXT_buffer_reference",
    "GL_EXT_scalar_block_layout",
    "GL_EXT_shader_explicit_arithmetic_types_int64",
    "GL_EXT_control_flow_attributes",
    "GL_KHR_memory_scope_semantics",
)
_ON_MEMORY = (
    (WORD_ACCESSES, ("load_8", "load_16", "store_8", "store_16")),
    (ATOMIC_ADD_FLOAT, ("atomic_add_float",)),
)
# Kernels of TVM's whose threads pass values on without a barrier: elsewhere than in a warp that runs in step they give
# other values at every run.
_IN_STEP = ("gpu_2d_continuous_cumsum",)
# As CUDA's __syncthreads: what a thread of the block has stored before, in any memory, all of them see.
_BARRIER = """\
void barrier_of_block() {
    controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup,
                   gl_StorageSemanticsShared | gl_StorageSemanticsBuffer, gl_SemanticsAcquireRelease);
}"""


@dataclass(frozen=True)
class Argument:
    """A parameter of a kernel: its kind, whether the kernel writes behind it, and its place among the arguments."""

    kind: int
    written: bool
    offset: int


@dataclass(frozen=True)
class Shader:
    """A kernel's text, and what the runtime needs to call it."""

    name: str
    source: str
    arguments: tuple[Argument, ...]
    arguments_size: int
    block_offset: int  # of the number of the first block of a grid that goes in several parts
    indirect: bool  # the arguments are in memory, and their address is pushed
    subgroup_size: int  # what the kernel requires; 0 for any


def write_shader(name: str, function: Any, features: Features) -> Shader:
    """The shader of a lowered device function. Unsupported, by its name, for what cannot be expressed."""
    try:
        if any(kernel in name for kernel in _IN_STEP):
            raise Unsupported("32 threads that run in step (TVM's running sum over the last axis)")
        return _write(name, function, Types(features))
    except Unsupported as error:
        raise Unsupported(f"kernel {name} needs {error}, which the Vulkan backend does not have") from None


def _write(name: str, function: Any, types: Types) -> Shader:
    code, references = Code(), References()
    warps = find_warps(function.body)
    body = Statements(types, code, references, warps)
    kinds = [_kind(parameter) for parameter in function.params]
    names = [code.name(parameter.name) for parameter in function.params]
    for parameter, kind, argument in zip(function.params, kinds, names, strict=True):
        _enter(body, types, references, parameter, kind, f"args.{argument}")
    body.visit(function.body)
    threads = math.prod(warps.block)
    if threads > types.features.max_threads:
        raise Unsupported(f"{threads} threads a block, where the target has {types.features.max_threads}")
    if body.shared_bytes > types.features.max_shared_memory:
        raise Unsupported(
            f"{body.shared_bytes} bytes of shared memory, where the target has {types.features.max_shared_memory}"
        )

    places, size = _places(kinds)
    block_offset, size = size, size + 4
    members = sorted(
        [(place, f"{_TYPES[kind]} {argument};") for place, kind, argument in zip(places, kinds, names, strict=True)]
        + [(block_offset, "uint first_block;")]
    )
    indirect = size > PUSHED
    text = "\n".join(
        [
            *_head(members, indirect),
            *references.declared.values(),
            *body.shared,
            *([_BARRIER] if body.barriers else []),
            "layout({}) in;".format(
                ", ".join(f"local_size_{axis} = {warps.local_size[i]}" for i, axis in enumerate("xyz"))
            ),
            "void main() {",
            *code.lines,
            "}",
        ]
    )
    for functions, called in _ON_MEMORY:
        if any(f"{name}(" in text for name in called):
            text = text.replace("void main() {", f"{functions}void main() {{")
    text = text.replace("layout(local_size_x", "\n".join([*helpers(text), "layout(local_size_x"]), 1)
    extensions = sorted({*_ALWAYS, *(each for word, needed in _EXTENSIONS.items() if word in text for each in needed)})
    source = "\n".join(["#version 460", *(f"#extension {each} : require" for each in extensions), text]) + "\n"
    arguments = tuple(
        Argument(kind, kind == POINTER and f"args.{argument}" in body.written, place)
        for kind, argument, place in zip(kinds, names, places, strict=True)
    )
    return Shader(name, source, arguments, size, block_offset, indirect, warps.width)


def _kind(parameter: Any) -> int:
    if type(parameter.ty).__name__ == "PointerType":
        return POINTER
    of = scalar(str(parameter.ty.dtype))
    if of.kind == "float":
        return FLOAT_64 if of.bits == 64 else FLOAT_32
    return INT_64 if of.bits == 64 else INT_32


def _enter(body: Statements, types: Types, references: References, parameter: Any, kind: int, text: str) -> None:
    if kind == POINTER:
        scope = str(parameter.ty.storage_scope)
        if scope == "local":
            body.private.add(parameter.__chandle__())
            return
        if scope not in ("", "global"):
            raise Unsupported(f"an argument in {scope} memory")
        pointed = parameter.ty.element_type
        element = scalar(str(pointed.dtype)) if hasattr(pointed, "dtype") else Scalar("uint8", "uint", 8)
        body.enter_buffer(parameter, GlobalBuffer(types, element, text, references))
        return
    of = scalar(str(parameter.ty.dtype))
    passed = {
        INT_32: INT32,
        INT_64: Scalar("int64", "int", 64),
        FLOAT_32: Scalar("float32", "float", 32),
        FLOAT_64: Scalar("float64", "float", 64),
    }[kind]
    body.bind(parameter, Value((types.cast(text, passed, of),), of))


def _places(kinds: list[int]) -> tuple[list[int], int]:
    """Offsets of the arguments, those of eight bytes first, and the bytes of all of them."""
    places, size = [0] * len(kinds), 0
    for width in (8, 4):
        for number, kind in enumerate(kinds):
            if _SIZES[kind] == width:
                places[number], size = size, size + width
    return places, size


def _head(members: list[tuple[int, str]], indirect: bool) -> list[str]:
    inside = "\n".join(f"    layout(offset = {place}) {member}" for place, member in members)
    if not indirect:
        return [f"layout(push_constant, scalar) uniform Arguments {{\n{inside}\n}} args;"]
    return [
        f"layout(buffer_reference, scalar, buffer_reference_align = 16) readonly buffer Arguments {{\n{inside}\n}};",
        "layout(push_constant, scalar) uniform Pushed { Arguments args; };",
    ]
