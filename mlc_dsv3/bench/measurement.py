"""Times as the measuring processes took them, and the figures that are made of them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from mlc_dsv3.bench.counting import prefill_bytes, prefill_flops, step_bytes, step_flops
from mlc_dsv3.bench.profile import KernelTime
from mlc_dsv3.bench.speed import StepShape
from relax_model.config import ModelConfig
from relax_model.layout import cached_token_bytes


@dataclass(frozen=True)
class Timing:
    """What was timed, in rounds of one or more runs, in seconds. A run is a step, or a prompt of `shape.rows`."""

    kind: str  # "prefill", "decode" or "verify"
    depth: int
    shape: StepShape
    rounds: list[list[float]]
    peer_rounds: list[list[float]] = field(default_factory=list)  # the other side's, in alternation with ours
    profile: list[KernelTime] | None = None

    @property
    def seconds(self) -> float:
        """The median run."""
        return statistics.median(second for taken in self.rounds for second in taken)


@dataclass(frozen=True)
class Comparison:
    """The other side's speed, and ours as a multiple of it: the median over the rounds, the least and the most."""

    engine: str
    tokens_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float
    rounds: int


@dataclass(frozen=True)
class Measurement:
    """One figure with everything that it is made of. Bytes are counted (see `counting`), seconds are of one run.

    `share_of_limit` is of the read bandwidth measured in the same run, which bounds decoding; `share_of_arithmetic` of
    the operations a second that its kernels' multiplications reach by themselves, which bound a long prompt and large
    batches. `time_ratio` is a verifying step's time over a decoding one's at this depth; `dense_time_ratio` (with
    a profile) leaves the routed experts out, since more tokens have to read more of them.
    """

    kind: str
    quantization: str
    depth: int
    batch: int
    rows: int
    tokens: int
    seconds: float
    tokens_per_second: float
    bytes_per_token: int
    gb_per_second: float
    limit_gb_per_second: float
    share_of_limit: float
    gflops_per_second: float
    limit_gflops_per_second: float
    share_of_arithmetic: float
    time_ratio: float | None = None
    dense_time_ratio: float | None = None
    profile: list[KernelTime] | None = None
    versus: Comparison | None = None


@dataclass(frozen=True)
class Scale:
    """What timings of one model are put in relation to."""

    config: ModelConfig
    quantization: str
    cache_dtype: str
    prefill_block: int
    limit_gb_per_second: float
    limit_gflops_per_second: float
    peer: str | None = None

    def measurements(self, timings: list[Timing]) -> list[Measurement]:
        """The figures of timings that were taken at one depth."""
        plain = next((t for t in timings if t.kind == "decode" and t.shape == StepShape(1, 1)), None)
        return [self._measurement(timing, plain) for timing in timings]

    def _measurement(self, timing: Timing, plain: Timing | None) -> Measurement:
        shape, seconds = timing.shape, timing.seconds
        tokens = shape.sequences * shape.rows
        nbytes, flops = self._work(timing)
        gigabytes, gflops = nbytes / seconds / 1e9, flops / seconds / 1e9
        verifies = timing.kind == "verify" and plain is not None
        return Measurement(
            kind=timing.kind,
            quantization=self.quantization,
            depth=timing.depth,
            batch=shape.sequences,
            rows=shape.rows,
            tokens=tokens * (1 if timing.kind == "prefill" else len(timing.rounds[0])),
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            bytes_per_token=round(nbytes / tokens),
            gb_per_second=gigabytes,
            limit_gb_per_second=self.limit_gb_per_second,
            share_of_limit=gigabytes / self.limit_gb_per_second,
            gflops_per_second=gflops,
            limit_gflops_per_second=self.limit_gflops_per_second,
            share_of_arithmetic=gflops / self.limit_gflops_per_second,
            time_ratio=seconds / plain.seconds if verifies and plain else None,
            dense_time_ratio=_dense_ratio(timing, plain) if verifies and plain else None,
            profile=timing.profile,
            versus=_compare(timing, tokens, self.peer) if self.peer else None,
        )

    def _work(self, timing: Timing) -> tuple[float, float]:
        """Bytes and floating-point operations of one run."""
        config, shape = self.config, timing.shape
        token = cached_token_bytes(self.cache_dtype, config.kv_lora_rank, config.qk_rope_head_dim)
        if timing.kind == "prefill":
            prompt = {"depth": timing.depth, "tokens": shape.rows, "block": self.prefill_block}
            nbytes = prefill_bytes(self.config, self.quantization, token, **prompt)
            return nbytes, prefill_flops(self.config, **prompt)
        # The steps of a round follow one another, so that the middle one speaks for them.
        depth = timing.depth + len(timing.rounds[0]) // 2
        nbytes = step_bytes(
            self.config, self.quantization, token, depth=depth, rows=shape.rows, sequences=shape.sequences
        )
        return nbytes, step_flops(self.config, depth=depth, rows=shape.rows, sequences=shape.sequences)


def _dense_ratio(timing: Timing, plain: Timing) -> float | None:
    if timing.profile is None or plain.profile is None:
        return None
    dense = [sum(kernel.milliseconds for kernel in t.profile or () if not kernel.is_expert) for t in (timing, plain)]
    return dense[0] / dense[1] if dense[1] else None


def _compare(timing: Timing, tokens: int, engine: str) -> Comparison:
    """A round's ratio is of its medians: what disturbs the machine for a while disturbs both sides of a round."""
    ours, theirs = ([statistics.median(taken) for taken in side] for side in (timing.rounds, timing.peer_rounds))
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    rate = tokens / statistics.median(second for taken in timing.peer_rounds for second in taken)
    return Comparison(engine, rate, statistics.median(ratios), min(ratios), max(ratios), len(ratios))
