"""Feed-forward layers: the dense one, and DeepSeekMoE (DeepSeek-V3 report, section 2.1.2)."""

from __future__ import annotations

from tvm.relax import Expr, Var

from relax_model.graph import Activation, Graph, tensor
from relax_model.layout import layout_of


def mlp(graph: Graph, prefix: str, x: Activation, residual: Expr) -> Var:
    """residual + down(silu(gate(x)) · up(x)); x, residual (rows, hidden)."""
    width = graph.shape_of(f"{prefix}.down_proj")[1]
    name, shape = f"{prefix}.gate_up_proj", (x.rows, width)
    if graph.fuses:
        arguments = (graph.options.layout, width, graph.config.hidden_size, x.eps)
        h = graph.activation("gate_up_silu", arguments, [*x.inputs, *graph.parameter(name)], shape)
    elif graph.quantizes:
        inputs, matrix = [*x.inputs, *graph.parameter(name)], graph.shape_of(name)
        h = graph.activation("gate_up", (graph.options.layout,), inputs, shape, matrix=matrix)
    else:
        h = graph.activation("silu_mul", (width,), [graph.linear(name, x)], shape)
    return graph.linear(f"{prefix}.down_proj", h, residual)


def moe(graph: Graph, prefix: str, x: Activation, residual: Expr) -> Var:
    """residual + shared experts(x) + the chosen experts' weighted outputs; x, residual (rows, hidden).

    x is the residual normalised, and has its values where `graph` does not fuse.
    """
    if graph.fuses:
        return _fused(graph, prefix, x, residual)
    config, router = graph.config, graph.config.router
    assert router is not None
    assert x.values is not None
    rows, hidden = x.rows, config.hidden_size
    experts, top_k = router.n_routed_experts, router.num_experts_per_tok
    chosen = graph.call(
        "route",
        (router, hidden),
        [x.values, *graph.parameter(f"{prefix}.gate.weight"), *_bias(graph, prefix)],
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


def _bias(graph: Graph, prefix: str) -> list[Expr]:
    router = graph.config.router
    return graph.parameter(f"{prefix}.gate.e_score_correction_bias") if router and router.has_correction_bias else []


def _fused(graph: Graph, prefix: str, x: Activation, residual: Expr) -> Var:
    """Two kernels: the router beside the shared experts' gate and up, and all that follows."""
    config, router, layout = graph.config, graph.config.router, graph.options.layout
    assert router is not None
    hidden, width, count, rows = config.hidden_size, config.moe_intermediate_size, router.n_routed_experts, x.rows
    shared = width * (config.n_shared_experts or 0)
    gate, logits, own = graph.parameter(f"{prefix}.gate.weight"), tensor((rows, count)), []
    if shared:
        name = f"{prefix}.shared_experts"
        both = graph.call(
            "gate_up_silu",
            (layout, shared, hidden, x.eps, count),
            [*x.inputs, *graph.parameter(f"{name}.gate_up_proj"), *gate],
            [tensor((rows, shared)), logits],
        )
        own, scores = [both[0], *graph.parameter(f"{name}.down_proj")], both[1]
    else:
        scores = graph.call("linear", (layout_of("q0f32"), count, hidden, False, x.eps), [*x.inputs, *gate], logits)
    matrices = [
        array for name in ("gate_up_proj", "down_proj") for array in graph.parameter(f"{prefix}.experts.{name}")
    ]
    return graph.call(
        "experts",
        (layout, router, width, hidden, shared, x.eps),
        [*x.inputs, scores, *_bias(graph, prefix), *matrices, *own],
        tensor((rows, hidden)),
    )


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
