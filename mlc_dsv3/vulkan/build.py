"""TVM's hook for code generation: lowered device functions → a module of SPIR-V kernels."""

from __future__ import annotations

from typing import Any

import tvm_ffi

from mlc_dsv3.vulkan.binary import module_bytes
from mlc_dsv3.vulkan.glsl.shader import write_shader
from mlc_dsv3.vulkan.glsl.types import Features
from mlc_dsv3.vulkan.spirv import compile_shaders


def build_module(module: Any, target: Any) -> Any:
    """The runtime module of an IRModule of device functions, after the split of host and device.

    Unsupported for what no shader can express; UserError where the tools that compile shaders are missing.
    """
    features = features_of(target)
    shaders, launches = [], []
    for variable, function in module.functions.items():
        name = str(function.attrs.get("global_symbol", variable.name_hint))
        shaders.append(write_shader(name, function, features))
        launches.append([str(each) for each in function.attrs.get("tirx.kernel_launch_params", [])])
    codes = compile_shaders((shader.name, shader.source) for shader in shaders)
    data = module_bytes(list(zip(shaders, launches, codes, strict=True)))
    source = "\n".join(f"// {shader.name}\n{shader.source}" for shader in shaders)
    return tvm_ffi.get_global_func("mlc_dsv3.vulkan.make_module")(data, source)


def features_of(target: Any) -> Features:
    """What a TVM target of kind vulkan has. What it does not say, it does not have."""
    attrs = target.attrs

    def has(name: str) -> bool:
        return bool(attrs.get(name, False))

    return Features(
        float16=has("supports_float16"),
        float64=has("supports_float64"),
        storage8=has("supports_8bit_buffer"),
        storage16=has("supports_16bit_buffer"),
        max_threads=int(attrs.get("max_threads_per_block", attrs.get("max_num_threads", 256))),
        max_shared_memory=int(attrs.get("max_shared_memory_per_block", 16384)),
    )
