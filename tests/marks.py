"""Which cases of a parametrized test run by default, and which in .ci/run alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick_first(values: Iterable[Any], quick: int = 1, *, whole: bool = False) -> list[Any]:
    """`values` as parameters, those behind the first `quick` marked `full`. A tuple is several parameters, or with
    `whole` one, as of a fixture."""
    mark = _full_value if whole else full
    return [value if index < quick else mark(value) for index, value in enumerate(values)]


def each_once(*axes: Iterable[Any]) -> list[Any]:
    """Combinations that have every value of each axis once, beside the first values of the other axes; those behind the
    first combination marked `full`. (What one axis breaks seldom hangs on another, and all pairs take ten times as
    long.)"""
    values = [list(axis) for axis in axes]
    first = tuple(axis[0] for axis in values)
    others = [(*first[:place], value, *first[place + 1 :]) for place, axis in enumerate(values) for value in axis[1:]]
    return [first, *map(full, others)]


def full(value: Any) -> Any:
    """A test's parameter, or a tuple of its parameters, marked `full`."""
    return pytest.param(*value, marks=pytest.mark.full) if isinstance(value, tuple) else _full_value(value)


def _full_value(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.full)
