"""The family's forward pass in float64 NumPy, written from the papers' equations and from config.json's own fields.

It shares no code with the package: it is the oracle for shapes that have no stored golden. Sequences are recomputed as
a whole, attention is in its expanded form, and nothing is fast.

Sources: DeepSeek-V2 (arXiv:2405.04434, section 2.1: equations 9-19 and 37-47), DeepSeek-V3 (arXiv:2412.19437: 12-16 for
the experts, 21-25 for multi-token prediction), YaRN (arXiv:2309.00071, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LATENT_NORM_EPS = 1e-6  # q_a_layernorm and kv_a_layernorm do not follow rms_norm_eps
_QUERY_BLOCK = 256  # bounds the memory of the attention scores


@dataclass
class Routing:
    """What the routers did, one entry a MoE layer, each (tokens,) or (tokens, k)."""

    experts: list[np.ndarray] = field(default_factory=list)
    margins: list[np.ndarray] = field(default_factory=list)  # how far the scores are from another choice
    bias_changes: list[np.ndarray] = field(default_factory=list)  # whether the correction bias changed the choice
    groups_bite: list[np.ndarray] = field(default_factory=list)  # whether the group limit changed the choice

    def margin(self) -> np.ndarray:
        """(tokens,): each token's smallest margin over the layers; infinite without routers."""
        return np.min(self.margins, axis=0) if self.margins else np.full(1, np.inf)


@dataclass(frozen=True)
class Output:
    """Logits (tokens, vocab_size), hidden (tokens, hidden_size) after the last norm, and what the routers did."""

    logits: np.ndarray
    hidden: np.ndarray
    routing: Routing


class ReferenceModel:
    """The model of a config.json (as a dict) with its tensors by their Hugging Face names.

    `cache_dtype` is what the latents and rotary keys are rounded to, as a cache of that dtype would. With `eight_bits`,
    what meets a matrix is rounded to 8 bits first, as beside packed weights; attention is in its absorbed form.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        *,
        cache_dtype: str = "float64",
        eight_bits: bool = False,
    ) -> None:
        self.config, self.eight_bits = config, eight_bits
        self.cache_dtype = cache_dtype
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.heads: int = config["num_attention_heads"]
        self.nope: int = config["qk_nope_head_dim"]
        self.rope: int = config["qk_rope_head_dim"]
        self.value: int = config["v_head_dim"]
        self.latent: int = config["kv_lora_rank"]
        self.frequencies, self.rope_magnitude, self.score_factor = rope_settings(config)

    def forward(self, tokens: np.ndarray) -> Output:
        """Logits after every token of one sequence, tokens (n,)."""
        x = self._embed(tokens)
        routing = Routing()
        for layer in range(self.config["num_hidden_layers"]):
            x = self._layer(x, layer, routing)
        hidden = self._norm(x, "model.norm.weight")
        return Output(self._head(hidden), hidden, routing)

    def draft(self, next_tokens: np.ndarray, hidden: np.ndarray) -> Output:
        """The first MTP layer over one sequence (DeepSeek-V3, equations 21-25).

        Row i takes hidden[i] (after the final norm) and next_tokens[i], the token at i + 1, and predicts that at i + 2.
        """
        layer = self.config["num_hidden_layers"]
        prefix = f"model.layers.{layer}"
        embedding = self._norm(self._embed(next_tokens), f"{prefix}.enorm.weight")
        both = np.concatenate([embedding, self._norm(hidden, f"{prefix}.hnorm.weight")], axis=-1)
        routing = Routing()
        x = self._layer(self._linear(both, f"{prefix}.eh_proj"), layer, routing)
        normed = self._norm(x, f"{prefix}.shared_head.norm.weight")
        return Output(self._head(normed), normed, routing)

    def draft_chain(self, next_tokens: np.ndarray, hidden: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """`steps` greedy drafts after a sequence: token ids (steps,) and their logits (steps, vocab_size).

        Each draft after the first feeds the layer's own normed output back, with the token just drafted.
        """
        drafts, logits = [], []
        for _ in range(steps):
            output = self.draft(next_tokens, hidden)
            logits.append(output.logits[-1])
            drafts.append(int(output.logits[-1].argmax()))
            next_tokens = np.append(next_tokens, drafts[-1])
            hidden = np.concatenate([hidden, output.hidden[-1:]])
        return np.array(drafts), np.array(logits)

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        return self.weights["model.embed_tokens.weight"][tokens]

    def _head(self, hidden: np.ndarray) -> np.ndarray:
        tied = self.config.get("tie_word_embeddings", False)
        return self._round(hidden) @ self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T

    def _norm(self, x: np.ndarray, name: str, eps: float | None = None) -> np.ndarray:
        eps = self.config["rms_norm_eps"] if eps is None else eps
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * self.weights[name]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return self._round(x) @ self.weights[f"{name}.weight"].T

    def _round(self, x: np.ndarray) -> np.ndarray:
        return in_eight_bits(x) if self.eight_bits else x

    def _layer(self, x: np.ndarray, layer: int, routing: Routing) -> np.ndarray:
        prefix = f"model.layers.{layer}"
        x = x + self._attention(self._norm(x, f"{prefix}.input_layernorm.weight"), f"{prefix}.self_attn")
        h = self._norm(x, f"{prefix}.post_attention_layernorm.weight")
        if f"{prefix}.mlp.gate.weight" in self.weights:
            return x + self._experts(h, f"{prefix}.mlp", routing)
        return x + self._mlp(h, f"{prefix}.mlp")

    def _attention(self, h: np.ndarray, prefix: str) -> np.ndarray:
        tokens = len(h)
        if self.config.get("q_lora_rank"):
            c_q = self._norm(self._linear(h, f"{prefix}.q_a_proj"), f"{prefix}.q_a_layernorm.weight", _LATENT_NORM_EPS)
            q = self._linear(c_q, f"{prefix}.q_b_proj")
        else:
            q = self._linear(h, f"{prefix}.q_proj")
        q = q.reshape(tokens, self.heads, self.nope + self.rope)
        compressed = self._linear(h, f"{prefix}.kv_a_proj_with_mqa")
        c_kv = self._norm(compressed[:, : self.latent], f"{prefix}.kv_a_layernorm.weight", _LATENT_NORM_EPS)
        k_pe = self._rotate(compressed[:, self.latent :])  # (tokens, rope), one for all heads
        c_kv, k_pe = in_cache(self.cache_dtype, c_kv, k_pe)
        kv_b = self.weights[f"{prefix}.kv_b_proj.weight"].reshape(self.heads, self.nope + self.value, -1)
        output = np.empty((tokens, self.heads, self.value))
        for head in range(self.heads):
            q_pe = self._rotate(q[:, head, self.nope :])
            keys = np.concatenate([c_kv @ kv_b[head, : self.nope].T, k_pe], axis=-1)
            queries = np.concatenate([q[:, head, : self.nope], q_pe], axis=-1)
            if self.eight_bits:
                keys = np.concatenate([c_kv, k_pe], axis=-1)
                absorbed = absorbed_in_eight_bits(q[:, head, : self.nope], kv_b[head, : self.nope])
                queries = np.concatenate([absorbed, q_pe], axis=-1)
            latents = self._attend(queries, keys, c_kv)
            output[:, head] = self._round(latents) @ kv_b[head, self.nope :].T
        return self._linear(output.reshape(tokens, -1), f"{prefix}.o_proj")

    def _attend(self, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Causal attention of one head: (tokens, dims) each."""
        scale = self.score_factor / math.sqrt(self.nope + self.rope)
        output = np.empty((len(queries), values.shape[1]))
        for start in range(0, len(queries), _QUERY_BLOCK):
            stop = min(start + _QUERY_BLOCK, len(queries))
            scores = queries[start:stop] @ keys[:stop].T * scale
            scores[np.arange(stop)[None] > np.arange(start, stop)[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            output[start:stop] = weights @ values[:stop] / weights.sum(axis=-1, keepdims=True)
        return output

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        """Rotate channel pairs of x (tokens, rope) by position times frequency."""
        angles = np.arange(len(x))[:, None] * self.frequencies[None]
        cos, sin = np.cos(angles) * self.rope_magnitude, np.sin(angles) * self.rope_magnitude
        if self.config.get("rope_interleave", True):
            first, second = x[:, 0::2], x[:, 1::2]
        else:
            first, second = x[:, : self.rope // 2], x[:, self.rope // 2 :]
        # The order of the rotated channels does not matter, as queries and keys share it.
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _mlp(self, h: np.ndarray, prefix: str) -> np.ndarray:
        gate = self._linear(h, f"{prefix}.gate_proj")
        return self._linear(gate / (1 + np.exp(-gate)) * self._linear(h, f"{prefix}.up_proj"), f"{prefix}.down_proj")

    def _experts(self, h: np.ndarray, prefix: str, routing: Routing) -> np.ndarray:
        experts, weights = self._route(h, prefix, routing)
        output = self._mlp(h, f"{prefix}.shared_experts") if self.config.get("n_shared_experts") else np.zeros_like(h)
        for expert in np.unique(experts):
            token, slot = np.nonzero(experts == expert)
            output[token] += self._mlp(h[token], f"{prefix}.experts.{expert}") * weights[token, slot][:, None]
        return output

    def _route(self, h: np.ndarray, prefix: str, routing: Routing) -> tuple[np.ndarray, np.ndarray]:
        """Chosen experts (tokens, k) and their weights."""
        config = self.config
        k = config["num_experts_per_tok"]
        v2 = config["model_type"] == "deepseek_v2"
        logits = h @ self.weights[f"{prefix}.gate.weight"].T
        if config.get("scoring_func", "softmax" if v2 else "sigmoid") == "softmax":
            exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
            scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
        else:
            scores = 1 / (1 + np.exp(-logits))
        method = config.get("topk_method", "greedy" if v2 else "noaux_tc")
        bias = self.weights.get(f"{prefix}.gate.e_score_correction_bias", np.zeros(scores.shape[1]))
        groups, kept = (config["n_group"], config["topk_group"]) if method != "greedy" else (1, 1)
        best = 2 if method == "noaux_tc" else 1  # how many experts a group is judged by
        chosen, margin = _choose(scores + bias, k, groups, kept, best)
        routing.experts.append(chosen)
        routing.margins.append(margin)
        routing.bias_changes.append((chosen != _choose(scores, k, groups, kept, best)[0]).any(axis=1))
        routing.groups_bite.append((chosen != _choose(scores + bias, k, 1, 1, best)[0]).any(axis=1))
        weights = np.take_along_axis(scores, chosen, axis=1)
        # transformers' deepseek_v2 has no normalisation, and no published V2 asks for it.
        if config.get("norm_topk_prob", not v2) and not v2:
            weights = weights / weights.sum(axis=1, keepdims=True)
        return chosen, weights * config.get("routed_scaling_factor", 1.0)


def in_eight_bits(values: np.ndarray) -> np.ndarray:
    """Rows rounded in groups of 32: codes are whole multiples of the largest magnitude's 127th."""
    rows, columns = values.shape
    groups = np.pad(values.astype(np.float32), ((0, 0), (0, -columns % 32))).reshape(rows, -1, 32)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    codes = np.rint(groups * (np.float32(127) / np.where(largest == 0, np.float32(1), largest)))
    return (codes.astype(np.float64) * (largest / np.float32(127))).reshape(rows, -1)[:, :columns]


def in_cache(dtype: str, *parts: np.ndarray) -> list[np.ndarray]:
    """Latents and rotated keys (tokens, …) as a cache of this dtype gives them back, in float64.

    In 8 bits, groups of 32 have a bfloat16 scale each, of which no code is past the 127th.
    """
    if dtype != "int8":
        return [part.astype(dtype).astype(np.float64) for part in parts]
    found = []
    for part in parts:
        padded = np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, -part.shape[-1] % 32)])
        groups = padded.reshape(*part.shape[:-1], -1, 32)
        scale = upwards_in_bfloat16(np.abs(groups).max(axis=-1, keepdims=True) / 127)
        values = np.rint(groups / np.where(scale == 0, 1, scale)) * scale
        found.append(values.reshape(*part.shape[:-1], -1)[..., : part.shape[-1]])
    return found


def upwards_in_bfloat16(values: np.ndarray) -> np.ndarray:
    """Values that are not negative, rounded up to eight significant bits."""
    digits, exponents = np.frexp(values.astype(np.float64))
    return np.ldexp(np.ceil(digits * 256) / 256, exponents)


def absorbed_in_eight_bits(q_nope: np.ndarray, w_uk: np.ndarray) -> np.ndarray:
    """q_nope (tokens, nope) · w_uk (nope, kv_lora_rank), each query times its weights' scales rounded to 8 bits.

    The largest weight of a group of 32 is always the same number of its scale's, so that it serves as the scale.
    """
    absorbed = np.empty((len(q_nope), w_uk.shape[1]))
    for start in range(0, w_uk.shape[1], 32):
        weights = w_uk[:, start : start + 32]
        scales = np.abs(weights).max(axis=1)
        codes = weights / np.where(scales == 0, 1, scales)[:, None]
        absorbed[:, start : start + 32] = in_eight_bits(q_nope * scales) @ codes
    return absorbed


def _choose(scores: np.ndarray, k: int, groups: int, kept: int, best: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best experts of the `kept` best groups, in rising order, and the margin to the nearest other choice."""
    tokens, experts = scores.shape
    margin = np.full(tokens, np.inf)
    allowed = scores
    if groups > 1:
        grouped = scores.reshape(tokens, groups, -1)
        group_scores = np.sort(grouped, axis=-1)[:, :, -best:].sum(axis=-1)
        order = np.sort(group_scores, axis=-1)
        if kept < groups:
            margin = np.minimum(margin, order[:, -kept] - order[:, -kept - 1])
        in_group = group_scores >= order[:, -kept][:, None]
        allowed = np.where(np.repeat(in_group, experts // groups, axis=1), scores, -np.inf)
    order = np.sort(allowed, axis=-1)
    if k < experts:
        margin = np.minimum(margin, order[:, -k] - order[:, -k - 1])
    return np.sort(np.argsort(-allowed, axis=-1, kind="stable")[:, :k], axis=-1), margin


def rope_settings(config: Mapping[str, Any]) -> tuple[np.ndarray, float, float]:
    """Frequencies (rope/2,), the factor on cos and sin, and the factor on the attention scores."""
    dim = config["qk_rope_head_dim"]
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = settings.get("rope_theta") or config["rope_theta"]
    frequencies = np.array([theta ** (-2 * pair / dim) for pair in range(dim // 2)])
    if settings.get("rope_type", settings.get("type", "default")) == "default":
        return frequencies, 1.0, 1.0
    factor, original = settings["factor"], settings["original_max_position_embeddings"]

    def pair_with(rotations: float) -> float:
        """The channel pair that turns `rotations` times over the original context (section 3.2)."""
        return dim * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(pair_with(settings.get("beta_fast", 32))), 0)
    high = min(math.ceil(pair_with(settings.get("beta_slow", 1))), dim - 1)
    interpolated = np.array([min(max((pair - low) / max(high - low, 1e-3), 0), 1) for pair in range(dim // 2)])
    frequencies = frequencies * (1 - interpolated) + frequencies / factor * interpolated

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

    mscale, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    magnitude = temperature(mscale) / temperature(all_dim) if mscale and all_dim else temperature(1)
    return frequencies, magnitude, temperature(all_dim) ** 2 if all_dim else 1.0
