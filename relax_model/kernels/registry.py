"""(operator, family) → builder: the only way from the model to a kernel."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from types import FrameType
from typing import TypeVar

from tvm.tirx import PrimFunc

from relax_model.layout import Layout

Builder = Callable[..., PrimFunc]
_B = TypeVar("_B", bound=Builder)

# operator → the folder under relax_model/kernels/ that holds its families
_FOLDERS = {
    "embedding": "embedding",
    "rms_norm": "norm",
    "mtp_input": "norm",
    "rope_table": "rope",
    "linear": "linear",
    "linear_pair": "linear",
    "gate_up_silu": "linear",
    "quantized_linear": "linear",
    "silu_mul": "linear",
    "quantize": "linear",
    "gate_up": "linear",
    "select_rows": "linear",
    "latent_append": "attention",
    "query_absorb": "attention",
    "query_rope": "attention",
    "absorbed_attention": "attention",
    "value_project": "attention",
    "absorb_append": "attention",
    "absorbed_values": "attention",
    "expanded_attention": "attention",
    "route": "moe",
    "expert_linear": "moe",
    "expert_gate_up": "moe",
    "expert_down": "moe",
    "combine_experts": "moe",
    "experts": "moe",
    "sample": "sampling",
}
_BUILDERS: dict[tuple[str, str], Builder] = {}


def kernel(operator: str, family: str) -> Callable[[_B], _B]:
    """Enter a builder for `operator` on a target family; a second one for the same pair is our mistake."""
    assert operator in _FOLDERS, f"{operator} has no folder in the registry"

    def enter(builder: _B) -> _B:
        assert (operator, family) not in _BUILDERS, f"{operator} for {family} is registered twice"
        _BUILDERS[operator, family] = builder
        return builder

    return enter


def offers(operator: str, family: str) -> bool:
    """Whether the operator has a kernel for this family."""
    _load(operator, family)
    return (operator, family) in _BUILDERS


def operators() -> tuple[str, ...]:
    """All operators that a model may call."""
    return tuple(_FOLDERS)


@cache
def build(operator: str, family: str, *args: object, **kwargs: object) -> PrimFunc:
    """The kernel of `operator` for `family`; equal arguments give the same function object.

    Raises KeyError, listing the families there are, where the operator has no kernel for this one.
    """
    builder = _builder(operator, family)
    with _stack_without_source():
        return builder(*args, **kwargs).with_attr("relax_model.operator", operator)


@cache
def describe(operator: str, family: str, *args: object) -> str:
    """The operator and what sets its kernels apart, by the builder's names: `expert_down layout=q4f16_1 experts=64 …`.

    Of a shape its whole numbers and words; factors and flags in it do not change a kernel's work.
    """
    names = inspect.signature(_builder(operator, family)).parameters
    return " ".join([operator, *(_phrase(name, value) for name, value in zip(names, args, strict=False))])


def _phrase(name: str, value: object) -> str:
    if isinstance(value, Layout):
        return f"{name}={value.name}"
    if not is_dataclass(value):
        return f"{name}={value}"
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    return " ".join(f"{part}={known}" for part, known in parts.items() if type(known) in (int, str))


def _builder(operator: str, family: str) -> Builder:
    _load(operator, family)
    if (operator, family) not in _BUILDERS:
        known = sorted(name for known_operator, name in _BUILDERS if known_operator == operator)
        raise KeyError(f"operator {operator} has no kernel for {family!r}; loaded families: {', '.join(known)}")
    return _BUILDERS[operator, family]


def _load(operator: str, family: str) -> None:
    folder = f"relax_model.kernels.{_FOLDERS[operator]}"
    if importlib.util.find_spec(f"{folder}.{family}") is not None:
        importlib.import_module(f"{folder}.{family}")


@contextmanager
def _stack_without_source() -> Iterator[None]:
    """TVMScript's decorators and inlined statements list all frames above them, by default with source lines that
    nobody looks at: most of the time that building a model takes."""
    original = inspect.getframeinfo
    inspect.getframeinfo = _bare_frame
    try:
        yield
    finally:
        inspect.getframeinfo = original


def _bare_frame(frame: FrameType, context: int = 1) -> inspect.Traceback:
    """`inspect.getframeinfo` without a look at any file."""
    return inspect.Traceback(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, None, None)
