"""`mlc_dsv3 convert_weight`: a checkpoint's weights, quantized, as an artifact folder."""

from __future__ import annotations

import argparse

from mlc_dsv3.cli.arguments import add_ignore_config_field, add_no_mtp, add_quantization
from mlc_dsv3.output_paths import artifact_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder with config.json and *.safetensors, or org/name"
    )
    add_quantization(parser, default="required")
    parser.add_argument(
        "--device", metavar="NAME", help="store in the layout that this device reads fastest (mlc-llm's own)"
    )
    parser.add_argument(
        "-o", "--output", type=artifact_folder, metavar="DIR", help="default: ./<name>-<quantization>-MLC"
    )
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Convert and print the artifact's path."""
    from mlc_dsv3.cli.arguments import required_quantization
    from mlc_dsv3.runtime.hub import model_folder, model_name
    from mlc_dsv3.weights import Checkpoint, artifact_name, convert

    quantization = required_quantization(parsed.quantization, parsed.device)
    output = parsed.output or artifact_folder(artifact_name(model_name(parsed.checkpoint), quantization))
    folder = model_folder(parsed.checkpoint)
    checkpoint = Checkpoint.open(folder, ignore=parsed.ignore_config_field, without_mtp=parsed.no_mtp)
    print(convert(checkpoint, quantization, output))
