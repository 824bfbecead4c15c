"""Which fields of a GpuTile decide how fast an operator's GPU kernel is, and the values that are worth a try.

As `cpu_choices` has it for CpuTile. Two fields are in none: up to `few` rows a row has the same bits whatever runs
beside it, which is promised for eight; and `rows` counts for steps of a few rows, of which no time is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

Choices = dict[str, tuple[int, ...]]

_THREADS = (128, 256, 64)
_PRODUCT: Choices = {"lanes": (16, 32, 8, 64), "threads": _THREADS}
_ATTENTION: Choices = {"threads": _THREADS, "heads": (16, 8, 32), "keys": (8, 4, 16), "split": (128, 256, 64, 512)}
# A block has a row, and few rows leave it alone on the device.
_ROW: Choices = {"threads": _THREADS}
# Threads have an element each: how they are cut into blocks matters little.
_ELEMENTS: Choices = {}

CHOICES: dict[str, Choices] = {
    "linear": _PRODUCT,
    "expert_linear": _PRODUCT,
    "value_project": _PRODUCT,
    "route": _PRODUCT,
    "absorbed_attention": _ATTENTION,
    "query_absorb": _ROW,
    "latent_append": _ROW,
    "rms_norm": _ROW,
    "mtp_input": _ROW,
    "embedding": _ELEMENTS,
    "rope_table": _ELEMENTS,
    "silu_mul": _ELEMENTS,
    "select_rows": _ELEMENTS,
    "combine_experts": _ELEMENTS,
}


def choices(operator: str) -> Choices:
    """Field → values to try for `operator`; nothing where there is nothing to tune."""
    return CHOICES.get(operator, {})


def is_possible(tile: Mapping[str, int]) -> bool:
    """Whether kernels can be made with a tile of these fields. What needs too much shared memory is not seen here: that
    hangs on the shape, and the compiler refuses it."""
    return (
        tile["threads"] % tile["lanes"] == 0 and tile["heads"] <= tile["threads"] and tile["split"] % tile["keys"] == 0
    )
