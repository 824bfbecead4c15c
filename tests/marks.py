"""Which cases of a parametrized test run by default, and which in .ci/run alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick_first(values: Iterable[Any], quick: int = 1, *, of_fixture: bool = False) -> list[Any]:
    """`values` as a test's parameters, or a fixture's, those behind the first `quick` marked `full`."""
    mark = _full_value if of_fixture else full
    return [value if index < quick else mark(value) for index, value in enumerate(values)]


def full(value: Any) -> Any:
    """A test's parameter, or a tuple of its parameters, marked `full`."""
    return pytest.param(*value, marks=pytest.mark.full) if isinstance(value, tuple) else _full_value(value)


def _full_value(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.full)
