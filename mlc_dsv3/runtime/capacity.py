"""Which context window and how many pages of the latent cache fit into a device's memory.

Everything here follows from a model's configuration, so that it is known before weights are converted or anything is
compiled. `LLM` plans twice: before that, to refuse what cannot fit, and once the model is loaded.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.available import gib
from mlc_dsv3.runtime.speculation import MOST_DRAFTS
from relax_model.config import ModelConfig
from relax_model.kernels.attention.scratch import absorbed_scratch, expanded_scratch
from relax_model.layout import cached_token_bytes, layout_of
from relax_model.parameters import parameters

SHARE_OF_MEMORY = 0.25
_DEFAULT_MAX_BATCH = 32
_LEAST_WINDOW = 2  # a prompt of one token, and one to generate
_FLOAT = 4
_SMALLER_MODEL = "take a quantization of fewer bits, a smaller model or the device cpu"


@dataclass(frozen=True)
class Room:
    """What a user asks to have room for; None is the default.

    context_window: tokens of one sequence, by default as many as fit. max_batch: sequences that run at once.
    cache_tokens: tokens of all sequences together.
    """

    context_window: int | None = None
    max_batch: int | None = None
    cache_tokens: int | None = None

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
                raise UserError(f"{field} is {value!r}; it takes a whole number")
        if self.cache_tokens is not None and self.cache_tokens < _LEAST_WINDOW:
            raise UserError(f"cache_tokens is {self.cache_tokens}; it must be at least {_LEAST_WINDOW}")

    def batch(self, max_rows: int) -> int:
        """Sequences that run at once, where a step has at most `max_rows` rows. UserError for more or for none."""
        if self.max_batch is None:
            return min(_DEFAULT_MAX_BATCH, max_rows)
        if not 1 <= self.max_batch <= max_rows:
            raise UserError(f"max_batch is {self.max_batch}; the library runs 1 to {max_rows} requests at once")
        return self.max_batch


@dataclass(frozen=True)
class MemoryNeed:
    """What a model needs of its device's memory, in bytes.

    weights: what is still to be placed there or, where they are `mapped` from files, read from the disk again whenever
        the system takes their memory for something else.
    page: one page of `page_size` tokens in the latent caches of all layers, the MTP layer's included.
    working: what a step needs beside, for a context window of so many tokens.
    """

    weights: int
    mapped: bool
    page: int
    page_size: int
    cache_dtype: str
    working: Callable[[int], int]

    def pages(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_size)

    def cache(self, tokens: int) -> int:
        """Bytes of the caches' pages for so many tokens."""
        return self.pages(tokens) * self.page


def memory_need(
    config: ModelConfig,
    quantization: str,
    *,
    device: str,
    attention_tile: Mapping[str, Any],
    cache_dtype: str,
    page_size: int,
    max_rows: int,
    max_batch: int,
) -> MemoryNeed:
    """What `config` needs in a quantization (layout included), for steps of up to `max_rows` rows. `attention_tile` has
    the tuned fields that attention's kernels are built with."""
    family = "cpu" if device == "cpu" else "gpu"

    def working(window: int) -> int:
        pages = -(-window // page_size)
        # The tables of CUDA's graphs have a power of two of columns, and kernels reserve for all of them; the thread
        # that records graphs has temporary memory of its own.
        tokens = page_size * (1 << (pages - 1).bit_length() if device == "cuda" else pages)
        threads = 2 if device == "cuda" else 1
        return (
            working_bytes(config, max_rows, max_batch)
            + threads * absorbed_scratch(config, family, attention_tile, tokens)
            + expanded_scratch(config, family, attention_tile, cache_dtype, tokens)
        )

    token = config.num_cached_layers * cached_token_bytes(cache_dtype, config.kv_lora_rank, config.qk_rope_head_dim)
    return MemoryNeed(
        weights=weight_bytes(config, quantization),
        mapped=device == "cpu",
        page=token * page_size,
        page_size=page_size,
        cache_dtype=cache_dtype,
        working=working,
    )


def weight_bytes(config: ModelConfig, quantization: str) -> int:
    """Bytes of all weights in a quantization."""
    layout = layout_of(quantization)
    return sum(spec.nbytes for parameter in parameters(config) for spec in parameter.buffers(layout).values())


def working_bytes(config: ModelConfig, max_rows: int, max_batch: int) -> int:
    """Bytes of a step's activations and logits, at most: of a layer in absorbed attention, of its experts, and of the
    vocabulary for each token and draft that is chosen. The attention kernels' own memory comes on top."""
    heads = config.num_attention_heads * (
        2 * config.kv_lora_rank + config.qk_head_dim + config.qk_rope_head_dim + config.v_head_dim
    )
    chosen = config.router.num_experts_per_tok if config.router else 0
    wide = max(config.intermediate_size, (chosen + config.n_shared_experts) * config.moe_intermediate_size)
    logits = max_batch * (1 + MOST_DRAFTS) * config.vocab_size
    return _FLOAT * (max_rows * (heads + wide + 4 * config.hidden_size) + logits)


@dataclass(frozen=True)
class CachePlan:
    """The context window in tokens, the cache's pages, and what the user should know of the window, if anything."""

    context_window: int
    num_pages: int
    remark: str | None = None


def plan_cache(
    room: Room, need: MemoryNeed, available: int, *, longest: int, max_batch: int, preferred: int | None = None
) -> CachePlan:
    """The window and the pages that `room` asks for, where `available` bytes of the device's memory are free.

    longest: tokens of the longest window that the model, or the library, can do. preferred: the default window if it
    fits (None: `longest`). The default cache has pages for one window at least, for one of each of `max_batch`
    sequences at most, and in between for a quarter of the free memory. Raises UserError, with the numbers, where what
    is asked for does not fit.
    """
    if room.context_window is None:
        window, remark = _default_window(room, need, available, longest, preferred or longest)
    else:
        window, remark = room.context_window, None
        if not _LEAST_WINDOW <= window <= longest:
            raise UserError(f"context_window is {window}; the model takes {_LEAST_WINDOW} to {longest} tokens")
    if room.cache_tokens is not None and room.cache_tokens < window:
        raise UserError(
            f"cache_tokens is {room.cache_tokens}; the context window of {window} tokens must fit in the cache"
        )
    free = _free(need, available, window)
    if need.cache(room.cache_tokens or window) > free:
        remark = _crowded(room, need, available, longest, window)
    if room.cache_tokens is not None:
        return CachePlan(window, need.pages(room.cache_tokens), remark)
    pages = need.pages(window)
    return CachePlan(window, min(max_batch * pages, max(pages, int(SHARE_OF_MEMORY * free) // need.page)), remark)


def _free(need: MemoryNeed, available: int, window: int) -> int:
    """Bytes that caches may take beside the weights. Mapped weights need not all stay: beside more of them than memory
    holds, caches may take a quarter of it."""
    working = need.working(window)
    beside = available - need.weights - working
    return max(beside, int(SHARE_OF_MEMORY * available) - working) if need.mapped else beside


def _longest_that_fits(need: MemoryNeed, available: int, longest: int) -> int:
    """Tokens of the longest window up to `longest` whose cache and work fit; 0 where none does."""
    # A step needs more for a longer window, so that what fits and what does not are two intervals.
    return bisect.bisect_right(
        range(1, longest + 1), False, key=lambda window: need.cache(window) > _free(need, available, window)
    )


def _default_window(
    room: Room, need: MemoryNeed, available: int, longest: int, preferred: int
) -> tuple[int, str | None]:
    """The window without one that is asked for, and a remark where memory makes it shorter."""
    wanted = min(preferred, longest, room.cache_tokens or longest)
    window = _longest_that_fits(need, available, wanted)
    if window < min(_LEAST_WINDOW, wanted):
        raise UserError(f"{_stated(need, available, _LEAST_WINDOW)}; {_SMALLER_MODEL}")
    if window == wanted:
        return window, None
    more = "" if need.cache_dtype == "int8" else "; --cache-dtype int8 makes room for more"
    return window, (
        f"the context window is {window} of the model's {longest} tokens, which is what fits in {gib(available)} of "
        f"memory{_beside(need)}; choose with --context-window N (context_window=N in Python){more}"
    )


def _crowded(room: Room, need: MemoryNeed, available: int, longest: int, window: int) -> str:
    """The remark on a cache beside which mapped weights do not all stay in memory. UserError where that is not so."""
    tokens = room.cache_tokens or window
    said = _stated(need, available, tokens)
    if need.mapped and need.cache(tokens) + need.working(window) <= available:
        return f"{said}; as the cache fills, weights will be read from the disk again and again"
    fitting = _longest_that_fits(need, available, longest)
    if fitting < _LEAST_WINDOW:
        raise UserError(f"{said}; {_SMALLER_MODEL}")
    less = "" if need.cache_dtype == "int8" else ", or try --cache-dtype int8"
    raise UserError(f"{said}; give --context-window {fitting} (context_window={fitting} in Python) or less{less}")


def _stated(need: MemoryNeed, available: int, tokens: int) -> str:
    return (
        f"the latent cache of {tokens} tokens takes {gib(need.cache(tokens))} in {need.cache_dtype} and a step "
        f"{gib(need.working(tokens))}{_beside(need)}, and {gib(available)} of memory are available"
    )


def _beside(need: MemoryNeed) -> str:
    return f" beside {gib(need.weights)} of weights" if need.weights else ""
