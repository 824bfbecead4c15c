"""`mlc_dsv3 rebalance`: the routers' correction biases, learnt anew on a text."""

from __future__ import annotations

import argparse
import sys

from mlc_dsv3.cli.arguments import add_context_window, add_ignore_config_field, add_no_mtp, add_quantization
from mlc_dsv3.cli.output import print_json, print_table
from mlc_dsv3.errors import UserError
from mlc_dsv3.output_paths import artifact_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder of a checkpoint or an artifact, or org/name (the demo model)"
    )
    parser.add_argument("--text", metavar="FILE", required=True, help="what to learn from (-: standard input)")
    add_quantization(parser, default="the artifact's own, or 4 bits")
    parser.add_argument(
        "-o",
        "--output",
        type=artifact_folder,
        metavar="DIR",
        help="default: ./<name>-<quantization>-rebalanced-MLC",
    )
    parser.add_argument("--passes", type=int, default=4, metavar="N", help="times to read the text (4)")
    parser.add_argument(
        "--speed", type=float, default=0.001, metavar="X", help="by which a bias moves after 512 tokens (0.001)"
    )
    add_context_window(parser, help="tokens of the text that are read as one (512)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Learn, write the artifact, and print what became of the balance."""
    if parsed.passes < 1:
        raise UserError(f"--passes is {parsed.passes}; it must be at least 1")
    if not 0 < parsed.speed < 1:
        raise UserError(f"--speed is {parsed.speed}; it is a number between 0 and 1")
    from mlc_dsv3.cli.text import read_text
    from mlc_dsv3.experts.reading import reading_room
    from mlc_dsv3.experts.rebalance import rebalance
    from mlc_dsv3.runtime.hub import model_name
    from mlc_dsv3.runtime.prepare import prepare
    from mlc_dsv3.runtime.tokenizer import Tokenizer

    text = read_text(parsed.text, "--text")
    tokens: list[int] = []
    prepared = prepare(
        parsed.model,
        parsed.quantization,
        "cpu",
        None,
        ignore_config_fields=parsed.ignore_config_field,
        room=reading_room(parsed.context_window),
        without_mtp=parsed.no_mtp,
        # A tokenizer that is missing is told before minutes of conversion.
        before_making=lambda folder: tokens.extend(Tokenizer.load(folder).encode(text)),
    )
    name = "demo" if parsed.model is None else model_name(parsed.model)
    output = parsed.output or artifact_folder(f"{name}-{prepared.artifact.quantization}-rebalanced-MLC")
    found = rebalance(
        prepared.artifact,
        prepared.library,
        tokens,
        output,
        passes=parsed.passes,
        speed=parsed.speed,
        context_window=parsed.context_window,
    )
    if parsed.json:
        print_json(
            {
                "output": str(output),
                "learnt_tokens": found.learnt_tokens,
                "held_out_tokens": found.held_out_tokens,
                "divergence": found.divergence,
                "before": found.before.describe(),
                "after": found.after.describe(),
            }
        )
        return
    rows = [
        (str(layer), f"{before:.0%}", f"{after:.0%}")
        for layer, before, after in zip(found.before.layers, found.before.violation, found.after.violation, strict=True)
    ]
    print_table(rows, ("layer", "busiest expert above the mean", "afterwards"))
    print(
        f"on {found.held_out_tokens} tokens that were not learnt from; KL divergence {found.divergence:.5f} nats",
        file=sys.stderr,
    )
    print(f"written to {output}", file=sys.stderr)
