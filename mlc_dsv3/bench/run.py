"""One run of `mlc_dsv3 bench` over a model: bandwidth, startup, then every depth, alone or in turns with a peer."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlc_dsv3 import __version__
from mlc_dsv3.bench import pagecache
from mlc_dsv3.bench.arithmetic import limit_gflops
from mlc_dsv3.bench.bandwidth import BandwidthMeter
from mlc_dsv3.bench.device_bandwidth import DeviceBandwidthMeter
from mlc_dsv3.bench.launch_cost import host_seconds_per_launch
from mlc_dsv3.bench.measurement import Scale, Timing
from mlc_dsv3.bench.remote import Remote, idle_pause
from mlc_dsv3.bench.settings import BenchSettings
from mlc_dsv3.bench.speed import Memory, SpeedBench, Startup, StepShape
from mlc_dsv3.bench.subject import Subject
from mlc_dsv3.progress import progress
from mlc_dsv3.runtime.prepare import compile_seconds


def meter_of(settings: BenchSettings) -> BandwidthMeter | DeviceBandwidthMeter:
    """What measures the limit of the device's memory."""
    if settings.target.device == "cpu":
        return BandwidthMeter(settings.thread_count)
    return DeviceBandwidthMeter(settings.target)


def measure(
    subject: Subject, settings: BenchSettings, meter: BandwidthMeter | DeviceBandwidthMeter
) -> list[dict[str, Any]]:
    """Every measurement of a model, each a dictionary with the settings and what the whole run showed."""
    artifact, target = subject.artifact, settings.target
    meter.measure(5)
    idle_pause()
    with ExitStack() as stack:
        cold, warm, ours = _start(subject, settings, stack)
        peer = _start_peer(subject, settings, stack) if settings.versus else None
        timings: list[list[Timing]] = []
        with progress(f"Measuring {subject.name} in {artifact.quantization}", len(settings.depths)) as advance:
            for depth in settings.depths:
                meter.measure(3)
                timings.append(_Depth(settings, ours, peer, depth).timings())
                idle_pause()
                advance(1)
        memory: Memory = ours.call("memory")
        peer_facts = _peer_facts(peer) if peer else {}
    meter.measure(5)
    per_launch = None if target.device == "cpu" else host_seconds_per_launch(target)
    scale = Scale(
        artifact.model_config,
        artifact.quantization,
        target.cache_dtype(artifact.quantization),
        target.default("prefill_block") or target.default("max_rows"),
        meter.best,
        limit_gflops(target, artifact.quantization, settings.thread_count),
        peer_facts.get("peer_engine"),
    )
    common = {
        **_settings(subject, settings),
        **_startup(subject, cold, warm),
        **_memory(artifact.nbytes, memory),
        "host_seconds_per_launch": per_launch,
        **peer_facts,
    }
    return [{**asdict(found), **common} for some in timings for found in scale.measurements(some)]


def _start(subject: Subject, settings: BenchSettings, stack: ExitStack) -> tuple[Startup | str, Startup, Remote]:
    """A cold start in a process of its own (or why there is none), a warm one, and the process of that."""
    arguments = (
        subject.artifact.path,
        subject.library,
        settings.thread_count,
        max(shape.sequences for shape in settings.shapes),
        settings.longest,
        subject.ignored,
    )
    cold: Startup | str | None = pagecache.drop(subject.shards)
    if cold is None:
        with Remote(SpeedBench, *arguments) as process:
            cold = process.call("first_token")
    pagecache.fill(subject.shards)
    ours = stack.enter_context(Remote(SpeedBench, *arguments))
    warm = ours.call("first_token")
    ours.call("fill")
    return cold, warm, ours


@dataclass(frozen=True)
class _Peer:
    engine: str
    kind: str
    startup: Startup
    process: Remote


def _start_peer(subject: Subject, settings: BenchSettings, stack: ExitStack) -> _Peer:
    from mlc_dsv3.bench.gguf_model import gguf_type, random_gguf
    from mlc_dsv3.bench.llama import LlamaBench

    kind = gguf_type(subject.artifact.quantization)
    path = random_gguf(subject.artifact.model_config, kind)
    sequences = max(shape.sequences for shape in settings.shapes)
    process = stack.enter_context(Remote(LlamaBench, path, settings.thread_count, sequences, settings.longest))
    version = importlib.metadata.version("llama-cpp-python")
    return _Peer(f"llama.cpp (llama-cpp-python {version})", kind, process.call("first_token"), process)


def _peer_facts(peer: _Peer) -> dict[str, Any]:
    memory: Memory = peer.process.call("memory")
    return {
        "peer_engine": peer.engine,
        "peer_quantization": peer.kind,
        "peer_load_seconds": peer.startup.load_seconds,
        "peer_first_token_seconds": peer.startup.first_token_seconds,
        "peer_rss_anon_bytes": memory.rss_anon_bytes,
    }


@dataclass(frozen=True)
class _Depth:
    """All that is timed at one depth."""

    settings: BenchSettings
    ours: Remote
    peer: _Peer | None
    depth: int

    def timings(self) -> list[Timing]:
        """Prefill, then the steps; the profile comes after, so that being watched slows nothing that counts."""
        found = [self._prefill(), *self._steps()]
        if not self.settings.profile:
            return found
        profiles = [
            self.ours.call("profile_prefill", self.depth, self.settings.prefill),
            *self.ours.call("profile_steps", self.depth, self.settings.shapes),
        ]
        return [replace(timing, profile=profile) for timing, profile in zip(found, profiles, strict=True)]

    def _sides(self, rounds: int) -> Iterator[tuple[int, Remote]]:
        """Rounds of our process and the peer's in alternation, the other one asleep."""
        for _ in range(rounds):
            for side, process in enumerate([self.ours, *([self.peer.process] if self.peer else [])]):
                yield side, process
                if self.peer:
                    idle_pause()

    def _prefill(self) -> Timing:
        rounds: tuple[list[list[float]], list[list[float]]] = ([], [])
        for side, process in self._sides(self.settings.rounds):
            rounds[side].append([process.call("prefill", self.depth, self.settings.prefill)])
        return Timing("prefill", self.depth, StepShape(1, self.settings.prefill), *rounds)

    def _steps(self) -> list[Timing]:
        shapes = self.settings.shapes
        rounds: tuple[list[list[list[float]]], ...] = tuple([[], []] for _ in shapes)
        # Steps are many as they are: alone, one round of them is enough.
        for side, process in self._sides(self.settings.rounds if self.peer else 1):
            for both, taken in zip(
                rounds, process.call("steps", self.depth, self.settings.decode, shapes), strict=True
            ):
                both[side].append(taken)
        found = []
        for shape, both in zip(shapes, rounds, strict=True):
            found.append(Timing("verify" if shape.rows > 1 else "decode", self.depth, shape, *both))
        return found


def _settings(subject: Subject, settings: BenchSettings) -> dict[str, Any]:
    target = settings.target
    return {
        "model": subject.name,
        "random_weights": subject.random_weights,
        "device": target.device,
        "level": target.level,
        "cache_dtype": target.cache_dtype(subject.artifact.quantization),
        "threads": settings.thread_count,
        "prefill_tokens": settings.prefill,
        "decode_steps": settings.decode,
        "rounds": settings.rounds,
        "version": __version__,
    }


def _startup(subject: Subject, cold: Startup | str, warm: Startup) -> dict[str, Any]:
    is_cold = isinstance(cold, Startup)
    return {
        "compile_seconds": compile_seconds(subject.library),
        "load_seconds": warm.load_seconds,
        "first_token_seconds": warm.first_token_seconds,
        "cold_load_seconds": cold.load_seconds if is_cold else None,
        "cold_first_token_seconds": cold.first_token_seconds if is_cold else None,
        "cold_note": None if is_cold else cold,
    }


def _memory(weight_bytes: int, memory: Memory) -> dict[str, Any]:
    anonymous = memory.rss_anon_bytes
    return {
        "weight_bytes": weight_bytes,
        "cache_bytes": memory.cache_bytes,
        "peak_rss_anon_bytes": anonymous,
        "other_anon_bytes": None if anonymous is None else anonymous - memory.cache_bytes,
    }
