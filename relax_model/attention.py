"""Multi-head latent attention of one layer (DeepSeek-V2, section 2.1), in its absorbed or expanded form."""

from __future__ import annotations

from tvm.relax import Expr, Var

from relax_model.graph import Activation, Graph, tensor
from relax_model.kernels.attention.cpu_absorbed import query_columns
from relax_model.kernels.attention.shape import AttentionShape
from relax_model.step import Step

# The norms inside attention keep this whatever rms_norm_eps says: DeepSeek's code leaves theirs at its default.
_INNER_EPS = 1e-6


def attention_shape(graph: Graph) -> AttentionShape:
    """The attention kernels' shape for the model that `graph` builds."""
    config = graph.config
    return AttentionShape(
        heads=config.num_attention_heads,
        kv_lora_rank=config.kv_lora_rank,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        v=config.v_head_dim,
        interleaved=config.rope.interleaved,
        scale=config.softmax_scale,
        page_size=graph.options.page_size,
        cache_dtype=graph.options.cache_dtype,
    )


def attention(graph: Graph, prefix: str, x: Activation, residual: Expr, cache: Expr, step: Step) -> tuple[Var, Var]:
    """x, residual (rows, hidden) → residual + attention(x), and the cache with the rows' latents appended."""
    shape = attention_shape(graph)
    q, kv_a = _projections(graph, prefix, x)
    append = _append_inputs(graph, prefix, kv_a, cache, step)
    if graph.fuses and not step.expanded:
        o, cache = _absorbed_with_append(graph, prefix, shape, q, append, step)
    else:
        cache = graph.call_inplace("latent_append", (shape, _INNER_EPS), append, place=len(append) - 1)
        attend = _expanded if step.expanded else _absorbed
        o = attend(graph, prefix, shape, q, cache, step)  # (rows, heads · v)
    return graph.linear(f"{prefix}.o_proj", graph.quantize(o), residual), cache


def append_latents(graph: Graph, prefix: str, x: Activation, cache: Expr, step: Step) -> Var:
    """The cache with the latents of x's rows appended, for rows that are attended to and do not attend."""
    inputs = _append_inputs(graph, prefix, graph.linear(f"{prefix}.kv_a_proj_with_mqa", x), cache, step)
    return graph.call_inplace("latent_append", (attention_shape(graph), _INNER_EPS), inputs, place=len(inputs) - 1)


def _append_inputs(graph: Graph, prefix: str, kv_a: Expr, cache: Expr, step: Step) -> list[Expr]:
    weight = graph.parameter(f"{prefix}.kv_a_layernorm.weight")
    return [kv_a, *weight, step.rope_table, *step.where, cache]


def _absorbed_with_append(
    graph: Graph, prefix: str, shape: AttentionShape, q: Expr, append: list[Expr], step: Step
) -> tuple[Var, Expr]:
    """The absorbed form in two kernels, the first of which appends the rows' latents as well."""
    rows, layout, kv_b = q.ty.shape[0], graph.options.layout, graph.parameter(f"{prefix}.kv_b_proj")
    inputs, queries = [q, *kv_b, *append], tensor((rows, shape.heads, shape.latent_width))
    both = graph.call_inplace("absorb_append", (layout, shape, _INNER_EPS), inputs, len(inputs) - 1, [queries])
    values = tensor((rows, shape.heads * shape.v))
    return graph.call("absorbed_values", (layout, shape), [both[1], *kv_b, *step.where, both[0]], values), both[0]


def _expanded(graph: Graph, prefix: str, shape: AttentionShape, q: Expr, cache: Expr, step: Step) -> Var:
    kv_b = graph.parameter(f"{prefix}.kv_b_proj")
    return graph.call(
        "expanded_attention",
        (graph.options.layout, shape, graph.options.prefill_block),
        [q, step.rope_table, *kv_b, *step.where, cache],
        tensor((q.ty.shape[0], shape.heads * shape.v)),
    )


def _absorbed(graph: Graph, prefix: str, shape: AttentionShape, q: Expr, cache: Expr, step: Step) -> Var:
    rows, layout, kv_b = q.ty.shape[0], graph.options.layout, graph.parameter(f"{prefix}.kv_b_proj")
    # Queries are made in the groups of heads that attention takes them in.
    tile = graph.tile_of("absorbed_attention", (layout, shape))
    queries = tensor((rows, *query_columns(shape, tile)))
    q_latent = graph.call("query_absorb", (layout, shape), [q, step.rope_table, *kv_b], queries, tile=tile)
    inputs = [q_latent, *step.where, cache]
    if graph.quantizes:
        # Each head's row of latents has whole groups of codes.
        head = -(-shape.kv_lora_rank // layout.base.group_size) * layout.base.group_size
        o = graph.activation("absorbed_attention", (layout, shape), inputs, (rows, shape.heads * head)).inputs
    else:
        o = [graph.call("absorbed_attention", (layout, shape), inputs, tensor((rows, shape.heads, shape.kv_lora_rank)))]
    return graph.call("value_project", (layout, shape), [*o, *kv_b], tensor((rows, shape.heads * shape.v)))


def _projections(graph: Graph, prefix: str, x: Activation) -> tuple[Expr, Expr]:
    """Queries (rows, heads · (nope + rope)); latents, before their norm, with the shared key (rows, latent_width)."""
    kv_a = f"{prefix}.kv_a_proj_with_mqa"
    if graph.config.q_lora_rank is None:
        return graph.linear_pair(f"{prefix}.q_proj", kv_a, x)
    q_a, latents = graph.linear_pair(f"{prefix}.q_a_proj", kv_a, x)
    weight = graph.parameter(f"{prefix}.q_a_layernorm.weight")
    return graph.linear(f"{prefix}.q_b_proj", graph.norm(q_a, weight, _INNER_EPS)), latents
