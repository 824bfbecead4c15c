"""Exponentials of whole vectors: calls of the C library's would take them apart."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

LOG2_E = 1.4426950408889634
# 2**r for |r| ≤ 1/2 as a polynomial, fitted to the least relative error (2e-9); lowest power first.
_POWERS = (
    1.0,
    0.6931471824645996,
    0.24022646248340607,
    0.05550329014658928,
    0.009618519805371761,
    0.0013399859890341759,
    0.00015337577497120947,
)
_LEAST, _MOST = -126.0, 127.0


def exp2(x: Any, lanes: int) -> Any:
    """2**x of a float32 vector; 0 below 2**-126, and no more than 2**127.5. Relative error below 3e-7."""
    bounded = T.max(T.min(x, _all(_MOST, lanes)), _all(_LEAST, lanes))
    whole = T.nearbyint(bounded)
    rest = bounded - whole
    result = _all(_POWERS[-1], lanes)
    for power in reversed(_POWERS[:-1]):
        result = T.fma(result, rest, _all(power, lanes))
    exponent = T.shift_left(
        T.Cast(f"int32x{lanes}", whole) + T.Broadcast(T.int32(127), lanes), T.Broadcast(T.int32(23), lanes)
    )
    scaled = result * T.reinterpret(f"float32x{lanes}", exponent)
    return T.Select(x < _all(_LEAST, lanes), _all(0.0, lanes), scaled)


def sigmoid(x: Any, lanes: int) -> Any:
    """1 / (1 + e**-x) of a float32 vector."""
    one = _all(1.0, lanes)
    return one / (one + exp2(x * _all(-LOG2_E, lanes), lanes))


def _all(value: float, lanes: int) -> Any:
    return T.Broadcast(T.float32(value), lanes)
