"""Arguments that several verbs share, and what they name: a model's configuration, sampling parameters."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc_dsv3.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from mlc_dsv3.runtime.sampling import SamplingParams
    from relax_model.config import ModelConfig

_SAMPLING_OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": {"type": float, "help": "0 always takes the likeliest token"},
    "top_p": {"type": float, "help": "sample from the fewest likeliest tokens of this total probability"},
    "top_k": {"type": int, "help": "sample from this many likeliest tokens (0: all)"},
    "min_p": {"type": float, "help": "leave out tokens less probable than this share of the likeliest"},
    "repetition_penalty": {"type": float, "help": "makes tokens seen before less likely (1: off)"},
    "presence_penalty": {"type": float, "help": "taken from the logits of tokens already in the answer"},
    "frequency_penalty": {"type": float, "help": "taken from a token's logit for each time that the answer has it"},
    "seed": {"type": int, "help": "makes sampling reproducible"},
    "max_tokens": {"type": int, "help": "longest answer (default: to the end of the context window)"},
    "stop": {"action": "append", "metavar": "TEXT", "help": "ends the answer before this text (may be repeated)"},
    "ignore_eos": {"action": "store_true", "default": None, "help": "go on after the model's end-of-text token"},
}


def add_quantization(parser: argparse.ArgumentParser, *, default: str) -> None:
    """--quantization; `default` says in words what happens without it."""
    parser.add_argument("--quantization", metavar="NAME", help=f"q4f16_1, q8f16_1, q0f16, q0f32, … ({default})")


def add_cache_dtype(parser: argparse.ArgumentParser) -> None:
    """--cache-dtype."""
    parser.add_argument(
        "--cache-dtype", metavar="NAME", help="of the latent cache: float32, float16 or int8 (the quantization's)"
    )


def add_context_window(parser: argparse.ArgumentParser, *, help: str) -> None:
    """--context-window; `help` says what it bounds and what happens without it."""
    parser.add_argument("--context-window", type=int, metavar="N", help=help)


def required_quantization(name: str | None, device: str | None = None) -> str:
    """`name`, checked, with the layout that it states or that `device` reads fastest (None: mlc-llm's).

    Raises an error that lists the known ones where it is missing or unknown.
    """
    from relax_model.layout import QUANTIZATIONS, layout_of

    if name is None:
        raise UserError(f"--quantization is required; known: {', '.join(QUANTIZATIONS)}")
    if device is not None:
        from mlc_dsv3.compiler.targets import stored_as

        name = stored_as(device, name)
    layout_of(name.removesuffix("+mlc"))
    return name.removesuffix("+mlc")


def add_ignore_config_field(parser: argparse.ArgumentParser) -> None:
    """--ignore-config-field, which takes one name or several with commas between them, and may be repeated."""
    parser.add_argument(
        "--ignore-config-field",
        action="extend",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="NAME[,NAME]",
        help="go on without these fields of config.json, such as those that are not understood",
    )


def add_no_mtp(parser: argparse.ArgumentParser) -> None:
    """--no-mtp."""
    parser.add_argument(
        "--no-mtp", action="store_true", help="leave out the checkpoint's multi-token prediction layers (saves memory)"
    )


def add_speculative(parser: argparse.ArgumentParser) -> None:
    """--speculative."""
    parser.add_argument(
        "--speculative",
        default="auto",
        metavar="N",
        help="tokens that the model's MTP layer drafts for a step: 1 to 4, auto (what pays) or off; answers stay the "
        "same (auto)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options named as the fields of SamplingParams; those not given are None."""
    group = parser.add_argument_group("sampling", "What is not given comes from the model's mlc-chat-config.json.")
    for name, options in _SAMPLING_OPTIONS.items():
        metavar = {} if "action" in options else {"metavar": "N"}
        group.add_argument(f"--{name.replace('_', '-')}", **metavar, **options)


def sampling_params(parsed: argparse.Namespace, defaults: SamplingParams | None = None) -> SamplingParams:
    """`defaults` with what the command line says. Raises UserError for a value out of range."""
    from dataclasses import replace

    from mlc_dsv3.runtime.sampling import SamplingParams

    given = {name: value for name in _SAMPLING_OPTIONS if (value := getattr(parsed, name)) is not None}
    return replace(defaults or SamplingParams(), **given)


@dataclass(frozen=True)
class ModelSource:
    """A model's configuration and where it came from; an artifact states its quantization."""

    name: str
    config: ModelConfig
    quantization: str | None


def read_model(argument: str, ignore: Collection[str] = (), *, without_mtp: bool = False) -> ModelSource:
    """The configuration that `argument` names: a config.json, a checkpoint or artifact folder, or a Hub name.

    A checkpoint's is what its tensors bear out; a config.json by itself, or without weights beside it, is taken at its
    word. `without_mtp` leaves out the MTP layers; UserError where an artifact has them.
    """
    from mlc_dsv3.json_files import read_json
    from mlc_dsv3.runtime.hub import model_folder, model_name
    from mlc_dsv3.weights import Checkpoint
    from mlc_dsv3.weights.chat_config import read_chat_config
    from mlc_dsv3.weights.shards import has_weights

    path = model_folder(argument)
    if path.is_dir():
        candidates = [path / name for name in ("mlc-chat-config.json", "config.json")]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            raise UserError(f"{path} has neither config.json (a checkpoint) nor mlc-chat-config.json (an artifact)")
    else:
        file = path
    fields = read_json(file)
    if "model_config" in fields:
        fields = read_chat_config(file)
    quantization = fields.get("quantization") if "model_config" in fields else None
    if path.is_dir() and "model_config" not in fields and has_weights(path):
        config = Checkpoint.open(path, ignore=ignore, without_mtp=without_mtp).model_config
    else:
        config = _config_alone(file, fields, ignore, without_mtp)
    place = file.parent if file.name in ("config.json", "mlc-chat-config.json") else file.with_suffix("")
    return ModelSource(model_name(argument if path.is_dir() else place), config, quantization)


def _config_alone(file: Path, fields: dict[str, Any], ignore: Collection[str], without_mtp: bool) -> ModelConfig:
    """The configuration in the `fields` of a config.json or mlc-chat-config.json, taken at its word."""
    from mlc_dsv3.json_files import naming, warn_of_absent
    from mlc_dsv3.weights.artifact import refuse_mtp_layers
    from mlc_dsv3.weights.corrections import with_mtp_layers
    from relax_model.config import parse_config

    config = fields.get("model_config", fields)
    warn_of_absent(ignore, config, file)
    config = {name: value for name, value in config.items() if name not in ignore}
    if without_mtp and "model_config" not in fields:
        config = with_mtp_layers(config, 0)
    with naming(file):
        parsed = parse_config(config)
    if without_mtp:
        refuse_mtp_layers(file, parsed)
    return parsed
