"""`mlc_dsv3 inspect`: what an artifact or a compiled library holds."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from mlc_dsv3.cli.output import print_json, print_table, size
from mlc_dsv3.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument("path", type=Path, metavar="ARTIFACT_OR_LIB", help="an artifact's folder or a compiled library")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--verify", action="store_true", help="compare an artifact's files with their checksums first")


def run(parsed: argparse.Namespace) -> None:
    """Print a table of what is most asked for, or JSON with every parameter."""
    if not parsed.path.exists():
        raise UserError(f"{parsed.path} does not exist; inspect takes an artifact's folder or a compiled library")
    if parsed.path.is_dir():
        content = _artifact(parsed.path, parsed.verify)
    elif parsed.verify:
        raise UserError(f"{parsed.path} is a library; --verify compares an artifact's files with their checksums")
    else:
        from mlc_dsv3.runtime.library import read_metadata

        content = {"kind": "library", "path": str(parsed.path), **read_metadata(parsed.path)}
    if parsed.json:
        print_json(content)
    else:
        print_table((name, _phrase(name, value)) for name, value in content.items())


def _artifact(path: Path, verify: bool) -> dict[str, Any]:
    from mlc_dsv3.weights import Artifact
    from relax_model.parameters import parameters

    artifact = Artifact.open(path)
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
            {field: record[field] for field in ("name", "shape", "dtype", "nbytes")}
            for shard in artifact.shards
            for record in shard["records"]
        ],
    }


def _phrase(name: str, value: Any) -> str:
    """A value for the table, on one line."""
    if name == "parameters":
        return f"{len(value)} arrays (--json lists them)"
    if name == "nbytes":
        return size(value)
    if name == "parameter_count":
        return f"{value:,}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)
