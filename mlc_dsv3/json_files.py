"""JSON objects from files that others write, with errors that name the file.

`relax_model.fields.Fields` reads what is in them.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlc_dsv3.errors import USER_ERRORS, UserError, warn_once
from mlc_dsv3.regular_files import regular_size

_MOST_JSON_BYTES = 256 << 20  # ten times the largest tokenizer.json


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UserError, with the place, where it cannot be read. Its numbers are finite."""
    return parse_json(read_json_bytes(path), str(path))


def read_json_bytes(path: Path) -> bytes:
    """What a JSON file holds, without the byte order mark that some editors begin it with."""
    size = regular_size(path)
    if size > _MOST_JSON_BYTES:
        raise UserError(f"{path} has {size} bytes; no file of its kind is that large")
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object with finite numbers; UserError, which begins with `where`, for anything else."""
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a JSON {type(value).__name__}; it must be an object")
    return value


def warn_of_absent(names: Collection[str], fields: Mapping[str, Any], path: Path) -> None:
    """Warn of fields that are to be ignored and that the file does not have: their names may be misspelt."""
    absent = [name for name in names if name not in fields]
    if absent:
        one = len(absent) == 1
        warn_once(f"{path} has no {'field' if one else 'fields'} {', '.join(absent)} to ignore (--ignore-config-field)")


def _no_constant(text: str) -> float:
    raise ValueError(f"it has {text}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"its number {text[:40]} is too large")
    return value


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of errors about its fields."""
    try:
        yield
    except USER_ERRORS as error:
        raise UserError(f"{path}: {error}") from error
