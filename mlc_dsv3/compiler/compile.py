"""One configuration, one quantization, one target → one native library, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from mlc_dsv3.compiler.device_kernels import DeviceKernel, watched
from mlc_dsv3.compiler.disk_space import refuse_full
from mlc_dsv3.compiler.dump import Dump
from mlc_dsv3.compiler.link import find_linker, link
from mlc_dsv3.compiler.metadata import describe
from mlc_dsv3.compiler.note import write_note
from mlc_dsv3.compiler.targets import CompileTarget, resolve_target
from mlc_dsv3.compiler.tuned import find_tuned
from mlc_dsv3.cuda.nvcc import number
from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import import_tvm, temporary_folder
from mlc_dsv3.output_paths import folder_made, output_file
from mlc_dsv3.progress import progress
from relax_model.config import ModelConfig
from relax_model.layout import layout_of

if TYPE_CHECKING:
    import tvm

    from relax_model.graph import BuildOptions


def compile_model(
    config: ModelConfig,
    quantization: str,
    device: str,
    output: Path,
    *,
    level: str | None = None,
    context_window: int | None = None,
    cache_dtype: str | None = None,
    architectures: Sequence[str] | None = None,
    host: str | None = None,
    dump: Path | None = None,
) -> Path:
    """Compile `config` for `device` and write the library to `output`, under a temporary name until it is whole.

    `level` is one of the target's (default: what fits this machine). `context_window` in tokens is the longest sequence
    that the runtime accepts (default: the model's own); `cache_dtype` is the latent cache's (default: the target's for
    this quantization); `architectures` are CUDA's; `host` is the kind of machine that the library is for (default: this
    one, or the target's own). A folder `dump` gets the IR after each phase and the kernels' source. Raises UserError
    for an unknown device, level, quantization, dtype, architecture or host, a context over the model's, a kernel that
    takes more than the target has, a path that cannot be written, a machine that cannot link, or a disk that is full.
    """
    target = resolve_target(device, level, cache_dtype, architectures, host)
    window = config.max_position_embeddings if context_window is None else context_window
    if not 1 <= window <= config.max_position_embeddings:
        raise UserError(f"context window {window} is outside the model's 1 to {config.max_position_embeddings} tokens")
    layout_of(quantization)
    output = output_file(output)
    find_linker(target.host)
    check_backend(target)
    import_tvm()
    with folder_made(output.parent):
        refuse_full(output.parent)
        if target.family != "cpu":
            refuse_full(temporary_folder())  # where the compilers of kernels write
        _compile(config, quantization, target, output, window, Dump(dump))
    return output


def _compile(
    config: ModelConfig, quantization: str, target: CompileTarget, output: Path, window: int, dumped: Dump
) -> None:
    """`compile_model` after its checks."""
    with progress(f"Compiling for {target.level}", total=4) as advance:
        from tvm import relax

        from mlc_dsv3.compiler.pipeline import add_metadata, lower
        from relax_model.model import build_module

        tuned = find_tuned(target)
        options = build_options(target, quantization, tuned.tiles)
        used: set[str] = set()
        module = build_module(config, options, lambda _, call: used.add(call.key))
        tuned.warn_unless_for(used)
        dumped.module("1-model", module)
        advance(1)
        metadata = describe(config, quantization, options, target, window, used & options.tuned.keys())
        module = lower(add_metadata(module, metadata.to_json()))
        dumped.module("2-lowered", module)
        advance(1)
        with backend(target) as kernels:
            executable = relax.build(module, tvm_target(target), relax_pipeline=None)
        dumped.executable(executable)
        advance(1)
        content = {
            "metadata": asdict(metadata),
            "operators": sorted(used),
            "kernels": [asdict(kernel) for kernel in kernels],
        }
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".compile-") as folder:
            note = write_note(content, Path(folder) / "note.c")

            def link_all(library: str, objects: list[str], *_: object, **__: object) -> None:
                link(Path(library), [*map(Path, objects), note], target.host)

            partial = Path(folder) / f"library.{target.host.suffix}"
            executable.export_library(str(partial), fcompile=link_all, workspace_dir=folder)
            os.replace(partial, output)
        advance(1)


def build_options(
    target: CompileTarget, quantization: str, tuned: Mapping[str, Mapping[str, int]] | None = None
) -> BuildOptions:
    """The model's BuildOptions for a target and a quantization; `tuned` as `TunedTiles` has it."""
    from relax_model.graph import BuildOptions
    from relax_model.kernels.cpu_tiles import CpuTile
    from relax_model.kernels.gpu_tiles import GpuTile

    tile = CpuTile if target.family == "cpu" else GpuTile
    return BuildOptions(
        layout=layout_of(quantization),
        family=target.family,
        page_size=target.default("page_size"),
        cache_dtype=target.cache_dtype(quantization),
        max_rows=target.default("max_rows"),
        prefill_block=target.default("prefill_block"),
        tile=tile(**dict(target.tuned)),
        tuned=MappingProxyType({kernel: MappingProxyType(dict(tile)) for kernel, tile in (tuned or {}).items()}),
    )


def check_backend(target: CompileTarget) -> None:
    """UserError where what TVM does not bring for a target is not there."""
    if target.device == "vulkan":
        from mlc_dsv3.vulkan import native, spirv

        if reason := native.not_built():
            raise UserError(reason)
        spirv.tools()
    if target.device == "cuda":
        from mlc_dsv3.cuda import driver, nvcc

        if reason := driver.not_built():
            raise UserError(reason)
        nvcc.refuse_unknown(target.architectures)


@contextmanager
def backend(target: CompileTarget) -> Iterator[list[DeviceKernel]]:
    """What has to be open around TVM's build for a target; a GPU's kernels are in the list then."""
    if target.family == "cpu":
        yield []
        return
    with _code_generation(target), watched(target.device) as kernels:
        yield kernels


def _code_generation(target: CompileTarget) -> AbstractContextManager[None]:
    if target.device == "cuda":
        from mlc_dsv3.cuda.build import machine_code

        return machine_code(target.architectures)
    if target.device == "metal":
        from mlc_dsv3.metal.source import completed_source

        return completed_source()
    return nullcontext()


def tvm_target(target: CompileTarget) -> tvm.target.Target:
    """TVM's Target: the architecture and exactly the features of the level, no processor model beside them; on a GPU,
    the device's attributes, and a plain processor as its host."""
    import tvm

    triple = target.host.triple
    if target.family != "cpu":
        attributes = dict(target.tvm)
        if target.architectures:
            # What the code generator may take for granted; nvcc has the architectures themselves.
            attributes["arch"] = f"sm_{min(map(number, target.architectures))}"
        return tvm.target.Target(attributes, host=tvm.target.Target({"kind": "llvm", "mtriple": triple}))
    features = [f"+{feature}" for feature in target.features]
    return tvm.target.Target({**dict(target.tvm), "mtriple": triple, "mattr": features})
