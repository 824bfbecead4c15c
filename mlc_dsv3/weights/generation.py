"""How a checkpoint wants its tokens chosen: generation_config.json, which goes into `mlc-chat-config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_dsv3.errors import UserError, warn_once
from mlc_dsv3.json_files import naming, read_json
from mlc_dsv3.limits import MOST_TOKEN_ID, SAMPLING_LIMITS
from mlc_dsv3.weights.files import GENERATION_CONFIG
from relax_model.fields import Fields, shown

TOKEN_ID_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id")


# What changes transformers' choice of tokens and is not ours to do, with the values that change nothing.
_NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ([], {}),
    "guidance_scale": (1,),
    "exponential_decay_length_penalty": (),
    "penalty_alpha": (0,),
    "stop_strings": ([],),
}


@dataclass(frozen=True)
class GenerationConfig:
    """What generation_config.json states: sampling settings by `SamplingParams`' names, and token ids by field."""

    sampling: dict[str, float]
    token_ids: dict[str, tuple[int, ...]]

    @staticmethod
    def read(folder: Path, vocab_size: int) -> GenerationConfig:
        """From the folder of a checkpoint whose model has `vocab_size` tokens; empty where it has no such file.

        UserError names the field that is wrong.

        Warns, once, of settings that would change the text and are not applied.
        """
        path = folder / GENERATION_CONFIG
        fields = Fields(read_json(path) if path.exists() else {}).without_nulls()
        with naming(path):
            sampling = read_sampling(fields)
            if fields.flag("do_sample", None) is False:
                sampling["temperature"] = 0.0  # greedy, whatever the temperature
            token_ids = {name: read_token_ids(fields, name, vocab_size) for name in TOKEN_ID_FIELDS}
        left_out = [
            f"{name} ({shown(fields.values[name])})"
            for name, neutral in _NOT_APPLIED.items()
            if name in fields and fields.values[name] not in neutral
        ]
        if left_out:
            warn_once(f"{path}: not supported and left out: {', '.join(left_out)}")
        return GenerationConfig(sampling, token_ids)


def read_sampling(fields: Fields) -> dict[str, float]:
    """The sampling settings that `fields` state; UserError for one out of its limits."""
    stated = {name: fields.values[name] for name in SAMPLING_LIMITS if fields.values.get(name) is not None}
    for name, value in stated.items():
        limits = SAMPLING_LIMITS[name]
        if limits.whole and isinstance(value, float) and value.is_integer():
            stated[name] = int(value)
        limits.check(name, stated[name], shown)
    return stated


def read_token_ids(fields: Fields, name: str, vocab_size: int | None = None) -> tuple[int, ...]:
    """The ids of a field that is a token id, a list of them, or null; -1 stands for none.

    UserError for one beyond the model's vocabulary, where `vocab_size` tells of it; a padding token is never used, and
    may be beyond it.
    """
    value = fields.values.get(name)
    if value is None:
        return ()
    if isinstance(value, list):
        ids = fields.integers(name, least=-1, most=MOST_TOKEN_ID)
    else:
        ids = (fields.integer(name, least=-1, most=MOST_TOKEN_ID),)
    if vocab_size is not None and name != "pad_token_id" and max(ids, default=-1) >= vocab_size:
        raise UserError(f"{fields.where}{name} has {max(ids)}; the model's vocabulary has {vocab_size} tokens")
    return tuple(token for token in ids if token >= 0)
