"""The demo model for training: DeepSeek-V3 in its expanded form, with the MTP layer, in plain torch.

Parameters carry the names of the Hugging Face checkpoint, except that an MoE layer's experts are stacked; checkpoint.py
takes them apart.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mlc_dsv3.demo.training.config import DemoConfig
from mlc_dsv3.demo.training.experts import RoutedExperts
from mlc_dsv3.demo.training.quantize import fake_quantize


class Rounding:
    """Whether the matrices of a model are seen through 4-bit rounding; one switch shared by all modules of a model."""

    on = False

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight`, rounded if the switch is on (its gradient passes unchanged)."""
        return fake_quantize(weight) if self.on else weight


class Linear(nn.Module):
    """y = x W^T without a bias."""

    def __init__(self, inputs: int, outputs: int, rounding: Rounding, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * gain * inputs**-0.5)
        self.rounding = rounding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, self.rounding(self.weight))


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the interleaved pairs of x (..., rope) by cos and sin (..., rope/2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)


def _largest_norms(x: torch.Tensor) -> torch.Tensor:
    """x (B, heads, S, width) -> the largest norm of each head's vectors (heads,)."""
    return x.detach().norm(dim=-1).amax(dim=(0, 2))


class Attention(nn.Module):
    """Multi-head latent attention, keys and values expanded (DeepSeek-V3 paper, section 2.1.1)."""

    def __init__(self, c: DemoConfig, rounding: Rounding) -> None:
        super().__init__()
        self.c = c
        heads = c.num_attention_heads
        self.q_a_proj = Linear(c.hidden_size, c.q_lora_rank, rounding)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = Linear(c.q_lora_rank, heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), rounding)
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, c.kv_lora_rank + c.qk_rope_head_dim, rounding)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), rounding)
        self.o_proj = Linear(heads * c.v_head_dim, c.hidden_size, rounding, gain=0.1)
        self.score_bounds = torch.zeros(2, heads)  # of the last batch: |q| |k| of content and of position

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x (B, S, H), cos and sin (B, 1, S, rope/2), bias (B, 1, S, S) added to the scores."""
        c = self.c
        batch, length, _ = x.shape
        q = (
            self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
            .view(batch, length, c.num_attention_heads, -1)
            .transpose(1, 2)
        )
        q_nope, q_pe = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)  # (B, heads, S, nope | rope)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, c.num_attention_heads, -1).transpose(1, 2)
        k_nope, v = kv.split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)  # (B, heads, S, nope | v)
        self.score_bounds = torch.stack(
            (_largest_norms(q_nope) * _largest_norms(k_nope), _largest_norms(q_pe) * _largest_norms(k_pe.unsqueeze(1)))
        )
        k_pe = rotate(k_pe.unsqueeze(1), cos, sin).expand(-1, c.num_attention_heads, -1, -1)
        q = torch.cat((q_nope, rotate(q_pe, cos, sin)), dim=-1)
        k = torch.cat((k_nope, k_pe), dim=-1)
        scores = torch.matmul(q * c.softmax_scale, k.transpose(2, 3)) + bias  # (B, heads, S, S)
        self.scores = scores  # for aid.py
        out = torch.matmul(scores.softmax(dim=-1), v)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))

    @torch.no_grad()
    def clip_scores(self, nope_limit: float, rope_limit: float) -> None:
        """Scales down the queries and keys of heads whose scores may pass a limit (QK-clip, arXiv 2507.20534).

        Muon lets the unnormalised k_pe grow until attention saturates and nothing can be learned through it. Content
        and position have limits of their own, for else the growth of one shrinks the other.
        """
        c = self.c
        queries = self.q_b_proj.weight.view(c.num_attention_heads, -1, c.q_lora_rank)
        keys = self.kv_b_proj.weight.view(c.num_attention_heads, -1, c.kv_lora_rank)
        nope, rope = (self.score_bounds * c.softmax_scale).view(2, -1, 1, 1)
        factor = (nope_limit / nope.clamp(min=nope_limit)).sqrt()
        queries[:, : c.qk_nope_head_dim] *= factor
        keys[:, : c.qk_nope_head_dim] *= factor
        queries[:, c.qk_nope_head_dim :] *= rope_limit / rope.clamp(min=rope_limit)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, width: int, rounding: Rounding) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, width, rounding)
        self.up_proj = Linear(hidden, width, rounding)
        self.down_proj = Linear(width, hidden, rounding, gain=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., hidden)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Group-limited top-k routing with sigmoid scores and a correction bias (DeepSeek-V3 paper, section 2.1.2)."""

    def __init__(self, c: DemoConfig) -> None:
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.randn(c.n_routed_experts, c.hidden_size) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(c.n_routed_experts))
        self.load = torch.zeros(c.n_routed_experts)  # tokens of the last batch per expert

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (T, H) -> chosen experts and their weights, both (T, K)."""
        c = self.c
        scores = F.linear(x, self.weight).sigmoid()
        with torch.no_grad():
            choice = (scores + self.e_score_correction_bias).view(len(x), c.n_group, -1)
            best_groups = choice.topk(2, dim=-1).values.sum(-1).topk(c.topk_group, dim=-1).indices
            allowed = torch.zeros(len(x), c.n_group, dtype=torch.bool).scatter_(1, best_groups, True)
            choice = choice.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(1)
            chosen = choice.topk(c.num_experts_per_tok, dim=-1).indices
            self.load = chosen.flatten().bincount(minlength=c.n_routed_experts).float()
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * c.routed_scaling_factor
        return chosen, weights

    def balance(self, speed: float) -> None:
        """Moves the bias of each expert by `speed` towards the mean load (auxiliary-loss-free load balancing)."""
        self.e_score_correction_bias += speed * torch.sign(self.load.mean() - self.load)

    def violation(self) -> torch.Tensor:
        """Each expert's load over the mean load, minus 1."""
        return self.load / self.load.mean() - 1


class MoE(nn.Module):
    """Routed experts plus the shared expert."""

    def __init__(self, c: DemoConfig, rounding: Rounding) -> None:
        super().__init__()
        self.gate = Gate(c)
        experts, width, hidden = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * width, hidden) * hidden**-0.5)
        self.gate_up.stacked = 2  # matrices per expert, for the optimizer
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * 0.1 * width**-0.5)
        self.shared_experts = MLP(hidden, width * c.n_shared_experts, rounding)
        self.rounding = rounding
        self.routed = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, H) -> (B, S, H); the shared expert alone while `routed` is off."""
        if not self.routed:
            return self.shared_experts(x)
        flat = x.flatten(0, 1)
        chosen, weights = self.gate(flat)
        routed = RoutedExperts.apply(flat, chosen, weights, self.rounding(self.gate_up), self.rounding(self.down))
        return routed.view_as(x) + self.shared_experts(x)


class DecoderLayer(nn.Module):
    """Attention and a dense or MoE feed-forward, both with a residual."""

    def __init__(self, c: DemoConfig, rounding: Rounding, dense: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c, rounding)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, rounding) if dense else MoE(c, rounding)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(B, S, H) -> (B, S, H)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class MTPLayer(DecoderLayer):
    """Predicts the token after the next one (DeepSeek-V3 paper, section 2.2)."""

    def __init__(self, c: DemoConfig, rounding: Rounding) -> None:
        super().__init__(c, rounding, dense=False)
        self.enorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.hnorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.eh_proj = Linear(2 * c.hidden_size, c.hidden_size, rounding)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(c.hidden_size, c.rms_norm_eps)})


class DemoModel(nn.Module):
    """The whole model; embedding and head are shared by the main model and the MTP layer."""

    def __init__(self, c: DemoConfig) -> None:
        super().__init__()
        self.c = c
        self.rounding = Rounding()
        self.embed_tokens = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.3)
        # The same in all tokens, so that heads find positions by rotation without learning a constant first.
        self.embed_tokens.data[:, :8] = 0.3
        layers = [DecoderLayer(c, self.rounding, dense=i < c.first_k_dense_replace) for i in range(c.num_hidden_layers)]
        self.layers = nn.ModuleList([*layers, MTPLayer(c, self.rounding)])
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, self.rounding, gain=0.1)
        self.register_buffer("inverse_frequencies", torch.tensor(c.inverse_frequencies()), persistent=False)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions.unsqueeze(1).unsqueeze(-1).float() * self.inverse_frequencies  # (B, 1, S, rope/2)
        return angles.cos(), angles.sin()

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S) -> (B, S, H)."""
        return F.embedding(tokens, self.rounding(self.embed_tokens))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """tokens and positions (B, S), bias (B, 1, S, S) -> hidden states after the final norm (B, S, H)."""
        cos, sin = self._rotation(positions)
        x = self.embed(tokens)
        self.outputs = []  # of each layer, for aid.py
        for layer in self.layers[:-1]:
            x = layer(x, cos, sin, bias)
            self.outputs.append(x)
        return self.norm(x)

    def draft(
        self, hidden: torch.Tensor, following: torch.Tensor, positions: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """The MTP layer's normed output (B, S, H) for `hidden` of forward() and, at each position, the next token."""
        mtp = self.layers[-1]
        cos, sin = self._rotation(positions)
        x = mtp.eh_proj(torch.cat((mtp.enorm(self.embed(following)), mtp.hnorm(hidden)), dim=-1))
        return mtp.shared_head["norm"](mtp(x, cos, sin, bias))

    def set_routed(self, routed: bool) -> None:
        """Switches the routed experts of all layers on or off."""
        for layer in self.layers:
            if isinstance(layer.mlp, MoE):
                layer.mlp.routed = routed

    def gates(self) -> dict[int, Gate]:
        """The router of each MoE layer by the layer's index."""
        return {i: layer.mlp.gate for i, layer in enumerate(self.layers) if isinstance(layer.mlp, MoE)}


def causal_bias(documents: torch.Tensor) -> torch.Tensor:
    """documents (B, S): tokens see earlier tokens of their own document only -> (B, 1, S, S) of 0 and -inf."""
    length = documents.shape[1]
    same = documents.unsqueeze(1) == documents.unsqueeze(2)
    seen = same & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf")).unsqueeze(1)
