"""`mlc_dsv3 bench`: speed beside the memory's limit, and the demo's quality in each quantization."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from mlc_dsv3.cli.output import print_json, print_table, size
from mlc_dsv3.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or org/name (the demo model)")
    parser.add_argument("--model-config", metavar="FILE", help="bench this config.json with --random-weights")
    parser.add_argument("--random-weights", action="store_true", help="no checkpoint: weights of random content")
    parser.add_argument(
        "--quantization", metavar="NAMES", help="one or more, with commas between (the target's default)"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="where to run (auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: one for each core")
    parser.add_argument("--prefill", type=int, default=512, metavar="N", help="prompt tokens to measure with (512)")
    parser.add_argument("--decode", type=int, default=64, metavar="N", help="tokens to decode one by one (64)")
    parser.add_argument("--depth", default="0", metavar="N,N", help="tokens cached before each measurement (0)")
    parser.add_argument(
        "--quality", action="store_true", help="the demo's held-out questions and divergence from q0f32, too"
    )
    parser.add_argument("--questions", type=int, default=2000, metavar="N", help="how many with --quality (2000)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a measurement")


def run(parsed: argparse.Namespace) -> None:
    """Measure and print a table or JSON."""
    from relax_model.layout import layout_of

    if parsed.random_weights != (parsed.model_config is not None):
        raise UserError("--model-config and --random-weights go together; a checkpoint or artifact needs neither")
    if parsed.quality and (parsed.model or parsed.model_config):
        raise UserError("--quality measures the demo model; leave the model out")
    quantizations = [name for name in (parsed.quantization or "").split(",") if name]
    for name in quantizations:
        layout_of(name)
    settings = {
        "device": parsed.device,
        "prefill": _count(parsed.prefill, "--prefill"),
        "decode": _count(parsed.decode, "--decode"),
        "depths": _depths(parsed.depth),
        "threads": parsed.threads,
    }
    if parsed.quality:
        _quality(parsed, quantizations, settings)
        return
    results = _speed(parsed, quantizations, settings)
    if parsed.json:
        print_json(results)
    else:
        print_table([_row(result) for result in results], _COLUMNS)


_COLUMNS = ("measure", "quantization", "depth", "tok/s", "MB a token", "GB/s", "limit GB/s", "share")


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    bound = result["share_of_limit"] is not None
    return (
        result["kind"],
        result["quantization"],
        str(result["depth"]),
        f"{result['tokens_per_second']:.1f}",
        f"{result['bytes_per_token'] / 1e6:.1f}" if bound else "",
        f"{result['gb_per_second']:.2f}" if bound else "",
        f"{result['limit_gb_per_second']:.1f}",
        f"{result['share_of_limit']:.0%}" if bound else "",
    )


def _speed(parsed: argparse.Namespace, quantizations: list[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    from mlc_dsv3.bench.run import bench_model, bench_random

    if parsed.model_config is None:
        return bench_model(parsed.model, quantizations, **settings)
    from mlc_dsv3.cli.arguments import read_model

    source = read_model(parsed.model_config, ())
    return bench_random(source.config, source.name, quantizations, **settings)


def _quality(parsed: argparse.Namespace, quantizations: list[str], settings: dict[str, Any]) -> None:
    from mlc_dsv3.bench.quality import measure_quality
    from relax_model.layout import QUANTIZATIONS

    found = measure_quality(quantizations or list(QUANTIZATIONS), _count(parsed.questions, "--questions"))
    for quality in found:
        quality.speed = _speed(parsed, [quality.quantization], settings)
    if parsed.json:
        print_json([asdict(quality) for quality in found])
        return
    columns = ("quantization", "size", "right", "KL (nats)", "load s", "prefill tok/s", "decode tok/s")
    print_table(
        [
            (
                quality.quantization,
                size(quality.size_bytes),
                f"{quality.accuracy:.1%}",
                f"{quality.divergence:.5f}",
                f"{quality.load_seconds:.3f}",
                *(f"{measured['tokens_per_second']:.0f}" for measured in quality.speed[:2]),
            )
            for quality in found
        ],
        columns,
    )
    print()
    kinds = list(found[0].accuracy_by_kind)
    rows = [
        (
            kind,
            f"{found[0].commonest_by_kind[kind]:.1%}",
            *(f"{quality.accuracy_by_kind[kind]:.1%}" for quality in found),
        )
        for kind in kinds
    ]
    print_table(rows, ("right answers by kind", "commonest answer", *(quality.quantization for quality in found)))


def _count(value: int, option: str) -> int:
    if value < 1:
        raise UserError(f"{option} is {value}; it must be at least 1")
    return value


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = [-1]
    if min(depths) < 0:
        raise UserError(f"--depth is {text!r}; it takes whole numbers with commas between, such as 0,4096")
    return depths
