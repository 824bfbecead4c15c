"""`mlc_dsv3 compile`: a model's configuration into a native library for one device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlc_dsv3.cli.arguments import (
    add_cache_dtype,
    add_context_window,
    add_ignore_config_field,
    add_no_mtp,
    add_quantization,
)
from mlc_dsv3.errors import UserError
from mlc_dsv3.output_paths import output_file, output_folder

if TYPE_CHECKING:
    from mlc_dsv3.cli.arguments import ModelSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a config.json, or the folder of a checkpoint or an artifact")
    add_quantization(parser, default="required, except for an artifact, which states its own")
    parser.add_argument("--device", metavar="NAME", help="target; `mlc_dsv3 devices` lists them (cpu)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="LIB",
        help="default: ./<name>-<quantization>-<device>.so; with --all a folder, ./<name>-<quantization>-libraries",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="a library for every level of every device on every kind of machine, or of those that --device and --host "
        "name, and a manifest beside them",
    )
    parser.add_argument(
        "--level",
        "--target-cpu",
        metavar="NAME",
        help="of processor or GPU, as x86-64-avx2 or discrete-32 (this machine's)",
    )
    parser.add_argument(
        "--arch",
        metavar="NAMES",
        help="of the device cuda: architectures to hold machine code for, as sm_80,sm_90a (this machine's GPU's, else "
        "all that the target describes); later ones run the PTX",
    )
    parser.add_argument(
        "--host",
        metavar="NAME",
        help="kind of machine that the library is for: x86_64-linux, aarch64-linux, arm64-macos, x86_64-windows (this "
        "one; metal's is arm64-macos)",
    )
    parser.add_argument(
        "--debug-dump",
        type=output_folder,
        metavar="FOLDER",
        help="write the IR after each phase, and the kernels' source",
    )
    add_context_window(parser, help="longest context in tokens (the model's own)")
    add_cache_dtype(parser)
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Compile and print the library's path."""
    from mlc_dsv3.cli.arguments import read_model, required_quantization

    if parsed.output:
        (output_folder if parsed.all else output_file)(parsed.output)
    source = read_model(parsed.model, parsed.ignore_config_field, without_mtp=parsed.no_mtp)
    quantization = required_quantization(parsed.quantization or source.quantization)
    architectures = parsed.arch.split(",") if parsed.arch else None
    if parsed.all:
        print(_compile_all(parsed, source, quantization, architectures))
        return

    from mlc_dsv3.compiler import compile_model
    from mlc_dsv3.compiler.targets import host_of

    device = parsed.device or "cpu"
    suffix = host_of(device, parsed.host).suffix
    print(
        compile_model(
            source.config,
            quantization,
            device,
            parsed.output or Path(f"{source.name}-{quantization}-{device}.{suffix}"),
            level=parsed.level,
            context_window=parsed.context_window,
            cache_dtype=parsed.cache_dtype,
            architectures=architectures,
            host=parsed.host,
            dump=parsed.debug_dump,
        )
    )


def _compile_all(
    parsed: argparse.Namespace, source: ModelSource, quantization: str, architectures: list[str] | None
) -> Path:
    for option, value in (("--level", parsed.level), ("--debug-dump", parsed.debug_dump)):
        if value is not None:
            raise UserError(f"{option} is for one library; leave it out beside --all")
    from mlc_dsv3.compiler.matrix import compile_matrix, entries

    return compile_matrix(
        source.config,
        source.name,
        quantization,
        parsed.output or Path(f"{source.name}-{quantization}-libraries"),
        entries(parsed.device, parsed.host),
        context_window=parsed.context_window,
        cache_dtype=parsed.cache_dtype,
        architectures=architectures,
    )
