"""Which fields of a GpuTile decide how fast an operator's GPU kernel is, and the values that are worth a try.

As `cpu_choices` has it for CpuTile. Two fields are in none: up to `few` rows a row has the same bits whatever runs
beside it, which is promised for eight; and `rows` counts for steps of a few rows, of which no time is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

Choices = dict[str, tuple[int, ...]]

_THREADS = (128, 256, 64)
_PRODUCT: Choices = {"lanes": (16, 32, 8, 64), "threads": _THREADS, "each": (1, 2, 4), "steps": (1, 2, 4, 8)}
# A block has a row, and few rows leave it alone on the device.
_ROW: Choices = {"threads": _THREADS}
# Threads have an element each, or blocks are of one size: there is nothing to choose.
_ELEMENTS: Choices = {}

CHOICES: dict[str, Choices] = {
    "linear": _PRODUCT,
    "linear_pair": _PRODUCT,
    "gate_up_silu": _PRODUCT,
    "experts": _PRODUCT,
    "absorbed_values": {**_PRODUCT, "heads": (16, 8, 32), "keys": (8, 4, 16), "split": (128, 256, 64, 512)},
    "absorb_append": _ROW,
    "latent_append": _ROW,
    "rms_norm": _ROW,
    "mtp_input": _ROW,
    "expanded_attention": _ELEMENTS,
    "embedding": _ELEMENTS,
    "rope_table": _ELEMENTS,
    "select_rows": _ELEMENTS,
    "sample": _ELEMENTS,
}


def choices(operator: str) -> Choices:
    """Field → values to try for `operator`; nothing where there is nothing to tune."""
    return CHOICES.get(operator, {})


def is_possible(tile: Mapping[str, int]) -> bool:
    """Whether kernels can be made with a tile of these fields. What needs too much shared memory is not seen here: that
    hangs on the shape, and the compiler refuses it."""
    # Neighbouring outputs of a block are a gate's and an up projection's. Within a warp they are the same lanes'.
    warp = tile.get("warp", 0)
    return (
        tile["threads"] % tile["lanes"] == 0
        and (not warp or (warp % tile["lanes"] == 0 and tile["each"] % 2 == 0))
        and tile["threads"] >= 2 * tile["lanes"]
        and tile["split"] % tile["keys"] == 0
    )
