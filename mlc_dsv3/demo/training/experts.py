"""The routed experts of a MoE layer as one differentiable operation, fast on a CPU.

Tokens are sorted by expert, so that each expert is one matrix product over a contiguous slice; model.py calls it.
"""

import torch
from torch.autograd.function import FunctionCtx


class RoutedExperts(torch.autograd.Function):
    """Sum over a token's chosen experts of `weight * down(silu(gate(x)) * up(x))` (DeepSeek-V3 paper, equation 12)."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
    ) -> torch.Tensor:
        """x (T, H), chosen and weights (T, K), gate_up (E, 2W, H), down (E, H, W) -> (T, H)."""
        tokens, top_k = chosen.shape
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        token = order // top_k
        ends = flat.bincount(minlength=gate_up.shape[0]).cumsum(0).tolist()
        slices = [(e, start, end) for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)) if end > start]
        sorted_weights = weights.flatten()[order].unsqueeze(1)

        xs = x.index_select(0, token)  # (T*K, H)
        gu = x.new_empty(len(order), gate_up.shape[1])
        for e, start, end in slices:
            torch.mm(xs[start:end], gate_up[e].T, out=gu[start:end])
        gate, up = gu.chunk(2, dim=1)
        hidden = torch.nn.functional.silu(gate) * up
        ys = torch.empty_like(xs)
        for e, start, end in slices:
            torch.mm(hidden[start:end], down[e].T, out=ys[start:end])
        ctx.save_for_backward(xs, gu, hidden, ys, sorted_weights, token, inverse, gate_up, down)
        ctx.slices = slices
        ctx.shape = (tokens, top_k)
        return (ys * sorted_weights).index_select(0, inverse).view(tokens, top_k, -1).sum(1)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients for x, weights, gate_up and down."""
        xs, gu, hidden, ys, sorted_weights, token, inverse, gate_up, down = ctx.saved_tensors
        grads = grad.index_select(0, token)  # (T*K, H)
        d_weights = (grads * ys).sum(1).index_select(0, inverse).view(ctx.shape)
        grads *= sorted_weights
        d_hidden = torch.empty_like(hidden)
        d_down = torch.zeros_like(down)
        for e, start, end in ctx.slices:
            torch.mm(grads[start:end], down[e], out=d_hidden[start:end])
            torch.mm(grads[start:end].T, hidden[start:end], out=d_down[e])
        gate, up = gu.chunk(2, dim=1)
        sigmoid = gate.sigmoid()
        silu = gate * sigmoid
        d_gu = torch.cat((d_hidden * up * (sigmoid + silu * (1 - sigmoid)), d_hidden * silu), dim=1)
        d_xs = torch.empty_like(xs)
        d_gate_up = torch.zeros_like(gate_up)
        for e, start, end in ctx.slices:
            torch.mm(d_gu[start:end], gate_up[e], out=d_xs[start:end])
            torch.mm(d_gu[start:end].T, xs[start:end], out=d_gate_up[e])
        d_x = d_xs.index_select(0, inverse).view(*ctx.shape, -1).sum(1)
        return d_x, None, d_weights, d_gate_up, d_down
