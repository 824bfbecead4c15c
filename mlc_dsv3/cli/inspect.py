"""`mlc_dsv3 inspect`: what an artifact or a compiled library holds."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from mlc_dsv3.cli.arguments import add_ignore_config_field
from mlc_dsv3.cli.output import print_json, print_table, size
from mlc_dsv3.errors import UserError, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument("path", type=Path, metavar="ARTIFACT_OR_LIB", help="an artifact's folder or a compiled library")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--verify", action="store_true", help="compare an artifact's files with their checksums first")
    add_ignore_config_field(parser)


def run(parsed: argparse.Namespace) -> None:
    """Print a table of what is most asked for, or JSON with every parameter."""
    if not parsed.path.exists():
        raise UserError(f"{parsed.path} does not exist; inspect takes an artifact's folder or a compiled library")
    if parsed.path.is_dir():
        content = _artifact(parsed.path, parsed.verify, parsed.ignore_config_field)
    elif parsed.verify:
        raise UserError(f"{parsed.path} is a library; --verify compares an artifact's files with their checksums")
    elif parsed.ignore_config_field:
        raise UserError(f"{parsed.path} is a library; --ignore-config-field is for an artifact")
    else:
        content = _library(parsed.path)
    if parsed.json:
        print_json(content)
        return
    kernels = content.pop("kernels", [])
    print_table((name, _phrase(name, value)) for name, value in content.items())
    if kernels:
        print()
        print_table([[*kernel.values()] for kernel in kernels], [_COLUMNS[field] for field in kernels[0]])


# A GPU's kernels, for people.
_COLUMNS = {
    "name": "kernel",
    "threads": "threads",
    "shared_bytes": "shared bytes",
    "parameters": "parameters",
    "architecture": "architecture",
    "registers": "registers",
    "stack_bytes": "stack bytes",
}


def _library(path: Path) -> dict[str, Any]:
    """What a library says of itself, on any machine."""
    from mlc_dsv3.compiler.note import read_note

    note = read_note(path)
    kernels = note["kernels"]
    if note["metadata"]["device"] == "cuda":
        kernels = _with_resources(path, kernels)
    return {
        "kind": "library",
        "path": str(path),
        **note["metadata"],
        "operators": note["operators"],
        "kernels": kernels,
    }


def _with_resources(path: Path, kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each architecture, where there is a program that reads its machine code."""
    from mlc_dsv3.cuda.resources import read_resources

    try:
        resources = read_resources(path)
    except UserError as error:
        warn(f"registers are not shown: {error}")
        return kernels
    by_name = {kernel["name"]: kernel for kernel in kernels}
    return [
        {
            **by_name[each.kernel],
            "shared_bytes": each.shared_bytes,
            "architecture": each.architecture,
            "registers": each.registers,
            "stack_bytes": each.stack_bytes,
        }
        for each in resources
    ]


def _artifact(path: Path, verify: bool, ignore: list[str]) -> dict[str, Any]:
    from mlc_dsv3.weights import Artifact
    from relax_model.parameters import parameters

    artifact = Artifact.open(path, ignore=ignore)
    if verify:
        artifact.verify()
    model = artifact.model_config
    return {
        "kind": "artifact",
        "path": str(path),
        "verified": verify,
        "model_type": model.model_type,
        "quantization": artifact.quantization,
        "nbytes": artifact.nbytes,
        "parameter_count": sum(math.prod(parameter.shape) for parameter in parameters(model)),
        "layers": model.num_hidden_layers,
        "mtp_layers": model.num_nextn_predict_layers,
        "hidden_size": model.hidden_size,
        "attention_heads": model.num_attention_heads,
        "experts": model.router.n_routed_experts if model.router else 0,
        "experts_per_token": model.router.num_experts_per_tok if model.router else 0,
        "vocab_size": model.vocab_size,
        "context_window_size": artifact.chat_config.get("context_window_size"),
        "config_digest": model.digest(),
        "tokenizer_files": artifact.chat_config.get("tokenizer_files", []),
        "parameters": [
            {"name": array.name, "shape": array.spec.shape, "dtype": array.spec.dtype, "nbytes": array.nbytes}
            for shard in artifact.shards
            for array in shard.arrays
        ],
    }


_COUNTED = {"parameters": "arrays", "operators": "operators and shapes"}


def _phrase(name: str, value: Any) -> str:
    """A value for the table, on one line."""
    if name in _COUNTED:
        return f"{len(value)} {_COUNTED[name]} (--json lists them)"
    if name == "nbytes":
        return size(value)
    if name == "parameter_count":
        return f"{value:,}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
