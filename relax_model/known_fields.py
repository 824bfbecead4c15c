"""The fields that a config.json may have: those read, those without effect on inference, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relax_model.errors import ConfigError
from relax_model.fields import named, shown


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_READ = _names(
    """
    model_type vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads
    q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim head_dim qk_head_dim
    n_routed_experts num_local_experts num_experts n_shared_experts num_experts_per_tok
    first_k_dense_replace moe_layer_freq mlp_layer_types
    scoring_func topk_method n_group topk_group norm_topk_prob routed_scaling_factor
    rms_norm_eps hidden_act attention_bias mlp_bias
    rope_theta rope_scaling rope_parameters rope_interleave partial_rotary_factor max_position_embeddings
    tie_word_embeddings num_nextn_predict_layers num_mtp_layers quantization_config
    """
)

# Of the family's own fields, those that training or a framework reads.
_TRAINING = _names(
    """
    attention_dropout aux_loss_alpha embedding_initializer_range ep_size initializer_range num_key_value_heads
    output_router_logits pretraining_tp routed_scaling_learnable seq_aux use_cache
    """
)

# What transformers' PretrainedConfig has in 4.x and 5.x, and wrote into every config.json in some versions.
_BASE = _names(
    """
    architectures attn_implementation auto_map chunk_size_feed_forward dtype experts_implementation finetuning_task
    gradient_checkpointing id2label is_decoder label2id name_or_path num_labels output_attentions output_hidden_states
    problem_type return_dict task_specific_params tf_legacy_loss tie_encoder_decoder tie_last_hidden_states torch_dtype
    torchscript transformers_version use_bfloat16 use_return_dict
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation_internal _name_or_path
    """
)
_GENERATION = _names(
    """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
    num_return_sequences output_scores remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
    """
)
_TOKENIZATION = _names(
    """
    bos_token_id decoder_start_token_id eos_token_id pad_token_id prefix sep_token_id tokenizer_class
    """
)
# Of the base configuration too, but another model unless they are empty.
_ONLY_EMPTY = _names(
    """
    add_cross_attention cross_attention_hidden_size is_encoder_decoder per_layer_config pruned_heads
    """
)

_KNOWN = _READ | _TRAINING | _BASE | _GENERATION | _TOKENIZATION
# Notes that fine-tuning tools leave in a config.json.
_TOOLS = ("unsloth_", "axolotl_", "llamafactory_", "swift_", "trl_")


def refuse_unknown(config: Mapping[str, Any]) -> None:
    """ConfigError that names every field of a config.json that may change the results in a way not understood.

    A field that is null passes, and so do the notes of fine-tuning tools.
    """
    unknown = [name for name, value in config.items() if not _passes(name, value)]
    if unknown:
        listed = ", ".join(f"{named(name)} ({shown(config[name])})" for name in unknown)
        one = len(unknown) == 1
        raise ConfigError(
            f"{'a field is' if one else f'{len(unknown)} fields are'} not understood and may change the results: "
            f"{listed}; to go on without {'it' if one else 'them'}: --ignore-config-field {','.join(unknown)}"
        )


def _passes(name: str, value: Any) -> bool:
    return name in _KNOWN or name.startswith(_TOOLS) or value is None or (name in _ONLY_EMPTY and not value)
