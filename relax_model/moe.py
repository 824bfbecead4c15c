"""Feed-forward layers: the dense one, and DeepSeekMoE (DeepSeek-V3 report, section 2.1.2)."""

from __future__ import annotations

from tvm.relax import Expr, Var

from relax_model.graph import EXACT, Graph, tensor


def mlp(graph: Graph, prefix: str, x: Expr, residual: Expr) -> Var:
    """residual + down(silu(gate(x)) · up(x)); x, residual (rows, hidden)."""
    gate_up = graph.linear(f"{prefix}.gate_up_proj", x)  # (rows, 2 · width)
    width = graph.shape_of(f"{prefix}.down_proj")[1]
    h = graph.call("silu_mul", (width,), [gate_up], tensor((x.ty.shape[0], width)))
    return graph.linear(f"{prefix}.down_proj", h, residual)


def moe(graph: Graph, prefix: str, x: Expr, residual: Expr) -> Var:
    """residual + shared experts(x) + the chosen experts' outputs, weighted; x, residual (rows, hidden)."""
    config, router, layout = graph.config, graph.config.router, graph.options.layout
    assert router is not None
    rows, hidden, width = x.ty.shape[0], config.hidden_size, config.moe_intermediate_size
    experts, top_k = router.n_routed_experts, router.num_experts_per_tok

    gate = graph.parameter(f"{prefix}.gate.weight")
    logits = graph.call("linear", (EXACT, experts, hidden, False), [x, *gate], tensor((rows, experts)))
    bias = graph.parameter(f"{prefix}.gate.e_score_correction_bias") if router.has_correction_bias else []
    choice = [tensor((rows, top_k), "int32"), tensor((rows, top_k))]
    chosen = graph.call("route", (router,), [logits, *bias], choice)
    ids, weights = chosen[0], chosen[1]
    order = [tensor((rows, top_k), "int32"), tensor((experts + 1,), "int32")]
    by_expert = graph.call("sort_by_expert", (experts, top_k), [ids], order)
    pairs, offsets = by_expert[0], by_expert[1]

    gate_up = graph.call(
        "expert_linear",
        (layout, experts, 2 * width, hidden, top_k, False),
        [x, pairs, offsets, *graph.parameter(f"{prefix}.experts.gate_up_proj")],
        tensor((rows * top_k, 2 * width)),
    )
    h = graph.call("silu_mul", (width,), [gate_up], tensor((rows * top_k, width)))
    outputs = graph.call(
        "expert_linear",
        (layout, experts, hidden, width, top_k, True),
        [h, pairs, offsets, *graph.parameter(f"{prefix}.experts.down_proj")],
        tensor((rows * top_k, hidden)),
    )
    if config.n_shared_experts:
        residual = mlp(graph, f"{prefix}.shared_experts", x, residual)
    return graph.call("combine_experts", (hidden, top_k), [outputs, weights, residual], tensor((rows, hidden)))
