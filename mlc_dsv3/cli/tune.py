"""`mlc_dsv3 tune`: which tiles are fastest for a model's kernels on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mlc_dsv3.cli.arguments import add_context_window, add_ignore_config_field, add_no_mtp, add_quantization
from mlc_dsv3.cli.output import print_json, print_table
from mlc_dsv3.errors import UserError, warn
from mlc_dsv3.output_paths import output_file

if TYPE_CHECKING:
    from mlc_dsv3.compiler.tuning_record import TunedKernel, TuningRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a config.json, or the folder of a checkpoint or an artifact (the demo model)",
    )
    add_quantization(parser, default="the artifact's own, or the target's default")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="target; `mlc_dsv3 devices` lists them (cpu)")
    add_context_window(parser, help="time attention at the end of a context of N tokens (4096 cached tokens)")
    parser.add_argument("--threads", type=int, metavar="N", help="of the device cpu; default: one for each core")
    parser.add_argument(
        "--seconds",
        type=float,
        default=120,
        metavar="N",
        help="time to spend, shared among kernels by what they take of a token (120)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_file,
        metavar="FILE",
        help="the record; what it has for other kernels is kept (the one in your data folder, which `compile` reads)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a kernel and shape")
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Measure, write the record, and print what was gained."""
    from mlc_dsv3.cli.arguments import read_model, required_quantization
    from mlc_dsv3.compiler.targets import resolve_target
    from mlc_dsv3.demo import checkpoint_path

    model = parsed.model or str(checkpoint_path())
    source = read_model(model, parsed.ignore_config_field, without_mtp=parsed.no_mtp)
    target = resolve_target(parsed.device)
    chosen = parsed.quantization or source.quantization or target.default("quantization")
    quantization = required_quantization(chosen, parsed.device)

    from mlc_dsv3.compiler.tuned import user_record
    from mlc_dsv3.compiler.tuning_record import write_record
    from mlc_dsv3.tune.run import tune

    output = parsed.output or output_file(user_record(target))
    record = tune(
        source.config, quantization, target.device, parsed.threads, parsed.seconds, context_window=parsed.context_window
    )
    write_record(_kept(output, record), output)
    if parsed.json:
        print_json([{**asdict(kernel), "gain": kernel.gain} for kernel in record.kernels])
    else:
        print_table([_row(kernel) for kernel in record.kernels], _COLUMNS)
    print(f"written to {output}", file=sys.stderr)


def _kept(output: Path, record: TuningRecord) -> TuningRecord:
    """`record` with what the file already has for other kernels and shapes."""
    from mlc_dsv3.compiler.tuning_record import read_record

    if not output.is_file():
        return record
    try:
        return read_record(output).joined(record)
    except UserError as error:
        warn(f"{output} {error}; it is written anew")
        return record


_COLUMNS = ("kernel", "tile", "decode ms", "tuned", "prefill ms", "tuned", "gain")


def _row(kernel: TunedKernel) -> tuple[str, ...]:
    times = [
        f"{both[index] * 1e3:.3f}" if (both := kernel.seconds.get(regime)) else ""
        for regime in ("decode", "prefill")
        for index in (0, 1)
    ]
    tile = " ".join(f"{name}={value}" for name, value in kernel.tile.items()) or "default"
    return (kernel.kernel, tile, *times, f"{kernel.gain - 1:+.1%}" if kernel.tile else "")
