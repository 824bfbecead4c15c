"""What `bench` is asked to measure, checked before anything is loaded, written or compiled."""

from __future__ import annotations

from dataclasses import dataclass

from mlc_dsv3.bench.speed import StepShape
from mlc_dsv3.compiler.targets import CompileTarget, read_description, resolve_target
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.available import gib
from mlc_dsv3.runtime.capacity import memory_need
from mlc_dsv3.runtime.memory import memory_of
from mlc_dsv3.runtime.virtual_machine import usable_cores
from relax_model.config import ModelConfig

PEERS = ("llama.cpp", "torch")  # of whole models, and of attention alone
DRAFTED_PROMPT = 16  # tokens before those that are decoded with drafts


@dataclass(frozen=True)
class BenchSettings:
    """The options of a run. Counts are of tokens, `verify` of rows in a step (none: not measured)."""

    device: str = "auto"
    cache_dtype: str | None = None
    threads: int | None = None
    prefill: int = 512
    decode: int = 64
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)
    verify: tuple[int, ...] = (2,)
    rounds: int = 3
    profile: bool = False
    versus: str | None = None
    context_window: int | None = None

    def __post_init__(self) -> None:
        for option in ("prefill", "decode", "rounds"):
            if getattr(self, option) < 1:
                raise UserError(f"--{option} is {getattr(self, option)}; it must be at least 1")
        if self.device_name != "cpu" and self.versus == "llama.cpp":
            raise UserError("--versus llama.cpp measures on the CPU; leave --device out")
        if self.device_name not in ("cpu", "cuda") and self.versus == "torch":
            raise UserError("--versus torch measures on the devices cpu and cuda")
        most = self.target.default("max_rows")
        for option, values, least in (
            ("--depth", self.depths, 0),
            ("--batch", self.batches, 1),
            ("--verify", self.verify, 2),
        ):
            if any(value < least for value in values):
                raise UserError(f"{option} is {','.join(map(str, values))}; it takes numbers from {least} up")
        for option, values in (("--batch", self.batches), ("--verify", self.verify)):
            if any(value > most for value in values):
                raise UserError(f"{option} is {max(values)}; a step has at most {most} rows")
        cores = usable_cores()
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise UserError(f"--threads is {self.threads}; this machine has 1 to {cores}")
        if self.versus is not None and self.versus not in PEERS:
            raise UserError(f"--versus is {self.versus!r}; known: {', '.join(PEERS)}")

    @property
    def device_name(self) -> str:
        """The device's, whether it is there or not."""
        return read_description(self.device)["target"]["name"]

    @property
    def target(self) -> CompileTarget:
        """What is measured is compiled for."""
        return resolve_target(self.device, cache_dtype=self.cache_dtype)

    @property
    def thread_count(self) -> int:
        """Threads that both sides run on."""
        return self.threads or usable_cores()

    @property
    def longest(self) -> int:
        """Tokens that each sequence's cache holds: as many as the measurements need, or the window asked for."""
        return max(self._measured, self.context_window or 0)

    @property
    def _measured(self) -> int:
        """Tokens of the longest sequence that a measurement makes."""
        return max(self.depths) + max(self.prefill, self.decode + max(self.verify, default=1) - 1)

    @property
    def shapes(self) -> list[StepShape]:
        """The steps to time: a batch of each size, and verification of one sequence beside its plain decode."""
        shapes = [StepShape(batch, 1) for batch in self.batches] + [StepShape(1, rows) for rows in self.verify]
        return shapes if not self.verify or StepShape(1, 1) in shapes else [StepShape(1, 1), *shapes]

    def refuse_unless_it_fits(self, config: ModelConfig, quantization: str, *, weights: bool = True) -> None:
        """UserError where the sequences exceed the context window, or their latent caches the device's memory, together
        with the weights unless these are left out."""
        longest = config.max_position_embeddings
        window = longest if self.context_window is None else self.context_window
        if not 2 <= window <= longest:
            raise UserError(f"--context-window is {window}; the model takes 2 to {longest} tokens")
        if self._measured > window:
            raise UserError(f"depth and tokens make {self._measured}; the context window is {window}")
        need = memory_need(
            config,
            quantization,
            device=self.target.device,
            attention_tile=dict(self.target.tuned),
            cache_dtype=self.target.cache_dtype(quantization),
            page_size=self.target.default("page_size"),
            max_rows=self.target.default("max_rows"),
            max_batch=max(self.batches),
        )
        caches, memory = max(self.batches) * need.cache(self.longest), memory_of(self.target.device).available()
        placed = need.weights if weights and not need.mapped else 0
        if caches + placed + need.working(self.longest) > memory:
            beside = f" beside {gib(placed)} of weights" if placed else ""
            raise UserError(
                f"the latent caches need {gib(caches)}{beside}, and {gib(memory)} are available; lower --batch, "
                "--depth or --context-window"
            )
