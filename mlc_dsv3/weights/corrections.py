"""config.json and the index, held against the tensors that a checkpoint really has: the tensors decide.

Tensors go by the family's names. What is announced and not there is said in one line, and the work goes on without it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from mlc_dsv3.errors import UserError, warn_once
from mlc_dsv3.weights.names import needed, stored_mtp_layers
from mlc_dsv3.weights.packed_formats import READ, announced_method, packed_weight, plain_floats
from mlc_dsv3.weights.safetensors import TensorEntry
from mlc_dsv3.weights.shards import INDEX, read_index
from mlc_dsv3.weights.spelling import family_names
from relax_model.config import ModelConfig
from relax_model.fields import named, shown

_MTP_FIELDS = ("num_nextn_predict_layers", "num_mtp_layers")

Config = dict[str, Any]  # a config.json


def with_mtp_layers(config: Config, count: int) -> Config:
    """`config` with another number of MTP layers, where it announces any."""
    return {**config, **{name: count for name in _MTP_FIELDS if config.get(name) is not None}}


def with_stored_mtp_layers(
    path: Path, config: Config, announced: ModelConfig, tensors: Container[str], without_mtp: bool
) -> Config:
    """`config` with as many MTP layers as `tensors` has, or with none. UserError for a layer that is there in part."""
    if without_mtp:
        return with_mtp_layers(config, 0)
    stored = stored_mtp_layers(tensors, announced, path)
    lacking = announced.num_nextn_predict_layers - stored
    if not lacking:
        return config
    has = f"{stored} of {announced.num_nextn_predict_layers} MTP layers" if stored else "no MTP layer"
    warn_once(f"{path}: the checkpoint has {has}; going on without {'it' if lacking == 1 else 'them'}")
    return with_mtp_layers(config, stored)


def with_stored_quantization(path: Path, config: Config, tensors: Mapping[str, TensorEntry]) -> Config:
    """`config` without a `quantization_config` that no tensor bears out.

    UserError for weights in a format that is not read.
    """
    method, packed = announced_method(config), packed_weight(tensors)
    if packed is not None:
        says = f" (its quantization_config says {shown(method)})" if method else ""
        raise UserError(f"{path}: {packed}{says}; weights are read as {READ}")
    if method is None or not plain_floats(tensors):
        return config
    warn_once(
        f"{path}: config.json announces weights quantized by {shown(method)}, and they are plain floats; "
        "going on without its quantization_config"
    )
    return {name: value for name, value in config.items() if name != "quantization_config"}


def check_index(path: Path, stored: Container[str], model: ModelConfig) -> None:
    """Look for tensors that the index names and no file has: UserError for one that `model` needs, else a warning."""
    index = read_index(path)
    absent = {name: own for name, own in family_names(index).items() if own not in stored}
    if not absent:
        return
    for name in needed(model):
        if own := absent.get(name):
            raise UserError(
                f"{path / INDEX} says that {named(own)} is in {named(index[own])}, and it is not; download both again"
            )
    first, *others = absent.values()
    more = f" and {len(others)} more" if others else ""
    warn_once(f"{path / INDEX} names {named(first)}{more}: no file has it, and the model does not need it")
