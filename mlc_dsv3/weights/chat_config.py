"""The contents of `mlc-chat-config.json`, in mlc-llm's field names, from a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlc_dsv3.errors import UserError
from mlc_dsv3.json_files import naming, read_json
from mlc_dsv3.weights.checkpoint import Checkpoint
from mlc_dsv3.weights.files import TOKENIZER_FILES, present
from mlc_dsv3.weights.generation import TOKEN_ID_FIELDS, GenerationConfig, read_sampling, read_token_ids
from relax_model.config import ModelConfig
from relax_model.fields import MOST_TOKENS, Fields, shown
from relax_model.layout import layout_of

FILE_NAME = "mlc-chat-config.json"
_VERSION = "0.1.0"
_SAMPLING_DEFAULTS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def gen_config(
    checkpoint: Checkpoint,
    quantization: str,
    *,
    context_window_size: int | None = None,
    prefill_chunk_size: int | None = None,
    conv_template: str | None = None,
) -> dict[str, Any]:
    """`mlc-chat-config.json` for this checkpoint.

    The context window is the model's unless a smaller one is given. `conv_template` names the file that holds the Jinja
    template unless another is given; token ids that the checkpoint does not state are null.
    """
    layout_of(quantization)
    model = checkpoint.model_config
    generation = GenerationConfig.read(checkpoint.path, model.vocab_size)
    window = _window(model, context_window_size)
    tokenizer_files = present(checkpoint.path, TOKENIZER_FILES)
    return {
        "version": _VERSION,
        "model_type": model.model_type,
        "quantization": quantization,
        "model_config": artifact_model_config(checkpoint.config),
        "vocab_size": model.vocab_size,
        "active_vocab_size": model.vocab_size,
        "context_window_size": window,
        "sliding_window_size": -1,
        "prefill_chunk_size": prefill_chunk_size or min(window, 2048),
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        **_SAMPLING_DEFAULTS,
        **generation.sampling,
        "tokenizer_files": tokenizer_files,
        "tokenizer_info": _tokenizer_info(checkpoint, tokenizer_files),
        "conv_template": conv_template or _template_file(checkpoint, tokenizer_files),
        **_token_ids(checkpoint, generation),
    }


def read_chat_config(path: Path) -> dict[str, Any]:
    """The fields of a `mlc-chat-config.json`, also of mlc-llm's, of which every one that is used here is checked.

    UserError where the file or one of them is wrong. `model_config` is for `parse_config` to check.
    """
    values = read_json(path)
    fields = Fields(values).without_nulls()
    with naming(path):
        vocab_size = fields.object("model_config").integer("vocab_size", None, least=1)
        layout_of(fields.text("quantization"))
        window = fields.integer("context_window_size", -1, least=-1, most=MOST_TOKENS)
        sampling = read_sampling(fields)
        for name in TOKEN_ID_FIELDS:
            read_token_ids(fields, name, vocab_size)
        files = fields.array("tokenizer_files", [])
        if not all(isinstance(name, str) for name in files):
            raise UserError(f"tokenizer_files is {shown(files)}; it must be a list of file names")
    checked = {"context_window_size": window, **sampling}
    return {name: checked[name] if name in checked and name in fields else value for name, value in values.items()}


def artifact_model_config(config: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config as it holds for the artifact, whose weights are no longer fp8."""
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _window(model: ModelConfig, wanted: int | None) -> int:
    longest = model.max_position_embeddings
    if wanted is not None and not 0 < wanted <= longest:
        raise UserError(f"context_window_size is {wanted}; this model allows 1 to {longest}")
    return wanted or longest


def _token_ids(checkpoint: Checkpoint, generation: GenerationConfig) -> dict[str, int | list[int] | None]:
    """The ids that the checkpoint's two files state. All that either of them says ends an answer does."""
    with naming(checkpoint.path / "config.json"):
        fields, vocab_size = Fields(checkpoint.config), checkpoint.model_config.vocab_size
        config = {name: read_token_ids(fields, name, vocab_size) for name in TOKEN_ID_FIELDS}
    stated = {name: generation.token_ids[name] or config[name] for name in TOKEN_ID_FIELDS}
    stated["eos_token_id"] = tuple(dict.fromkeys(generation.token_ids["eos_token_id"] + config["eos_token_id"]))
    return {name: list(ids) if len(ids) > 1 else next(iter(ids), None) for name, ids in stated.items()}


def _template_file(checkpoint: Checkpoint, tokenizer_files: list[str]) -> str | None:
    if "chat_template.jinja" in tokenizer_files:
        return "chat_template.jinja"
    name = "tokenizer_config.json"
    return name if name in tokenizer_files and read_json(checkpoint.path / name).get("chat_template") else None


def _tokenizer_info(checkpoint: Checkpoint, tokenizer_files: list[str]) -> dict[str, Any]:
    """How a token's text becomes bytes, in the words of mlc-llm's TokenizerInfo."""
    byte_level = "tiktoken.model" in tokenizer_files
    if "tokenizer.json" in tokenizer_files:
        byte_level = "ByteLevel" in str(read_json(checkpoint.path / "tokenizer.json").get("decoder"))
    return {
        "token_postproc_method": "byte_level" if byte_level else "byte_fallback",
        "prepend_space_in_encode": False,
        "strip_space_in_decode": False,
    }
