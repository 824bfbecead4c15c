"""The attention of one layer alone: a step's kernel that reads the latent cache, over a batch of sequences."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_dsv3.bench.remote import Remote
from mlc_dsv3.compiler.targets import CompileTarget
from mlc_dsv3.progress import progress
from relax_model.config import ModelConfig
from relax_model.layout import cached_token_bytes

if TYPE_CHECKING:
    from mlc_dsv3.bench.bandwidth import BandwidthMeter
    from mlc_dsv3.bench.device_bandwidth import DeviceBandwidthMeter
    from relax_model.graph import KernelCall

_KERNELS = ("absorbed_attention", "absorbed_values")  # the CPU's, and the GPUs', which goes on to the heads' values


@dataclass(frozen=True)
class AttentionSpeed:
    """One row of each of `batch` sequences over its `depth` cached tokens, of which `seconds` are the median.

    Bytes are the latents', each read once; operations those of scores and sums, a multiplication and an addition two.
    `limit_tflops` is what the device multiplies at most, where `bench` can measure it. The peer's figures are of the
    same products by PyTorch, in turns with ours; `ratio` is its time over ours in the median round.
    """

    batch: int
    depth: int
    heads: int
    cache_dtype: str
    seconds: float
    gb_per_second: float
    tflops: float
    limit_gb_per_second: float
    share_of_limit: float
    limit_tflops: float
    share_of_tflops: float
    peer: str | None = None
    peer_seconds: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None


def measure_attention(
    config: ModelConfig,
    quantization: str,
    target: CompileTarget,
    threads: int,
    meter: BandwidthMeter | DeviceBandwidthMeter,
    *,
    batches: tuple[int, ...],
    depths: tuple[int, ...],
    rounds: int,
    versus_torch: bool,
) -> list[AttentionSpeed]:
    """Every batch at every depth of at least one token."""
    found = []
    meter.measure(3)
    peak = _peak_tflops(target, threads)
    with progress(f"Measuring the attention of {config.num_attention_heads} heads", len(batches) * len(depths)) as step:
        for depth in depths:
            for batch in batches:
                found.append(
                    _measure(config, quantization, target, threads, batch, depth, rounds, versus_torch, meter, peak)
                )
                step(1)
    meter.measure(3)
    best = meter.best
    return [replace(each, limit_gb_per_second=best, share_of_limit=each.gb_per_second / best) for each in found]


def _measure(
    config: ModelConfig,
    quantization: str,
    target: CompileTarget,
    threads: int,
    batch: int,
    depth: int,
    rounds: int,
    versus_torch: bool,
    meter: BandwidthMeter | DeviceBandwidthMeter,
    peak: float,
) -> AttentionSpeed:
    dtype = target.cache_dtype(quantization)
    token = cached_token_bytes(dtype, config.kv_lora_rank, config.qk_rope_head_dim)
    taken: list[float] = []
    peers: list[float] = []
    engine = None
    with Remote(AttentionBench, config, quantization, target, threads, batch, depth) as ours:
        if versus_torch:
            from mlc_dsv3.bench.torch_attention import TorchAttention

            with Remote(TorchAttention, config, target.device, threads, batch, depth) as peer:
                engine = peer.call("engine")
                for _ in range(rounds):
                    taken.append(ours.call("seconds"))
                    peers.append(peer.call("seconds"))
        else:
            taken = [ours.call("seconds") for _ in range(rounds)]
    seconds = statistics.median(taken)
    flops = 2 * batch * depth * config.num_attention_heads * (config.latent_width + config.kv_lora_rank)
    ratios = [theirs / own for own, theirs in zip(taken, peers, strict=False)]
    gb, tflops = batch * depth * token / seconds / 1e9, flops / seconds / 1e12
    return AttentionSpeed(
        batch=batch,
        depth=depth,
        heads=config.num_attention_heads,
        cache_dtype=dtype,
        seconds=seconds,
        gb_per_second=gb,
        tflops=tflops,
        limit_gb_per_second=meter.best,
        share_of_limit=gb / meter.best,
        limit_tflops=peak,
        share_of_tflops=tflops / peak,
        peer=engine,
        peer_seconds=statistics.median(peers) if peers else None,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_min=min(ratios, default=None),
        ratio_max=max(ratios, default=None),
    )


def _peak_tflops(target: CompileTarget, threads: int) -> float:
    if target.device == "cpu":
        from mlc_dsv3.bench.plot import peak_gflops

        return peak_gflops(threads) / 1e3
    from mlc_dsv3.bench.device_arithmetic import Arithmetic

    with Remote(Arithmetic, target) as process:
        return process.call("best", 5)


class AttentionBench:
    """The kernel on random latents, sequences' pages in any order: in so many copies that all but tiny ones come from
    memory."""

    def __init__(
        self, config: ModelConfig, quantization: str, target: CompileTarget, threads: int, batch: int, depth: int
    ) -> None:
        from mlc_dsv3.runtime.virtual_machine import configure_threads

        configure_threads(threads)  # before tvm is imported
        import tvm

        from mlc_dsv3.compiler.compile import backend, build_options, tvm_target
        from mlc_dsv3.compiler.tuned import find_tuned
        from mlc_dsv3.tune.device import tune_device
        from mlc_dsv3.tune.inputs import MOST_COPIES, inputs_of, outputs_of, placed
        from relax_model.kernels import registry

        options = build_options(target, quantization, find_tuned(target).tiles)
        call = _attention_call(config, options)
        tile = replace(options.tile, **options.tuned.get(call.key, {}))
        func = registry.build(call.operator, call.family, *call.arguments, tile=tile)
        with backend(target):
            module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
            self._kernel = tvm.compile(module, tvm_target(target))["main"]
        device = tune_device(target.device)
        self._clock = device.clock
        longest = -(-depth // options.page_size)
        sizes = {"rows": batch, "sequences": batch, "longest": longest, "pages": batch * longest, "depth": depth - 1}
        names = [str(parameter.name).lower() for parameter in func.params[: len(call.inputs)]]
        pages = np.random.default_rng(0).permutation(batch * longest).astype(np.int32).reshape(batch, longest)
        where = {
            "positions": np.full(batch, depth - 1, np.int32),
            "sequences": np.arange(batch, dtype=np.int32),
            "pagetable": pages,
        }
        given = {name: placed(array, device) for name, array in where.items()}
        token = cached_token_bytes(options.cache_dtype, config.kv_lora_rank, config.qk_rope_head_dim)
        copies = min(MOST_COPIES, math.ceil(device.cold_bytes / (batch * depth * token)))
        outputs = outputs_of(call, sizes, device)
        self._lists = [inputs_of(names, call, sizes, given, device) + outputs for _ in range(copies)]

    def seconds(self) -> float:
        """Of one call, over all copies and for long enough."""
        from mlc_dsv3.tune.stopwatch import measure

        return measure(self._clock, self._kernel, self._lists, rounds=1)


def _attention_call(config: ModelConfig, options: Any) -> KernelCall:
    """The call of a layer's attention that `step` makes."""
    from relax_model.model import build_module

    calls: list[KernelCall] = []

    def note(function: str, call: KernelCall) -> None:
        if function == "step" and call.operator in _KERNELS:
            calls.append(call)

    one = replace(config, num_hidden_layers=1, num_nextn_predict_layers=0, moe_layers=config.moe_layers[:1])
    build_module(one, options, note)
    (call,) = calls
    return call
