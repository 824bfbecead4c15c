"""Two kernels in turns: what is said of them when the machine's speed changes under both."""

from __future__ import annotations

import pytest

from mlc_dsv3.tune import stopwatch


class Machine:
    """A clock that a kernel moves on; its speed may change from call to call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slowness) -> None:
        self.now, self.calls, self._slowness = 0.0, [], slowness
        monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: self.now)

    def kernel(self, name: str, seconds: float):
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * self._slowness(len(self.calls))

        return run


def test_a_machine_that_slows_down_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda calls: 1.0 if calls < 20 else 3.0)
    default, other = machine.kernel("default", 1.0), machine.kernel("other", 0.95)
    first, second = stopwatch.compare(stopwatch.wall_clock, default, other, [[]], rounds=4, most=15)
    assert second / first == pytest.approx(0.95)


def test_the_two_take_turns_and_neither_is_always_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda calls: 1.0)
    stopwatch.compare(stopwatch.wall_clock, machine.kernel("a", 1.0), machine.kernel("b", 1.0), [[]], rounds=4, most=4)
    assert "".join(machine.calls[-8:]) == "baabbaab"


def test_what_clearly_differs_needs_no_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, rounds in ((0.5, 2), (1.01, 9)):
        machine = Machine(monkeypatch, lambda calls: 1.0)
        stopwatch.compare(
            stopwatch.wall_clock, machine.kernel("a", 1.0), machine.kernel("b", seconds), [[]], rounds=2, most=9
        )
        assert machine.calls[3:].count("b") == rounds


def test_short_kernels_are_timed_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda calls: 1.0)
    assert stopwatch.measure(stopwatch.wall_clock, machine.kernel("a", 1e-5), [[], []], rounds=3) == pytest.approx(1e-5)
    assert len(machine.calls) > 3 * 400
