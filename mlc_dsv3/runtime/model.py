"""A compiled library with its mapped weights and its latent caches: what the engine drives, a step at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.compiler.metadata import Metadata
from mlc_dsv3.errors import NotFiniteError, UserError
from mlc_dsv3.runtime.batch import Batch, DraftBatch, StepOutput
from mlc_dsv3.runtime.capacity import MemoryNeed, memory_need
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.runtime.sampler import Draw
from mlc_dsv3.runtime.virtual_machine import configure_threads, thread_count, usable_cores
from mlc_dsv3.weights import Artifact
from relax_model.config import ModelConfig


class CompiledModel:
    """The model on its library's device. On the CPU weights stay where they are mapped; the caches are its own."""

    def __init__(self, library: Library, config: ModelConfig, parameters: Any) -> None:
        self.config = config
        self.library = library
        self.metadata: Metadata = library.metadata
        self._memory = library.memory
        self._parameters = parameters
        self._caches: Any = None
        self._num_pages = 0
        # One a layer, (pages, page_size, cache_width): the tensors that the compiled functions append to.
        self.caches: list[Any] = []

    @staticmethod
    def load(artifact: Artifact, library: Path, *, threads: int | None = None) -> CompiledModel:
        """Open `library`, refuse it unless it fits `artifact`, and map the weights. `threads`: default all cores."""
        opened = Library(library)
        opened.metadata.refuse_unless_for(artifact.model_config, artifact.quantization, str(library))
        set_threads(threads)
        return CompiledModel.from_arrays(opened, artifact.model_config, artifact.map_parameters())

    @staticmethod
    def from_arrays(library: Library, config: ModelConfig, arrays: dict[str, np.ndarray]) -> CompiledModel:
        """The model over arrays in memory, by name; the CPU uses them in place, and wants them aligned to 64 bytes."""
        import tvm_ffi

        in_order = [arrays[name] for name, _, _ in library.metadata.parameters]
        return CompiledModel(library, config, tvm_ffi.convert(library.memory.place(in_order)))

    def cache_bytes_per_page(self) -> int:
        """Bytes that one page takes in all layers' caches together."""
        itemsize = np.dtype(self.metadata.cache_dtype).itemsize
        return self.metadata.num_caches * self.metadata.page_size * self.metadata.cache_width * itemsize

    def cache_bytes(self) -> int:
        """Bytes of the caches that are there."""
        return self._num_pages * self.cache_bytes_per_page()

    def allocate_cache(self, num_pages: int) -> None:
        """Give every layer a latent cache of `num_pages` pages; what an earlier one held is gone."""
        import tvm_ffi

        self._num_pages = num_pages
        shape = (num_pages, self.metadata.page_size, self.metadata.cache_width)
        self.caches = [self._memory.empty(shape, self.metadata.cache_dtype) for _ in range(self.metadata.num_caches)]
        self._caches = tvm_ffi.convert(self.caches)
        self.library.calls.forget()

    def available_memory(self) -> int:
        """Bytes of the device's memory that are free, now that the weights are loaded."""
        return self._memory.available()

    def memory_need(self, max_batch: int) -> MemoryNeed:
        """What steps of up to `max_batch` sequences need of that; on the CPU, where weights are mapped, with these."""
        metadata = self.metadata
        need = memory_need(
            self.config,
            metadata.quantization,
            device=metadata.device,
            attention_tile=dict(metadata.attention_tile),
            cache_dtype=metadata.cache_dtype,
            page_size=metadata.page_size,
            max_rows=metadata.max_rows,
            max_batch=max_batch,
        )
        return need if need.mapped else replace(need, weights=0)

    def fill_caches(self, values: Callable[[tuple[int, ...]], np.ndarray]) -> None:
        """Write `values(shape)` into each cache, as what is measured and not computed."""
        for cache in self.caches:
            self._memory.write(cache, values(tuple(cache.shape)))

    def read_pages(self, pages: Sequence[int]) -> np.ndarray:
        """What pages of all caches hold: uint8 (len(pages) × `cache_bytes_per_page`,), layer by layer."""
        parts = [self._memory.read_rows(cache, pages) for cache in self.caches]
        return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])

    def write_pages(self, pages: Sequence[int], content: np.ndarray) -> None:
        """Write what `read_pages` gave into as many other pages."""
        for cache, part in zip(self.caches, np.split(content, len(self.caches)), strict=True):
            values = part.view(str(cache.dtype)).reshape(len(pages), *tuple(cache.shape)[1:])
            self._memory.write_rows(cache, pages, values)

    def step(self, batch: Batch) -> StepOutput:
        """Append the batch's rows to the cache and run them."""
        assert len(batch.wanted) > 0
        where = (batch.positions, batch.sequences, self._pages(batch.page_table), batch.wanted)
        logits, hidden = self._run("prefill" if batch.expanded else "step", batch.tokens, *where)
        return StepOutput(logits, hidden, self._memory.read)

    def draft(self, batch: DraftBatch) -> StepOutput:
        """Run the MTP layer: logits of the tokens after next, for every row. The model must have such a layer."""
        logits, hidden = self._run("draft", batch.tokens, *self._layer_inputs(batch))
        return StepOutput(logits, hidden, self._memory.read)

    def follow(self, batch: DraftBatch) -> None:
        """Append what `draft` would to the MTP layer's cache, and predict nothing: most of the layer is not read."""
        self._run("follow", batch.tokens, *self._layer_inputs(batch))

    def sample(self, output: StepOutput, draws: Sequence[Draw]) -> list[int | NotFiniteError]:
        """The token of each draw from a step's output, once the step has run; no row has two draws.

        A device that can chooses by itself for requests that do not need the logits, so that only ids come back. A
        draw whose logits are not finite gets a NotFiniteError, with what to try, in place of a token.
        """
        return [self._advised(token) for token in self._sample(output, draws)]

    def _advised(self, token: int | NotFiniteError) -> int | NotFiniteError:
        if isinstance(token, NotFiniteError):
            return NotFiniteError(f"{token}; {self.advice_for_more_range()}")
        return token

    def advice_for_more_range(self) -> str:
        """What to try where numbers overflow."""
        cache, quantization = self.metadata.cache_dtype, self.metadata.quantization
        if cache != "float32":
            return (
                f'the latent cache is in {cache}, try --cache-dtype float32 (cache_dtype="float32" in Python); '
                "for a --model-lib, give it to compile instead"
            )
        if quantization != "q0f32":
            return f"the latent cache is in float32 and the weights in {quantization}, try --quantization q0f32"
        return "the latent cache and the weights are in float32, so check the checkpoint's weights"

    def _sample(self, output: StepOutput, draws: Sequence[Draw]) -> list[int | NotFiniteError]:
        there = [draw for draw in draws if "sample" in self.metadata.functions and not draw.params.needs_logits]
        tokens: dict[int, int | NotFiniteError] = {}
        if there:
            # Both are started before either is waited for.
            started = [self._start_sampling(output, own) for own in _by_mask(there)]
            for own, ids in started:
                read = self._memory.read(ids)
                tokens |= {draw.row: draw.from_device(int(token)) for draw, token in zip(own, read, strict=True)}
        else:
            self._memory.wait()
        return [tokens[draw.row] if draw.row in tokens else draw.from_logits(output.logits) for draw in draws]

    def _start_sampling(self, output: StepOutput, draws: Sequence[Draw]) -> tuple[Sequence[Draw], Any]:
        """Draws that all have a mask, or none, with the ids that the device is to choose for them."""
        inputs = [output.logits_tensor, np.stack([draw.words() for draw in draws]).astype(np.int32, copy=False)]
        if draws[0].mask is None:
            return draws, self.library.calls("sample", inputs)
        return draws, self.library.calls("sample_masked", [*inputs, np.stack([draw.mask for draw in draws])])

    def _layer_inputs(self, batch: DraftBatch) -> list[Any]:
        hidden = batch.hidden
        if isinstance(hidden, np.ndarray):
            hidden = hidden.astype(np.float32, copy=False)
        return [hidden, batch.sources, batch.positions, batch.sequences, self._pages(batch.page_table)]

    def _run(self, function: str, tokens: np.ndarray, *inputs: Any) -> Any:
        """Call a function; what is no array lies on the device already."""
        assert self._caches is not None, "allocate_cache comes before the first step"
        assert 0 < len(tokens) <= self.metadata.max_rows
        return self.library.calls(function, [tokens, *inputs], self._caches, self._parameters)

    def _pages(self, page_table: np.ndarray) -> np.ndarray:
        """The table, where few shapes are better with a power of two of columns, as sequences grow."""
        if not self.library.calls.prefers_few_shapes:
            return page_table
        sequences, longest = page_table.shape
        padded = np.zeros((sequences, 1 << (longest - 1).bit_length()), np.int32)
        padded[:, :longest] = page_table
        return padded


def _by_mask(draws: Sequence[Draw]) -> list[list[Draw]]:
    """Those without a mask, and those with one; neither list is empty."""
    parts = [draw for draw in draws if draw.mask is None], [draw for draw in draws if draw.mask is not None]
    return [part for part in parts if part]


def set_threads(threads: int | None) -> int:
    """Run kernels on this many threads (None: one for each core we may use) and return how many they are."""
    cores = usable_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise UserError(f"threads is {threads}; this machine has 1 to {cores}")
    configure_threads(threads or cores)
    return thread_count()
