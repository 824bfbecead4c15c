"""`mlc_dsv3 compile`: a model's configuration into a native library for one device."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlc_dsv3.cli.arguments import add_cache_dtype, add_ignore_config_field, add_quantization


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument("model", metavar="MODEL", help="a config.json, or the folder of a checkpoint or an artifact")
    add_quantization(parser, default="required, except for an artifact, which states its own")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="target; `mlc_dsv3 devices` lists them (cpu)")
    parser.add_argument("-o", "--output", type=Path, metavar="LIB", help="default: ./<name>-<quantization>-<device>.so")
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
    parser.add_argument("--context-window", type=int, metavar="N", help="longest context in tokens (the model's own)")
    add_cache_dtype(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Compile and print the library's path."""
    from mlc_dsv3.cli.arguments import read_model, required_quantization

    source = read_model(parsed.model, parsed.ignore_config_field)
    quantization = required_quantization(parsed.quantization or source.quantization)
    suffix = "dylib" if sys.platform == "darwin" else "so"
    output = parsed.output or Path(f"{source.name}-{quantization}-{parsed.device}.{suffix}")

    from mlc_dsv3.compiler import compile_model

    print(
        compile_model(
            source.config,
            quantization,
            parsed.device,
            output,
            level=parsed.level,
            context_window=parsed.context_window,
            cache_dtype=parsed.cache_dtype,
            architectures=parsed.arch.split(",") if parsed.arch else None,
        )
    )
