"""Feed-forward layers: the dense one, and DeepSeekMoE (DeepSeek-V3 report, section 2.1.2)."""

from __future__ import annotations

from tvm.relax import Expr, Var

from relax_model.graph import Activation, Graph, tensor


def mlp(graph: Graph, prefix: str, x: Activation, residual: Expr) -> Var:
    """residual + down(silu(gate(x)) · up(x)); x, residual (rows, hidden)."""
    width = graph.shape_of(f"{prefix}.down_proj")[1]
    name, shape = f"{prefix}.gate_up_proj", (x.rows, width)
    if graph.quantizes:
        h = graph.activation("gate_up", (graph.options.layout,), [*x.inputs, *graph.parameter(name)], shape)
    else:
        h = graph.activation("silu_mul", (width,), [graph.linear(name, x)], shape)
    return graph.linear(f"{prefix}.down_proj", h, residual)


def moe(graph: Graph, prefix: str, x: Activation, residual: Expr) -> Var:
    """residual + shared experts(x) + the chosen experts' weighted outputs; x (with values), residual (rows, hidden)."""
    config, router = graph.config, graph.config.router
    assert router is not None
    assert x.values is not None
    rows, hidden = x.rows, config.hidden_size
    experts, top_k = router.n_routed_experts, router.num_experts_per_tok

    gate = graph.parameter(f"{prefix}.gate.weight")
    bias = graph.parameter(f"{prefix}.gate.e_score_correction_bias") if router.has_correction_bias else []
    chosen = graph.call(
        "route",
        (router, hidden),
        [x.values, *gate, *bias],
        [
            tensor((rows, experts)),  # the logits, which nobody else reads
            tensor((rows, top_k), "int32"),
            tensor((rows, top_k)),
            tensor((rows, top_k), "int32"),
            tensor((experts + 1,), "int32"),
        ],
    )
    weights, by_expert = chosen[2], [chosen[3], chosen[4]]
    outputs = _experts(graph, f"{prefix}.experts", x, by_expert)
    if config.n_shared_experts:
        residual = mlp(graph, f"{prefix}.shared_experts", x, residual)
    return graph.call("combine_experts", (hidden, top_k), [outputs, weights, residual], tensor((rows, hidden)))


def _experts(graph: Graph, prefix: str, x: Activation, by_expert: list[Expr]) -> Var:
    """Each (row, slot) pair's expert on its row: float32 (pairs, hidden)."""
    config, router, layout = graph.config, graph.config.router, graph.options.layout
    hidden, width = config.hidden_size, config.moe_intermediate_size
    experts, top_k = router.n_routed_experts, router.num_experts_per_tok
    pairs = x.rows * top_k
    gate_up, down = graph.parameter(f"{prefix}.gate_up_proj"), graph.parameter(f"{prefix}.down_proj")
    if graph.quantizes:
        arguments = (layout, experts, width, hidden, top_k)
        h = graph.activation("expert_gate_up", arguments, [*x.inputs, *by_expert, *gate_up], (pairs, width))
        arguments = (layout, experts, hidden, width, top_k)
        return graph.call("expert_down", arguments, [*h.inputs, *by_expert, *down], tensor((pairs, hidden)))
    arguments = (layout, experts, 2 * width, hidden, top_k, False)
    wide = graph.call("expert_linear", arguments, [*x.inputs, *by_expert, *gate_up], tensor((pairs, 2 * width)))
    h = graph.call("silu_mul", (width,), [wide], tensor((pairs, width)))
    arguments = (layout, experts, hidden, width, top_k, True)
    return graph.call("expert_linear", arguments, [h, *by_expert, *down], tensor((pairs, hidden)))
