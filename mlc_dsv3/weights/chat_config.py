"""The contents of `mlc-chat-config.json`, in mlc-llm's field names, from a checkpoint's folder."""

from __future__ import annotations

from typing import Any

from mlc_dsv3.errors import UserError
from mlc_dsv3.weights.checkpoint import Checkpoint
from mlc_dsv3.weights.files import GENERATION_CONFIG, TOKENIZER_FILES, present, read_json
from relax_model.config import ModelConfig
from relax_model.layout import layout_of

FILE_NAME = "mlc-chat-config.json"
_VERSION = "0.1.0"
_SAMPLING_DEFAULTS = {
    "temperature": 1.0,
    "top_p": 1.0,
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
    generation = _generation_config(checkpoint)
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
        **{name: generation.get(name, default) for name, default in _SAMPLING_DEFAULTS.items()},
        "tokenizer_files": tokenizer_files,
        "tokenizer_info": _tokenizer_info(checkpoint, tokenizer_files),
        "conv_template": conv_template or _template_file(checkpoint, tokenizer_files),
        **{
            name: generation.get(name, checkpoint.config.get(name))
            for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        },
    }


def artifact_model_config(config: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's config as it holds for the artifact, whose weights are no longer fp8."""
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _window(model: ModelConfig, wanted: int | None) -> int:
    longest = model.max_position_embeddings
    if wanted is not None and not 0 < wanted <= longest:
        raise UserError(f"context_window_size is {wanted}; this model allows 1 to {longest}")
    return wanted or longest


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.path / GENERATION_CONFIG
    fields = read_json(path) if path.is_file() else {}
    if fields.get("do_sample") is False:
        fields["temperature"] = 0.0  # transformers looks at no temperature then
    return {name: value for name, value in fields.items() if value is not None}


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
