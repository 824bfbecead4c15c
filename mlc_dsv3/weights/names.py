"""Parameter name → the checkpoint's tensors that it is made of, by rows; and which tensors no parameter takes."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlc_dsv3.errors import UserError
from relax_model.config import ModelConfig
from relax_model.fields import named
from relax_model.parameters import Parameter, parameters

if TYPE_CHECKING:
    from mlc_dsv3.weights.checkpoint import Checkpoint


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


def needed(config: ModelConfig) -> Iterator[str]:
    """Every checkpoint tensor that a model is made of."""
    return (name for parameter in parameters(config) for name in sources(parameter))


def stored_mtp_layers(tensors: Container[str], config: ModelConfig, path: Path) -> int:
    """How many of the MTP layers that `config` announces are among the checkpoint's `tensors`.

    Copies of the embedding and of the head do not make a layer. UserError for a layer that is there in part.
    """
    first = config.num_hidden_layers
    layers: dict[int, list[str]] = {layer: [] for layer in range(first, config.num_cached_layers)}
    for name in needed(config):
        layer = _layer(name)
        if layer is not None and layer >= first:
            layers[layer].append(name)
    stored = [layer for layer, names in layers.items() if any(name in tensors for name in names)]
    count = max(stored, default=first - 1) + 1 - first
    absent = [name for layer in range(first, first + count) for name in layers[layer] if name not in tensors]
    if absent:
        raise UserError(f"{path}: the MTP layer lacks {_listed(absent)}; --no-mtp leaves the layer out")
    return count


def _listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if names[3:] else shown


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Raise UserError for the first tensor that is missing, of another shape than `config` says, or not understood."""
    known: set[str] = set()
    for parameter in parameters(config):
        names = sources(parameter)
        for name, shape in zip(names, _source_shapes(parameter, len(names)), strict=True):
            if name not in checkpoint:
                raise UserError(f"{checkpoint.path}: tensor {name} is missing")
            checkpoint.check(name)
            if checkpoint.shape(name) != shape:
                raise UserError(
                    f"{checkpoint.path}: {name} has shape {checkpoint.shape(name)}; its config.json makes it {shape}"
                )
        known.update(names)
    strangers = list(_not_understood(checkpoint, config, known))
    if strangers:
        others, are = (f" and {len(strangers) - 1} more", "are") if strangers[1:] else ("", "is")
        raise UserError(
            f"{checkpoint.path}: {named(strangers[0])}{others} would change the results and {are} not understood; "
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
