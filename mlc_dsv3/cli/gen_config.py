"""`mlc_dsv3 gen_config`: an artifact's mlc-chat-config.json and tokenizer files, before or after its weights."""

from __future__ import annotations

import argparse

from mlc_dsv3.cli.arguments import add_ignore_config_field, add_no_mtp, add_quantization
from mlc_dsv3.output_paths import artifact_folder, output_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder with config.json and *.safetensors, or org/name"
    )
    add_quantization(parser, default="required")
    parser.add_argument(
        "-o", "--output", type=artifact_folder, metavar="DIR", required=True, help="the artifact's folder"
    )
    parser.add_argument(
        "--context-window",
        "--context-window-size",  # mlc-llm's name
        type=int,
        metavar="N",
        help="tokens (default: the model's own)",
    )
    parser.add_argument("--prefill-chunk-size", type=int, metavar="N", help="tokens of a prompt read at once")
    parser.add_argument("--conv-template", metavar="NAME", help="recorded in the file (default: the checkpoint's own)")
    add_no_mtp(parser)
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Write the files and print the path of mlc-chat-config.json."""
    import json

    from mlc_dsv3.cli.arguments import required_quantization
    from mlc_dsv3.folders import write_whole
    from mlc_dsv3.runtime.hub import model_folder
    from mlc_dsv3.weights import Checkpoint, gen_config
    from mlc_dsv3.weights.files import copy_files

    quantization = required_quantization(parsed.quantization)
    path = output_file(parsed.output / "mlc-chat-config.json")
    checkpoint = Checkpoint.open(
        model_folder(parsed.checkpoint), ignore=parsed.ignore_config_field, without_mtp=parsed.no_mtp
    )
    fields = gen_config(
        checkpoint,
        quantization,
        context_window_size=parsed.context_window,
        prefill_chunk_size=parsed.prefill_chunk_size,
        conv_template=parsed.conv_template,
    )
    parsed.output.mkdir(parents=True, exist_ok=True)
    copy_files(checkpoint.path, fields["tokenizer_files"], parsed.output)
    write_whole(path, (json.dumps(fields, ensure_ascii=False, indent=2) + "\n").encode())
    print(path)
