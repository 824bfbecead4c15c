"""The attention of one layer alone: a step's kernel that reads the latent cache, over a batch of sequences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_dsv3.bench.arithmetic import device_tflops, float32_gflops
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
    `limit_tflops` is what the device multiplied at most. The peer's figures are of the same products by PyTorch, in
    turns with ours; `ratio` is its time over ours in the median round.
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


@dataclass(frozen=True)
class AttentionRun:
    """What the measurements of a run share: whose attention, where, and in how many rounds."""

    config: ModelConfig
    quantization: str
    target: CompileTarget
    threads: int
    rounds: int
    versus_torch: bool

    def measure(
        self, batches: Sequence[int], depths: Sequence[int], meter: BandwidthMeter | DeviceBandwidthMeter
    ) -> list[AttentionSpeed]:
        """Every batch at every depth, of at least one token."""
        meter.measure(3)
        peak, found = _peak_tflops(self.target, self.threads), []
        heads = self.config.num_attention_heads
        with progress(f"Measuring the attention of {heads} heads", len(batches) * len(depths)) as advance:
            for depth in depths:
                for batch in batches:
                    found.append(self._speed(batch, depth, *self._times(batch, depth), peak))
                    advance(1)
        meter.measure(3)
        return [
            replace(each, limit_gb_per_second=meter.best, share_of_limit=each.gb_per_second / meter.best)
            for each in found
        ]

    def _times(self, batch: int, depth: int) -> tuple[list[float], list[float], str | None]:
        """Seconds of our rounds and of the peer's, in turns, and the peer's name."""
        size = (self.threads, batch, depth)
        with Remote(AttentionBench, self.config, self.quantization, self.target, *size) as ours:
            if not self.versus_torch:
                return [ours.call("seconds") for _ in range(self.rounds)], [], None
            from mlc_dsv3.bench.torch_attention import TorchAttention

            with Remote(TorchAttention, self.config, self.target.device, *size) as peer:
                both = [(ours.call("seconds"), peer.call("seconds")) for _ in range(self.rounds)]
                return [own for own, _ in both], [theirs for _, theirs in both], peer.call("engine")

    def _speed(
        self, batch: int, depth: int, taken: list[float], peers: list[float], engine: str | None, peak: float
    ) -> AttentionSpeed:
        config, dtype = self.config, self.target.cache_dtype(self.quantization)
        token = cached_token_bytes(dtype, config.kv_lora_rank, config.qk_rope_head_dim)
        seconds, ratios = statistics.median(taken), [theirs / own for own, theirs in zip(taken, peers, strict=False)]
        operations = 2 * batch * depth * config.num_attention_heads * (config.latent_width + config.kv_lora_rank)
        tflops = operations / seconds / 1e12
        return AttentionSpeed(
            batch=batch,
            depth=depth,
            heads=config.num_attention_heads,
            cache_dtype=dtype,
            seconds=seconds,
            gb_per_second=batch * depth * token / seconds / 1e9,
            tflops=tflops,
            limit_gb_per_second=math.nan,  # it is known when all are measured
            share_of_limit=math.nan,
            limit_tflops=peak,
            share_of_tflops=tflops / peak,
            peer=engine,
            peer_seconds=statistics.median(peers) if peers else None,
            ratio=statistics.median(ratios) if ratios else None,
            ratio_min=min(ratios, default=None),
            ratio_max=max(ratios, default=None),
        )


def _peak_tflops(target: CompileTarget, threads: int) -> float:
    return float32_gflops(threads) / 1e3 if target.device == "cpu" else device_tflops(target)


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
