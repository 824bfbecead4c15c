"""What a library says of itself: written into it at compilation, compared with an artifact before both are used."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlc_dsv3.errors import UserError
from relax_model.config import ModelConfig
from relax_model.layout import cache_width, layout_of
from relax_model.parameters import parameters

if TYPE_CHECKING:
    from mlc_dsv3.compiler.targets import CompileTarget
    from relax_model.graph import BuildOptions

# Raised whenever an older runtime could not drive a newer library, or the other way round.
FORMAT_VERSION = 6
# The operators of absorbed attention, on the CPU and on GPUs.
_ABSORBED = ("absorbed_attention", "absorbed_values")


@dataclass(frozen=True)
class Metadata:
    """A library's contents: the model and quantization it is for, its target, and the bounds of its functions."""

    format_version: int
    product_version: str
    model_type: str
    config_digest: str
    quantization: str
    device: str
    level: str
    host: str  # the kind of machine
    features: tuple[str, ...]
    context_window: int
    page_size: int
    max_rows: int
    exact_rows: int  # of a step up to which a row has the same bits whatever runs beside it
    prefill_block: int
    cache_dtype: str
    cache_width: int  # elements of a cached token in a layer
    num_caches: int
    functions: tuple[str, ...]
    parameters: tuple[tuple[str, tuple[int, ...], str], ...]  # (name, shape, dtype)
    architectures: tuple[str, ...]  # CUDA's that there is code for
    tuned: tuple[str, ...]  # kernels with a tile from a tuning record
    attention_tile: tuple[tuple[str, int], ...]  # of absorbed attention, which decides how much memory a step takes

    def to_json(self) -> str:
        """The text that `_metadata()` returns."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_fields(fields: dict[str, Any]) -> Metadata:
        """Of what has been read from JSON; UserError for a library of another format version."""
        if fields.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"the library has format version {fields.get('format_version')}, and this program reads "
                f"{FORMAT_VERSION}; compile it again"
            )
        parameters = tuple((name, tuple(shape), dtype) for name, shape, dtype in fields["parameters"])
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        tile = tuple((name, value) for name, value in fields["attention_tile"])
        return Metadata(**{**fields, **lists, "parameters": parameters, "attention_tile": tile})

    def refuse_unless_for(self, config: ModelConfig, quantization: str, library: str) -> None:
        """UserError, by the name of the first field that differs, unless the library fits this model's artifact."""
        for field, mine, theirs in (
            ("model_type", self.model_type, config.model_type),
            ("quantization", self.quantization, quantization),
            ("the number of layers, MTP layers included,", self.num_caches, config.num_cached_layers),
            ("config", self.config_digest, config.digest()),
        ):
            if mine != theirs:
                shown = (mine[:12], theirs[:12]) if field == "config" else (mine, theirs)
                raise UserError(
                    f"library {library} does not fit the model: {field} is {shown[0]} in the library and {shown[1]} in "
                    "the model; compile the library from this model"
                )


def describe(
    config: ModelConfig,
    quantization: str,
    options: BuildOptions,
    target: CompileTarget,
    context_window: int,
    tuned: Collection[str] = (),
) -> Metadata:
    """The metadata of a library about to be compiled for `target`; `tuned` are the kernels with a tile of a record."""
    from mlc_dsv3 import __version__
    from relax_model.model import exported_functions

    layout = layout_of(quantization)
    arrays = [array for parameter in parameters(config) for array in parameter.buffers(layout).items()]
    return Metadata(
        format_version=FORMAT_VERSION,
        product_version=__version__,
        model_type=config.model_type,
        config_digest=config.digest(),
        quantization=quantization,
        device=target.device,
        level=target.level,
        host=target.host.name,
        features=target.features,
        context_window=context_window,
        page_size=options.page_size,
        max_rows=options.max_rows,
        exact_rows=options.max_rows if options.family == "cpu" else options.tile.few,
        prefill_block=options.prefill_block,
        cache_dtype=options.cache_dtype,
        cache_width=cache_width(options.cache_dtype, config.kv_lora_rank, config.qk_rope_head_dim),
        num_caches=config.num_cached_layers,
        functions=exported_functions(config, options),
        parameters=tuple((name, spec.shape, spec.dtype) for name, spec in arrays),
        architectures=target.architectures,
        tuned=tuple(sorted(tuned)),
        attention_tile=tuple((dict(target.tuned) | _absorbed(options, tuned)).items()),
    )


def _absorbed(options: BuildOptions, tuned: Collection[str]) -> Mapping[str, int]:
    """The fields of absorbed attention's tile that are from a record."""
    return next((options.tuned[key] for key in tuned if key.split()[0] in _ABSORBED), {})
