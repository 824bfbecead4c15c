"""DeepSeekMoE for GPUs, from the router's logits on. A *pair* is (row, slot): `row · num_experts_per_tok + slot`.

few rows    two launches: a block of gate and up finds its own pair's expert, so that nobody waits for a router; a
            block of down adds up all experts of its row, the shared one and the residual, in registers
many rows   a block a row chooses; one block sorts the pairs by expert; tiles of up to 16 pairs of one expert go
            through gate and up, then down; the shared expert's product adds the weighted outputs and the residual
"""

from __future__ import annotations

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from relax_model.config import RouterConfig
from relax_model.kernels.cpu_tiles import scale_names, stored, without
from relax_model.kernels.gpu_products import (
    MANY_THREADS,
    SIDE,
    accumulator,
    column_chunks,
    few_rows,
    lane_sum,
    many_rows,
)
from relax_model.kernels.gpu_tiles import GpuTile, Matrix, Rows, silu
from relax_model.kernels.moe.gpu_routing import chooser, sorter
from relax_model.kernels.registry import kernel
from relax_model.layout import Layout

# Pairs of a tile: an expert rarely has many more of a chunk, and a device's matrices make 32 rows as fast as 16.
_HEIGHT, _HEIGHT_BY_MATRICES = 16, 32


@kernel("experts", "gpu")
def experts(
    layout: Layout, router: RouterConfig, width: int, hidden: int, shared: int, eps: float, *, tile: GpuTile
) -> PrimFunc:
    """x + the chosen experts' weighted outputs of the normalised x + the shared experts' output.

    x float32 (rows, hidden), norm weight (hidden,), logits (rows, experts), [bias (experts,)], and in `layout` gate_up
    (experts, 2 · width, hidden), down (experts, hidden, width), [with `shared` > 0: what goes into the shared experts'
    down projection (rows, shared), and that projection (hidden, shared)] → float32 (rows, hidden).
    """
    height = _HEIGHT_BY_MATRICES if tile.tensor_cores or tile.simdgroup_matrices else _HEIGHT
    count, top_k, threads, outputs = router.n_routed_experts, router.num_experts_per_tok, tile.threads, tile.outputs
    (up_shape, data_dtype), (up_scale_shape, scale_dtype) = stored(layout, (count, 2 * width, hidden))
    (down_shape, _), (down_scale_shape, _) = stored(layout, (count, hidden, width))
    (own_shape, _), (own_scale_shape, _) = stored(layout, (hidden, max(shared, 1)))
    scaled = not scale_names(layout)
    choose, choose_many = chooser(router, threads), chooser(router, MANY_THREADS)
    sort = sorter(count, top_k, MANY_THREADS, height)
    up_few, up_many = few_rows(tile, hidden, 1, eps, gated=True), many_rows(tile, hidden, height, eps, gated=True)
    down_few, own_few, add_few = accumulator(tile, width, 1), accumulator(tile, shared, 1), lane_sum(tile, 1)
    down_many, own_many = many_rows(tile, width, height), many_rows(tile, shared)
    each, each_few = -(-count // MANY_THREADS), tile.each

    def gate_or_up(expert, output):
        """The row of an expert's gate or up projection for an output of a block: the two are neighbours."""
        within = T.min(output, 2 * width - 1)
        return expert * (2 * width) + within % 2 * width + within // 2

    def down(expert, output):
        return expert * hidden + T.min(output, hidden - 1)

    @T.inline
    def find(t, q, mine, pair, Pairs, Starts, Tiles):
        """mine[0]: the expert of tile q; mine[1]: where its pairs begin; mine[2]: how many there are, none where there
        is no such tile; and the pairs."""
        expert = T.alloc_buffer((1,), "int32", scope="shared")
        if t == 0:
            expert[0] = count
        T.evaluate(T.tvm_storage_sync("shared"))
        for w in T.serial(each):
            if T.And(
                w * MANY_THREADS + t < count,
                T.And(Tiles[w * MANY_THREADS + t] <= q, q < Tiles[w * MANY_THREADS + t + 1]),
            ):
                expert[0] = w * MANY_THREADS + t
        T.evaluate(T.tvm_storage_sync("shared"))
        mine[0] = T.min(expert[0], count - 1)
        mine[1] = Starts[mine[0]] + (q - Tiles[mine[0]]) * height
        mine[2] = T.if_then_else(expert[0] < count, T.min(Starts[mine[0] + 1] - mine[1], height), 0)
        if t < mine[2]:
            pair[t] = Pairs[mine[1] + t]
        T.evaluate(T.tvm_storage_sync("shared"))

    @T.prim_func(private=True, s_tir=True)
    def experts_gpu(
        x: T.handle,
        norm: T.Buffer((hidden,), "float32"),
        logits: T.handle,
        bias: T.Buffer((count,), "float32"),
        up_data: T.Buffer(up_shape, data_dtype),
        up_scale: T.Buffer(up_scale_shape, scale_dtype),
        down_data: T.Buffer(down_shape, data_dtype),
        down_scale: T.Buffer(down_scale_shape, scale_dtype),
        own: T.handle,
        own_data: T.Buffer(own_shape, data_dtype),
        own_scale: T.Buffer(own_scale_shape, scale_dtype),
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int64()
        X = T.match_buffer(x, (m, hidden), "float32")
        Logits = T.match_buffer(logits, (m, count), "float32")
        Own = T.match_buffer(own, (m, max(shared, 1)), "float32")
        Y = T.match_buffer(y, (m, hidden), "float32")
        n = T.meta_var(T.Cast("int32", m))
        with T.sblock("root"):
            T.reads()
            T.writes()
            UpData = T.decl_buffer((count * 2 * width, up_shape[-1]), data_dtype, data=up_data.data)
            DownData = T.decl_buffer((count * hidden, down_shape[-1]), data_dtype, data=down_data.data)
            if scaled:
                UpScale = T.decl_buffer((count * 2 * width, up_scale_shape[-1]), scale_dtype, data=up_scale.data)
                DownScale = T.decl_buffer((count * hidden, down_scale_shape[-1]), scale_dtype, data=down_scale.data)
            Ids = T.alloc_buffer((m, top_k), "int32", scope="global")
            Weights = T.alloc_buffer((m, top_k), "float32", scope="global")
            H = T.alloc_buffer((m * top_k, width), "float32", scope="global")
            up = T.meta_var(Matrix(layout, hidden, UpData, UpScale if scaled else UpData))
            downs = T.meta_var(Matrix(layout, width, DownData, DownScale if scaled else DownData))
            owns = T.meta_var(Matrix(layout, shared, own_data, own_scale) if shared > 0 else downs)
            OwnRows = T.meta_var(Own if shared > 0 else X)
            if n <= tile.few:
                for b in T.thread_binding(-(-2 * width // outputs), "blockIdx.x"):
                    for q in T.thread_binding(n * top_k, "blockIdx.y"):
                        for t in T.thread_binding(threads, "threadIdx.x"):
                            ids = T.alloc_buffer((top_k,), "int32", scope="shared")
                            weights = T.alloc_buffer((top_k,), "float32", scope="shared")
                            choose(t, lambda e: Logits[q // top_k, e], bias, ids, weights)
                            if T.And(b == 0, t == 0):
                                Ids[q // top_k, q % top_k] = ids[q % top_k]
                                Weights[q // top_k, q % top_k] = weights[q % top_k]

                            @T.inline
                            def store_up(r, o, sums):
                                if b * (outputs // 2) + o < width:
                                    H[q, b * (outputs // 2) + o] = silu(sums[0]) * sums[1]

                            up_few(
                                t,
                                Rows(up, lambda o: gate_or_up(ids[q % top_k], b * outputs + o)),
                                lambda r, k: X[q // top_k, k],
                                lambda k: norm[k],
                                store_up,
                            )
                for b in T.thread_binding(-(-hidden // outputs), "blockIdx.x"):
                    for i in T.thread_binding(n, "blockIdx.y"):
                        for t in T.thread_binding(threads, "threadIdx.x"):
                            total = T.alloc_buffer((each_few,), "float32", scope="local")
                            dot = T.alloc_buffer((each_few,), "float32", scope="local")
                            for j in T.unroll(each_few):
                                total[j] = T.float32(0)
                            for s in T.serial(top_k):
                                for j in T.unroll(each_few):
                                    dot[j] = T.float32(0)

                                down_few(
                                    t,
                                    Rows(downs, lambda o: down(Ids[i, s], b * outputs + o)),
                                    lambda r, k: H[i * top_k + s, k],
                                    None,
                                    dot,
                                    None,
                                )
                                for j in T.unroll(each_few):
                                    total[j] = total[j] + Weights[i, s] * dot[j]
                            if shared > 0:
                                own_few(
                                    t,
                                    Rows(owns, lambda o: down(0, b * outputs + o)),
                                    lambda r, k: Own[i, k],
                                    None,
                                    total,
                                    None,
                                )

                            @T.inline
                            def store_down(r, o, sums):
                                if b * outputs + o < hidden:
                                    Y[i, b * outputs + o] = X[i, b * outputs + o] + sums[0]

                            add_few(t, total, None, store_down)
            else:
                Pairs = T.alloc_buffer((m * top_k,), "int32", scope="global")
                Starts = T.alloc_buffer((count + 1,), "int32", scope="global")
                Tiles = T.alloc_buffer((count + 1,), "int32", scope="global")
                Out = T.alloc_buffer((m * top_k, hidden), "float32", scope="global")
                tiles = T.meta_var((n * top_k + height - 1) // height + count)  # at most
                for i in T.thread_binding(n, "blockIdx.x"):
                    for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):
                        ids = T.alloc_buffer((top_k,), "int32", scope="shared")
                        weights = T.alloc_buffer((top_k,), "float32", scope="shared")
                        choose_many(t, lambda e: Logits[i, e], bias, ids, weights)
                        for w in T.serial(-(-top_k // MANY_THREADS)):
                            if w * MANY_THREADS + t < top_k:
                                Ids[i, w * MANY_THREADS + t] = ids[w * MANY_THREADS + t]
                                Weights[i, w * MANY_THREADS + t] = weights[w * MANY_THREADS + t]
                for _b in T.thread_binding(1, "blockIdx.x"):
                    for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):
                        sort(t, n * top_k, Ids, Pairs, Starts, Tiles)
                for b in T.thread_binding(-(-2 * width // SIDE), "blockIdx.x"):
                    for q in T.thread_binding(tiles, "blockIdx.y"):
                        for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):
                            mine = T.alloc_buffer((3,), "int32", scope="local")
                            pair = T.alloc_buffer((height,), "int32", scope="shared")
                            find(t, q, mine, pair, Pairs, Starts, Tiles)
                            last = T.meta_var(T.max(mine[2] - 1, 0))

                            @T.inline
                            def store_up_many(r, o, sums):
                                if T.And(r < mine[2], b * (SIDE // 2) + o < width):
                                    H[pair[r], b * (SIDE // 2) + o] = silu(sums[0]) * sums[1]

                            up_many(
                                t,
                                T.if_then_else(mine[2] > 0, column_chunks(hidden), 0),
                                Rows(up, lambda o: gate_or_up(mine[0], b * SIDE + o)),
                                lambda r, k: X[pair[T.min(r, last)] // top_k, k],
                                lambda k: norm[k],
                                store_up_many,
                            )
                for b in T.thread_binding(-(-hidden // SIDE), "blockIdx.x"):
                    for q in T.thread_binding(tiles, "blockIdx.y"):
                        for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):
                            mine = T.alloc_buffer((3,), "int32", scope="local")
                            pair = T.alloc_buffer((height,), "int32", scope="shared")
                            find(t, q, mine, pair, Pairs, Starts, Tiles)
                            last = T.meta_var(T.max(mine[2] - 1, 0))

                            @T.inline
                            def store_down_many(r, o, sums):
                                if T.And(r < mine[2], b * SIDE + o < hidden):
                                    Out[pair[r], b * SIDE + o] = sums[0]

                            down_many(
                                t,
                                T.if_then_else(mine[2] > 0, column_chunks(width), 0),
                                Rows(downs, lambda o: down(mine[0], b * SIDE + o)),
                                lambda r, k: H[pair[T.min(r, last)], k],
                                None,
                                store_down_many,
                            )
                for b in T.thread_binding(-(-hidden // SIDE), "blockIdx.x"):
                    for c in T.thread_binding((n + SIDE - 1) // SIDE, "blockIdx.y"):
                        for t in T.thread_binding(MANY_THREADS, "threadIdx.x"):
                            weighted = T.alloc_buffer((1,), "float32", scope="local")

                            @T.inline
                            def store_sum(r, o, sums):
                                if T.And(c * SIDE + r < n, b * SIDE + o < hidden):
                                    weighted[0] = X[c * SIDE + r, b * SIDE + o] + sums[0]
                                    for s in T.serial(top_k):
                                        weighted[0] = (
                                            weighted[0]
                                            + Weights[c * SIDE + r, s] * Out[(c * SIDE + r) * top_k + s, b * SIDE + o]
                                        )
                                    Y[c * SIDE + r, b * SIDE + o] = weighted[0]

                            own_many(
                                t,
                                column_chunks(shared),
                                Rows(owns, lambda o: down(0, b * SIDE + o)),
                                lambda r, k: OwnRows[T.min(c * SIDE + r, n - 1), k],
                                None,
                                store_sum,
                            )

    unused = scale_names(layout, "up_scale") + scale_names(layout, "down_scale")
    unused += scale_names(layout, "own_scale") if shared else ("Own", "own_data", "own_scale")
    return without(experts_gpu, *unused, *(() if router.has_correction_bias else ("bias",)))
