"""What a model's kernels are asked to do: every call that can be tuned, with its sizes in decode and in prefill."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlc_dsv3.compiler.tuned import Choices, choices
from mlc_dsv3.errors import UserError

if TYPE_CHECKING:
    from relax_model.config import ModelConfig
    from relax_model.graph import BuildOptions, KernelCall

DEPTH = 4096  # cached tokens, where the context window has room for them


@dataclass(frozen=True)
class Workload:
    """A regime's sizes: symbol → number; and how often a token (or a block of them) makes the call."""

    sizes: dict[str, int]
    count: int

    @property
    def rows(self) -> int:
        """Tokens of a step."""
        return self.sizes["rows"]


@dataclass(frozen=True)
class Case:
    """One entry of a record: a kernel's work on one shape, by regime."""

    call: KernelCall
    workloads: dict[str, Workload] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelCases:
    """The cases that one compiled kernel serves, and what may be chosen for it."""

    operator: str
    family: str
    arguments: tuple[object, ...]
    choices: Choices
    cases: list[Case]


def kernel_cases(config: ModelConfig, options: BuildOptions, context_window: int | None = None) -> list[KernelCases]:
    """All that can be tuned of a model. Prefill is one block, decode one row, both at the end of `context_window`
    tokens or, by default, behind `DEPTH` tokens. UserError for a window that the model does not have.

    Where prefill has no function of its own, it is as many rows as a step has at most.
    """
    from relax_model.model import build_module

    longest = config.max_position_embeddings
    if context_window is not None and not 2 <= context_window <= longest:
        raise UserError(f"context_window is {context_window}; the model takes 2 to {longest} tokens")
    counts: Counter[tuple[str, str]] = Counter()
    calls: dict[str, KernelCall] = {}

    regimes = {"step": ["decode"], "draft": ["decode"], "follow": ["decode"], "prefill": ["prefill"]}
    if not options.prefill_block:
        regimes["step"].append("prefill")

    def note(function: str, call: KernelCall) -> None:
        if call.has_own_tile and choices(call.operator, call.family, options.layout):
            calls[call.key] = call
            counts.update((call.key, regime) for regime in regimes[function])

    build_module(config, options, note)
    found: dict[tuple[object, ...], KernelCases] = {}
    for key, call in calls.items():
        case = Case(call)
        for regime, sizes in _sizes(config, options, context_window).items():
            if counts[key, regime] and (regime == "decode" or _has_rows(call) or not counts[key, "decode"]):
                case.workloads[regime] = Workload(sizes, counts[key, regime])
        kernel = (call.operator, *call.arguments)
        tunable = choices(call.operator, call.family, options.layout)
        found.setdefault(kernel, KernelCases(call.operator, call.family, call.arguments, tunable, []))
        found[kernel].cases.append(case)
    return list(found.values())


def _sizes(config: ModelConfig, options: BuildOptions, context_window: int | None) -> dict[str, dict[str, int]]:
    found, longest = {}, context_window or config.max_position_embeddings
    for regime, most in (("decode", 1), ("prefill", options.prefill_block or options.max_rows)):
        rows = min(most, longest)
        depth = longest - rows if context_window else min(DEPTH, longest - rows)
        pages = -(-(depth + rows) // options.page_size)
        found[regime] = {
            "rows": rows,
            "wanted": 1,
            "states": rows,
            "sequences": 1,
            "longest": pages,
            "pages": pages,
            "depth": depth,
        }
    return found


def _has_rows(call: KernelCall) -> bool:
    """Whether the work grows with the rows: the head's does not."""
    return any("rows" in str(size) for type_ in call.inputs for size in type_.shape)


def shape_of(type_: Any, sizes: dict[str, int]) -> tuple[int, ...]:
    """The shape of a TensorType with its symbols replaced."""
    return tuple(_value(size, sizes) for size in type_.shape)


def _value(size: Any, sizes: dict[str, int]) -> int:
    if hasattr(size, "value"):
        return int(size.value)
    if hasattr(size, "name"):
        return sizes[size.name]
    assert type(size).__name__ == "Mul", size
    return _value(size.a, sizes) * _value(size.b, sizes)
