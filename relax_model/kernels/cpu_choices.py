"""Which fields of a CpuTile decide how fast an operator's CPU kernel is, and the values that are worth a try.

Fields come in the order in which a search should take them; what makes no other kernel is passed over. No choice makes
a row's result depend on its neighbours: products keep their bits, and attention walks through keys in blocks that are
fixed for a library. `block` stays a multiple of `columns`.
"""

from __future__ import annotations

from relax_model.layout import Layout, PackedLayout

Choices = dict[str, tuple[int, ...]]

_PACKED: Choices = {
    "prefetch_cache": (1, 2),
    "prefetch": (0, 8, 16, 32, 48),
    "dot_rows": (6, 5, 4, 3, 2, 1),
    "wide_rows": (1, 2, 3, 4, 6),
}
_UNPACKED: Choices = {"rows": (2, 3, 4), "columns": (2, 4), "block": (8, 16, 32, 64)}
_ABSORBED: Choices = {"keys": (60, 30, 18, 120), "split": (240, 120, 480, 60), "accumulators": (12, 10, 8, 14)}
_EXPANDED: Choices = {"expanded_keys": (24, 48, 96, 144), "accumulators": (12, 10, 8, 14)}


def choices(operator: str, layout: Layout) -> Choices:
    """Field → values to try for `operator` beside weights in `layout`; nothing where there is nothing to tune."""
    product = _PACKED if isinstance(layout, PackedLayout) else _UNPACKED
    return {
        "linear": _UNPACKED,
        "expert_linear": _UNPACKED,
        "quantized_linear": _PACKED,
        "gate_up": _PACKED,
        "expert_gate_up": _PACKED,
        "expert_down": _PACKED,
        "value_project": product,
        "absorbed_attention": _ABSORBED,
        "expanded_attention": _EXPANDED,
    }.get(operator, {})
