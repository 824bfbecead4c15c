"""A compiled library with its mapped weights and its latent caches: what the engine drives, a step at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.compiler.metadata import Metadata
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.aligned import ALIGNMENT, aligned_zeros
from mlc_dsv3.runtime.batch import Batch, StepOutput
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.runtime.virtual_machine import configure_threads, thread_count, usable_cores
from mlc_dsv3.weights import Artifact
from relax_model.config import ModelConfig


class CompiledModel:
    """The model on the CPU. Weights stay where they are mapped; the caches are this object's own."""

    def __init__(self, library: Library, config: ModelConfig, parameters: Any) -> None:
        self.config = config
        self.library = library
        self.metadata: Metadata = library.metadata
        self._step, self._prefill = library.function("step"), library.function("prefill")
        self._draft = library.function("draft") if "draft" in self.metadata.functions else None
        self._parameters = parameters
        self._caches: Any = None
        # One a layer, (pages, page_size, cache_width): the arrays that the compiled functions append to.
        self.caches: list[np.ndarray] = []

    @staticmethod
    def load(artifact: Artifact, library: Path, *, threads: int | None = None) -> CompiledModel:
        """Open `library`, refuse it unless it fits `artifact`, and map the weights. `threads`: default all cores."""
        opened = Library(library)
        opened.metadata.refuse_unless_for(artifact.model_config, artifact.quantization, str(library))
        set_threads(threads)
        return CompiledModel.from_arrays(opened, artifact.model_config, artifact.map_parameters())

    @staticmethod
    def from_arrays(library: Library, config: ModelConfig, arrays: dict[str, np.ndarray]) -> CompiledModel:
        """The model over arrays in memory, by name; they are used in place and must be aligned to 64 bytes."""
        import tvm_ffi

        assert all(array.ctypes.data % ALIGNMENT == 0 for array in arrays.values())
        in_order = [tvm_ffi.from_dlpack(arrays[name]) for name, _, _ in library.metadata.parameters]
        return CompiledModel(library, config, tvm_ffi.convert(in_order))

    def cache_bytes_per_page(self) -> int:
        """Bytes that one page takes in all layers' caches together."""
        itemsize = np.dtype(self.metadata.cache_dtype).itemsize
        return self.metadata.num_caches * self.metadata.page_size * self.metadata.cache_width * itemsize

    def allocate_cache(self, num_pages: int) -> None:
        """Give every layer a latent cache of `num_pages` pages; what an earlier one held is gone."""
        import tvm_ffi

        shape = (num_pages, self.metadata.page_size, self.metadata.cache_width)
        self.caches = [aligned_zeros(shape, self.metadata.cache_dtype) for _ in range(self.metadata.num_caches)]
        self._caches = tvm_ffi.convert([tvm_ffi.from_dlpack(cache) for cache in self.caches])

    def step(self, batch: Batch) -> StepOutput:
        """Append the batch's rows to the cache and run them."""
        function = self._prefill if batch.expanded else self._step
        return self._run(function, _tensor(batch.tokens), batch=batch)

    def draft(self, batch: Batch, hidden: np.ndarray) -> StepOutput:
        """Run the MTP layer: `batch.tokens` are the next tokens, `hidden` float32 (rows, hidden_size) the states that
        they follow. UserError where the model has no MTP layer."""
        if self._draft is None:
            raise UserError("this model has no multi-token prediction layer")
        return self._run(self._draft, _tensor(batch.tokens), _tensor(hidden, "float32"), batch=batch)

    def _run(self, function: Any, *first: Any, batch: Batch) -> StepOutput:
        assert self._caches is not None, "allocate_cache comes before the first step"
        assert 0 < len(batch.tokens) <= self.metadata.max_rows
        assert len(batch.wanted) > 0
        where = (batch.positions, batch.sequences, batch.page_table, batch.wanted)
        logits, hidden = function(*first, *map(_tensor, where), self._caches, self._parameters)
        return StepOutput(np.from_dlpack(logits), np.from_dlpack(hidden))


def _tensor(array: np.ndarray, dtype: str = "int32") -> Any:
    import tvm_ffi

    copy = aligned_zeros(array.shape, dtype)
    copy[...] = array
    return tvm_ffi.from_dlpack(copy)


def set_threads(threads: int | None) -> int:
    """Run kernels on this many threads (None: one for each core we may use) and return how many they are."""
    cores = usable_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise UserError(f"threads is {threads}; this machine has 1 to {cores}")
    configure_threads(threads or cores)
    return thread_count()
