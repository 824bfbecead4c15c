"""The numbers that sampling settings may be, whether a request states them or a checkpoint's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlc_dsv3.errors import UserError
from relax_model.fields import is_number

MOST_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class Limits:
    """The numbers that a setting may be; `least` itself is out of range where `above` is set."""

    least: float
    most: float | None = None
    above: bool = False
    whole: bool = False

    def check(self, name: str, value: object, show: Callable[[object], str] = ascii) -> None:
        """UserError, naming the setting, where `value` is no such number; `show` writes the value."""
        valid = is_number(value) and (isinstance(value, int) or not self.whole)
        valid = valid and (value > self.least if self.above else value >= self.least)
        if not valid or (self.most is not None and value > self.most):
            raise UserError(f"{name} is {show(value)[:60]}; it must be {self}")

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        lower = f"{kind} above {self.least}" if self.above else f"{kind} of at least {self.least}"
        return lower if self.most is None else f"{lower} and at most {self.most}"


SAMPLING_LIMITS = {
    "temperature": Limits(0, 1_000_000),
    "top_p": Limits(0, 1, above=True),
    "top_k": Limits(-1, MOST_TOKEN_ID, whole=True),
    "min_p": Limits(0, 1),
    "repetition_penalty": Limits(0.001, 1000),
    "presence_penalty": Limits(-2, 2),
    "frequency_penalty": Limits(-2, 2),
}
