"""Recognises weights that other tools quantized, so that the refusal says what was found and what is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlc_dsv3.weights.decode import DECODABLE
from mlc_dsv3.weights.safetensors import TensorEntry
from relax_model.fields import named

READ = "F32, F16, BF16, F64, and F8_E4M3 with weight_scale_inv for each 128x128 block"


@dataclass(frozen=True)
class _Format:
    """A module whose tensors have these last names, `weight` in one of these dtypes where any are given."""

    title: str
    leaves: frozenset[str]
    dtypes: frozenset[str] = frozenset()

    def matches(self, found: Mapping[str, str]) -> bool:
        return self.leaves <= found.keys() and (not self.dtypes or bool(self.dtypes & set(found.values())))


def _format(title: str, leaves: str, dtypes: str = "") -> _Format:
    return _Format(title, frozenset(leaves.split()), frozenset(dtypes.split()))


# The first that matches; bitsandbytes' names lie one level below `weight`.
_FORMATS = (
    _format("compressed-tensors nvfp4-pack-quantized", "weight_packed weight_scale weight_global_scale"),
    _format("compressed-tensors mxfp4-pack-quantized", "weight_packed weight_scale", "U8"),
    _format("compressed-tensors pack-quantized", "weight_packed weight_scale"),
    _format("ModelOpt NVFP4", "weight weight_scale weight_scale_2", "U8"),
    _format("GPTQ", "qweight g_idx"),
    _format("AWQ or GPTQ", "qweight qzeros"),
    _format("bitsandbytes 4 bits", "absmax"),
    _format("bitsandbytes 8 bits", "SCB"),
    _format("HQQ", "W_q"),
    _format("MLX", "weight scales biases", "U32"),
    _format("compressed-tensors int-quantized", "weight weight_scale", "I8"),
    _format("fp8 with other scales than those of blocks", "weight weight_scale", "F8_E4M3 F8_E5M2"),
)


_OURS = {"weight", "weight_scale_inv"}


def packed_weight(tensors: Mapping[str, TensorEntry]) -> str | None:
    """What is said of the first weight in a format that is not read; None where there is no such weight.

    `tensors` has the names of the family.
    """
    for module, found in _modules(tensors).items():
        if found.keys() <= _OURS:
            continue
        known = next((each.title for each in _FORMATS if each.matches(found)), None)
        if known is not None:
            listed = ", ".join(f"{named(leaf)} ({named(dtype)})" for leaf, dtype in sorted(found.items()))
            return f"{named(module)} is quantized as {known}: it has {listed}"
    return None


def announced_method(config: Mapping[str, Any]) -> str | None:
    """The method that `quantization_config` announces; None where the config has no such field."""
    fields = config.get("quantization_config")
    if fields is None:
        return None
    method = fields.get("quant_method") if isinstance(fields, dict) else None
    return method if isinstance(method, str) else "an unnamed method"


def plain_floats(tensors: Mapping[str, TensorEntry]) -> bool:
    """Whether every weight of the language model is in plain floats."""
    return all(
        entry.dtype in DECODABLE and entry.dtype != "F8_E4M3"
        for name, entry in tensors.items()
        if name.startswith(("model.", "lm_head.")) and name.endswith(".weight")
    )


def _modules(tensors: Mapping[str, TensorEntry]) -> dict[str, dict[str, str]]:
    """Module → last name of each of its tensors → dtype."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for module, leaf, dtype in _split(tensors):
        modules[module][leaf] = dtype
    return modules


def _split(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[str, str, str]]:
    for name, entry in tensors.items():
        if name.startswith(("model.", "lm_head.")):
            module, _, leaf = name.rpartition(".")
            yield module, leaf, entry.dtype
