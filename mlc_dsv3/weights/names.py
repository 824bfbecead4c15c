"""Parameter name → the checkpoint's tensors that it is made of, by rows; and which tensors no parameter takes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from mlc_dsv3.errors import UserError
from mlc_dsv3.weights.checkpoint import Checkpoint
from relax_model.config import ModelConfig
from relax_model.parameters import Parameter, parameters


def sources(parameter: Parameter) -> list[str]:
    """Checkpoint tensors whose rows, one after the other, are the parameter's (…, out) rows.

    Gate's rows come before up's, and experts follow one another.
    """
    if not parameter.matrix:
        return [parameter.name]
    prefix, _, leaf = parameter.name.rpartition(".")
    parts = ["gate_proj", "up_proj"] if leaf == "gate_up_proj" else [leaf]
    if len(parameter.shape) == 2:
        return [f"{prefix}.{part}.weight" if prefix else f"{part}.weight" for part in parts]
    return [f"{prefix}.{expert}.{part}.weight" for expert in range(parameter.shape[0]) for part in parts]


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Raise UserError for the first tensor that is missing, of another shape than `config` says, or not understood."""
    known: set[str] = set()
    for parameter in parameters(config):
        names = sources(parameter)
        for name, shape in zip(names, _source_shapes(parameter, len(names)), strict=True):
            if name not in checkpoint:
                raise UserError(_missing(checkpoint, config, name))
            checkpoint.check(name)
            if checkpoint.shape(name) != shape:
                raise UserError(
                    f"{checkpoint.path}: {name} has shape {checkpoint.shape(name)}; its config.json makes it {shape}"
                )
        known.update(names)
    strangers = list(_not_understood(checkpoint, config, known))
    if strangers:
        others = f" and {len(strangers) - 1} more" if strangers[1:] else ""
        raise UserError(
            f"{checkpoint.path}: {strangers[0]}{others} would change the results and is not understood; "
            "the model differs from what its config.json says"
        )


def _source_shapes(parameter: Parameter, count: int) -> list[tuple[int, ...]]:
    if not parameter.matrix:
        return [parameter.shape]
    *rows, columns = parameter.shape
    return [(math.prod(rows) // count, columns)] * count


def _layer(name: str) -> int | None:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def _missing(checkpoint: Checkpoint, config: ModelConfig, name: str) -> str:
    layer = _layer(name)
    text = f"{checkpoint.path}: tensor {name} is missing"
    if layer is None or layer < config.num_hidden_layers:
        return text
    return f"{text}; config.json announces {config.num_nextn_predict_layers} MTP layer(s): --no-mtp goes without them"


def _not_understood(checkpoint: Checkpoint, config: ModelConfig, known: set[str]) -> Iterator[str]:
    """Tensors of the language model that inference would need to know about."""
    for name in checkpoint.names():
        if name in known or not name.startswith(("model.", "lm_head.")):
            continue
        layer = _layer(name)
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        if layer is not None and layer >= config.num_hidden_layers:
            # An MTP layer repeats the embedding and the head that it shares, and may be left out altogether.
            shared = name.endswith((".embed_tokens.weight", ".shared_head.head.weight"))
            if shared or (layer >= config.num_cached_layers and f"model.layers.{layer}.eh_proj.weight" in checkpoint):
                continue
        yield name
