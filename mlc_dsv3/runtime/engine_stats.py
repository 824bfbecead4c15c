"""What an engine counts while it runs, and how full it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlc_dsv3.runtime.speculation import MOST_DRAFTS


@dataclass
class EngineStats:
    """Sums since the engine started. A step's time is shared out by its rows, sampling and detokenizing included."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    reused_tokens: int = 0
    preemptions: int = 0
    decode_steps: int = 0  # of each sequence
    drafted: list[int] = field(default_factory=lambda: [0] * MOST_DRAFTS)  # verified after those before, by place
    accepted: list[int] = field(default_factory=lambda: [0] * MOST_DRAFTS)
    forced: int = 0  # tokens that a grammar left no choice of, and that took no step of their own
    compared_seconds: float = 0.0  # of steps of which is known what they would have taken without drafts
    plain_seconds: float = 0.0  # and what that is


@dataclass(frozen=True)
class Occupancy:
    """Requests that run and wait; tokens that the cache has room for, those in free pages, and those in pages of the
    prefix cache, which running requests may share."""

    running: int
    waiting: int
    cache_tokens: int
    free_tokens: int
    prefix_tokens: int
