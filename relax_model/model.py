"""The decoder and its MTP layers, and the functions that a library exports.

    step             tokens → logits of the wanted rows and all rows' hidden states; attention absorbed
    prefill          (with `prefill_block`) the same for one whole block of a prompt; attention expanded
    draft            (with MTP) next tokens and hidden states → logits of the tokens after next, and hidden states
    follow           (with MTP) the same inputs; only the layer's latents, for rows whose predictions nobody wants
    sample           (on GPUs) logits → tokens
    sample_masked    (on GPUs) the same, of the tokens that bit masks allow

The latent caches come in as one tuple of tensors and are appended to in place; everything else is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from tvm import IRModule, relax, tirx
from tvm.relax import BlockBuilder, Expr, Var

from relax_model.attention import append_latents, attention
from relax_model.config import ModelConfig
from relax_model.graph import Activation, BuildOptions, Graph, KernelCall, Observer, packed_types, tensor
from relax_model.kernels import registry
from relax_model.layout import cache_width
from relax_model.moe import mlp, moe
from relax_model.sampling import CHUNK, WORDS, mask_words
from relax_model.step import Step


def build_module(
    config: ModelConfig, options: BuildOptions, observe: Callable[[str, KernelCall], None] | None = None
) -> IRModule:
    """The IRModule of `config`: its exported functions, and the kernels that they call.

    `observe(function, call)` is told of every call of a kernel.
    """
    builder = BlockBuilder()

    def watching(name: str) -> Observer | None:
        return partial(observe, name) if observe else None

    _export_step(builder, config, options, watching("step"), expanded=False)
    exported = exported_functions(config, options)
    if "prefill" in exported:
        _export_step(builder, config, options, watching("prefill"), expanded=True)
    if "draft" in exported:
        _export_draft(builder, config, options, watching("draft"))
        _export_follow(builder, config, options, watching("follow"))
    if "sample" in exported:
        _export_sample(builder, config, options, watching("sample"), has_mask=False)
        _export_sample(builder, config, options, watching("sample_masked"), has_mask=True)
    return builder.finalize()


def exported_functions(config: ModelConfig, options: BuildOptions) -> tuple[str, ...]:
    """The names of the functions that a library has, but for `_metadata`."""
    wanted = {
        "step": True,
        "prefill": options.prefill_block > 0,
        "draft": config.num_nextn_predict_layers > 0,
        "follow": config.num_nextn_predict_layers > 0,
        "sample": registry.offers("sample", options.family),
        "sample_masked": registry.offers("sample", options.family),
    }
    return tuple(name for name, there in wanted.items() if there)


class _Arguments:
    """The arguments that every exported function takes, in their order."""

    def __init__(self, config: ModelConfig, options: BuildOptions) -> None:
        def size(name: str) -> tirx.Var:
            return tirx.Var(name, "int64")

        self.rows, wanted = size("rows"), size("wanted")
        sequences, longest, pages = size("sequences"), size("longest"), size("pages")
        self.wanted_rows = wanted
        self.tokens = relax.Var("tokens", tensor((self.rows,), "int32"))
        self.hidden = relax.Var("hidden", tensor((size("states"), config.hidden_size)))
        self.sources = relax.Var("sources", tensor((self.rows,), "int32"))
        self.positions = relax.Var("positions", tensor((self.rows,), "int32"))
        self.sequences = relax.Var("sequences", tensor((self.rows,), "int32"))
        self.page_table = relax.Var("page_table", tensor((sequences, longest), "int32"))
        self.wanted = relax.Var("wanted", tensor((wanted,), "int32"))
        width = cache_width(options.cache_dtype, config.kv_lora_rank, config.qk_rope_head_dim)
        cache = tensor((pages, options.page_size, width), options.cache_dtype)
        self.caches = relax.Var("caches", relax.TupleType([cache] * config.num_cached_layers))
        types = [type_ for _, type_ in packed_types(config, options.layout)]
        self.packed = relax.Var("parameters", relax.TupleType(types))

    def step(self) -> list[Var]:
        where = [self.positions, self.sequences, self.page_table, self.wanted]
        return [self.tokens, *where, self.caches, self.packed]

    def draft(self) -> list[Var]:
        where = [self.positions, self.sequences, self.page_table]
        return [self.tokens, self.hidden, self.sources, *where, self.caches, self.packed]


def _attributes(options: BuildOptions) -> dict[str, object]:
    return {"tir_var_upper_bound": {"rows": options.max_rows, "wanted": options.max_rows}}


def _step(graph: Graph, arguments: _Arguments, expanded: bool) -> Step:
    rope = graph.config.rope
    frequencies = graph.constant(rope.inverse_frequencies().astype(np.float32))
    table = graph.call(
        "rope_table",
        (rope.dim, rope.magnitude),
        [arguments.positions, frequencies],
        tensor((arguments.rows, rope.dim)),
    )
    return Step(arguments.positions, arguments.sequences, arguments.page_table, table, expanded)


def _export_step(
    builder: BlockBuilder, config: ModelConfig, options: BuildOptions, observe: Observer | None, *, expanded: bool
) -> None:
    arguments = _Arguments(config, options)
    with builder.function("prefill" if expanded else "step", arguments.step(), attrs=_attributes(options)):
        with builder.dataflow():
            graph = Graph(builder, config, options, arguments.packed, observe)
            step = _step(graph, arguments, expanded)
            x = _embed(graph, arguments.tokens)
            for layer in range(config.num_hidden_layers):
                x = _decoder_layer(graph, layer, x, arguments.caches, step)
            normed = graph.norm(x, graph.parameter("model.norm.weight"), config.rms_norm_eps, keep=True)
            # The head runs on the wanted rows alone.
            width, hidden = config.hidden_size, normed.values
            shape = (arguments.wanted_rows, width)
            inputs = [hidden, arguments.wanted]
            selected = graph.activation("select_rows", (options.layout, width), inputs, shape)
            result = builder.emit_output(relax.Tuple([_head(graph, selected), hidden]))
        builder.emit_func_output(result)


def _export_draft(builder: BlockBuilder, config: ModelConfig, options: BuildOptions, observe: Observer | None) -> None:
    """The first MTP layer (DeepSeek-V3 report, section 2.2): row i takes hidden[sources[i]], the main model's after its
    final norm or this function's own of the step before."""
    arguments = _Arguments(config, options)
    layer = config.num_hidden_layers
    with builder.function("draft", arguments.draft(), attrs=_attributes(options)):
        with builder.dataflow():
            graph = Graph(builder, config, options, arguments.packed, observe)
            step = _step(graph, arguments, expanded=False)
            x = _decoder_layer(graph, layer, _mtp_input(graph, layer, arguments), arguments.caches, step)
            weight = graph.parameter(f"model.layers.{layer}.shared_head.norm.weight")
            normed = graph.norm(x, weight, config.rms_norm_eps, keep=True)
            result = builder.emit_output(relax.Tuple([_head(graph, normed), normed.values]))
        builder.emit_func_output(result)


def _export_follow(builder: BlockBuilder, config: ModelConfig, options: BuildOptions, observe: Observer | None) -> None:
    """What `draft` appends to the layer's cache, which it returns. The layer is one layer deep: later rows see no more
    of these."""
    arguments = _Arguments(config, options)
    layer = config.num_hidden_layers
    with builder.function("follow", arguments.draft(), attrs=_attributes(options)):
        with builder.dataflow():
            graph = Graph(builder, config, options, arguments.packed, observe)
            step, prefix = _step(graph, arguments, expanded=False), f"model.layers.{layer}"
            weight = graph.parameter(f"{prefix}.input_layernorm.weight")
            normed = graph.norm(_mtp_input(graph, layer, arguments), weight, config.rms_norm_eps)
            cache = builder.emit(relax.TupleGetItem(arguments.caches, layer))
            result = builder.emit_output(append_latents(graph, f"{prefix}.self_attn", normed, cache, step))
        builder.emit_func_output(result)


def _export_sample(
    builder: BlockBuilder, config: ModelConfig, options: BuildOptions, observe: Observer | None, *, has_mask: bool
) -> None:
    """logits float32 (wanted, vocab_size), words int32 (sampled, WORDS), and with `has_mask` a mask for each → tokens
    int32 (sampled,); what words and masks say stands in `relax_model.sampling`."""
    wanted, sampled = tirx.Var("wanted", "int64"), tirx.Var("sampled", "int64")
    logits = relax.Var("logits", tensor((wanted, config.vocab_size)))
    words = relax.Var("words", tensor((sampled, WORDS), "int32"))
    masks = relax.Var("masks", tensor((sampled, mask_words(config.vocab_size)), "int32"))
    name, inputs = ("sample_masked", [logits, words, masks]) if has_mask else ("sample", [logits, words])
    with builder.function(name, inputs, attrs={"tir_var_upper_bound": {"sampled": options.max_rows}}):
        with builder.dataflow():
            graph = Graph(builder, config, options, None, observe)
            chunks = -(-config.vocab_size // CHUNK)
            types = [tensor((sampled,), "int32"), tensor((sampled, chunks), "int64")]
            tokens = graph.call("sample", (config.vocab_size, has_mask), inputs, types)[0]
            result = builder.emit_output(tokens)
        builder.emit_func_output(result)


def _embed(graph: Graph, tokens: Expr) -> Var:
    vocabulary, width = graph.shape_of("model.embed_tokens")
    table = graph.parameter("model.embed_tokens")
    out = tensor((tokens.ty.shape[0], width))
    return graph.call("embedding", (graph.options.layout, vocabulary, width), [tokens, *table], out)


def _mtp_input(graph: Graph, layer: int, arguments: _Arguments) -> Var:
    """The next tokens' embeddings and the hidden states, projected: float32 (rows, hidden)."""
    prefix, width = f"model.layers.{layer}", graph.config.hidden_size
    norms = graph.parameter(f"{prefix}.enorm.weight") + graph.parameter(f"{prefix}.hnorm.weight")
    joined = graph.call(
        "mtp_input",
        (width, graph.config.rms_norm_eps),
        [_embed(graph, arguments.tokens), arguments.hidden, arguments.sources, *norms],
        tensor((arguments.rows, 2 * width)),
    )
    return graph.linear(f"{prefix}.eh_proj", graph.quantize(joined))


def _decoder_layer(graph: Graph, layer: int, x: Expr, caches: Var, step: Step) -> Var:
    """One layer on its own cache; x (rows, hidden) → (rows, hidden)."""
    prefix = f"model.layers.{layer}"
    cache = graph.builder.emit(relax.TupleGetItem(caches, layer))
    eps, is_moe = graph.config.rms_norm_eps, graph.config.moe_layers[layer]
    normed = graph.norm(x, graph.parameter(f"{prefix}.input_layernorm.weight"), eps)
    x, _ = attention(graph, f"{prefix}.self_attn", normed, x, cache, step)
    # A router of its own reads the values themselves.
    keep = is_moe and not graph.fuses
    normed = graph.norm(x, graph.parameter(f"{prefix}.post_attention_layernorm.weight"), eps, keep=keep)
    return (moe if is_moe else mlp)(graph, f"{prefix}.mlp", normed, x)


def _head(graph: Graph, hidden: Activation) -> Var:
    """Normalised rows → their logits, float32 (rows, vocabulary)."""
    return graph.linear("model.embed_tokens" if graph.config.tie_word_embeddings else "lm_head", hidden)
