"""Typed, bounded look-ups in an object of a JSON file; each error is one line that names the field.

Every file that others write is read through this class once; what it returns is taken as valid everywhere else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from relax_model.errors import ConfigError

REQUIRED: Any = object()  # as a default: the field must be there
MOST_TOKENS = 1 << 30  # of any context; positions are 32-bit integers
_MOST = 2**53  # whole numbers up to here are the same in every JSON reader
_SURROGATES = frozenset(map(chr, range(0xD800, 0xE000)))
_SHOWN = 60  # characters of a wrong value that an error repeats
_LONGEST_NAME = 200


class Fields:
    """The fields of one object. `where` goes in front of the names in errors, such as "rope_scaling.".

    A field that is absent has the default. null is a wrong value like any other, except where the default is None;
    `without_nulls` makes all nulls absent.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values, self.where = values, where

    @staticmethod
    def of(value: Any, where: str) -> Fields:
        """The fields of `value`; ConfigError where it is no object."""
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {shown(value)}; it must be an object")
        return Fields(value, f"{where}.")

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def without_nulls(self) -> Fields:
        """The same fields, where null counts as absent."""
        return Fields({name: value for name, value in self.values.items() if value is not None}, self.where)

    def integer(self, name: str, default: Any = REQUIRED, *, least: int = 0, most: int = _MOST) -> Any:
        """A whole number, also one written as a float."""
        value = self._get(name, default)
        if value is default:
            return value
        if not is_number(value) or value != math.floor(value) or not least <= value <= most:
            raise self._wrong(name, value, f"a whole number from {least} to {most}")
        return int(value)

    def number(
        self, name: str, default: Any = REQUIRED, *, least: float = -math.inf, over: float = -math.inf, most: float
    ) -> Any:
        """A finite number of at least `least`, greater than `over`, and at most `most`."""
        value = self._get(name, default)
        if value is default:
            return value
        if not is_number(value) or not (least <= value <= most and value > over):
            lower = f"over {over:g}" if over > least else f"from {least:g}"
            raise self._wrong(name, value, f"a number {lower} to {most:g}")
        return float(value)

    def flag(self, name: str, default: Any = REQUIRED) -> Any:
        """true or false."""
        value = self._get(name, default)
        if value is not default and not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def choice(self, name: str, known: tuple[Any, ...], default: Any = REQUIRED) -> Any:
        """One of the values in `known`."""
        value = self._get(name, default)
        if value is not default and not any(type(value) is type(each) and value == each for each in known):
            names = ", ".join(each if isinstance(each, str) else shown(each) for each in known)
            raise ConfigError(f"{self.where}{name} is {shown(value)}; known: {names}")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> Any:
        """A string of Unicode; JSON can spell halves of surrogate pairs, which are none."""
        value = self._get(name, default)
        if value is not default and not (isinstance(value, str) and _SURROGATES.isdisjoint(value)):
            raise self._wrong(name, value, "a string of Unicode")
        return value

    def object(self, name: str, default: Any = REQUIRED) -> Any:
        """The Fields of a nested object."""
        value = self._get(name, default)
        if value is default:
            return value
        return Fields.of(value, f"{self.where}{name}")

    def array(self, name: str, default: Any = REQUIRED) -> Any:
        """A list, whose elements the caller checks."""
        value = self._get(name, default)
        if value is not default and not isinstance(value, list):
            raise self._wrong(name, value, "a list")
        return value

    def integers(self, name: str, default: Any = REQUIRED, *, least: int = 0, most: int = _MOST) -> Any:
        """A tuple of whole numbers from a list of them."""
        value = self.array(name, default)
        if value is default:
            return value
        each = Fields({f"{name}[{index}]": element for index, element in enumerate(value)}, self.where)
        return tuple(each.integer(element, least=least, most=most) for element in each.values)

    def _get(self, name: str, default: Any) -> Any:
        if name in self.values:
            return self.values[name]
        if default is REQUIRED:
            raise ConfigError(f"{self.where}{name} is missing")
        return default

    def _wrong(self, name: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(f"{self.where}{name} is {shown(value)}; it must be {wanted}")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, and no bool."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def named(text: str) -> str:
    """A name out of a file as an error shows it: as it stands, or quoted as by `shown` where it is not plain."""
    return text if len(text) <= _LONGEST_NAME and re.fullmatch(r"[!-~]+", text) else shown(text)


def shown(value: Any) -> str:
    """A value of a JSON file as an error shows it: one short line."""
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
