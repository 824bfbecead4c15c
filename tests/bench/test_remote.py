"""An object in another process: its results, its mistakes and its end."""

from __future__ import annotations

import os
import signal

import pytest

from mlc_dsv3.bench.remote import Remote
from mlc_dsv3.errors import UserError


class Served:
    """What the other process makes."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise UserError(f"start is {start}")
        self._sum = start

    def add(self, value: int, *, twice: bool = False) -> tuple[int, int]:
        self._sum += value * (2 if twice else 1)
        return self._sum, os.getpid()

    def fail(self) -> None:
        raise KeyError("nothing here")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_object_keeps_its_state_in_a_process_of_its_own() -> None:
    with Remote(Served, 1) as served:
        assert served.call("add", 2)[0] == 3
        total, process = served.call("add", 2, twice=True)
    assert total == 7
    assert process != os.getpid()


def test_a_users_mistake_comes_back_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^start is -1$"):
        Remote(Served, -1)


def test_any_other_failure_comes_back_with_its_traceback() -> None:
    with Remote(Served, 0) as served, pytest.raises(RuntimeError, match="in fail\n.*\n.*nothing here"):
        served.call("fail")


def test_a_process_that_is_killed_is_told_in_one_line() -> None:
    with Remote(Served, 0) as served, pytest.raises(UserError, match="ended by signal 9"):
        served.call("die")
