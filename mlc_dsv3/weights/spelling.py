"""A checkpoint's own tensor names → the family's, `model.layers.0…` and `lm_head.weight`.

A base model saved alone has no `model.` in front, and a language model inside a larger one has `language_model.`.
"""

from __future__ import annotations

from collections.abc import Collection

# What stands in place of `model.`, and in front of `lm_head.`.
_SPELLINGS = (
    ("model.", ""),
    ("language_model.model.", "language_model."),
    ("model.language_model.", ""),
    ("model.language_model.", "model."),
    ("language_model.", "language_model."),
    ("language_model.", ""),
    ("", ""),
)


def family_names(names: Collection[str]) -> dict[str, str]:
    """Family's name → the checkpoint's own, for every tensor; what is not the language model's keeps its name."""
    prefix, head_prefix = _spelling(names)
    return {_family_name(name, prefix, f"{head_prefix}lm_head."): name for name in names}


def _spelling(names: Collection[str]) -> tuple[str, str]:
    heads = [spelling for spelling in _SPELLINGS if f"{spelling[1]}lm_head.weight" in names]
    for prefix, head_prefix in [*heads, *_SPELLINGS]:
        if f"{prefix}embed_tokens.weight" in names:
            return prefix, head_prefix
    return _SPELLINGS[0]


def _family_name(name: str, prefix: str, head_prefix: str) -> str:
    if name.startswith(head_prefix):
        return f"lm_head.{name.removeprefix(head_prefix)}"
    return f"model.{name.removeprefix(prefix)}" if name.startswith(prefix) else name
