"""Files of checkpoints and artifacts: JSON with errors that name the file, checksums, and the tokenizer's files."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePath
from typing import Any

from mlc_dsv3.errors import USER_ERRORS, UserError

# As `mlc_dsv3.progress.progress`: title and total → a context that yields the function which advances.
Progress = Callable[[str, float], AbstractContextManager[Callable[[float], None]]]

# Where transformers 5 writes the chat template that is used when there are tools.
TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
# What a tokenizer, a chat template and generation's defaults may be spread over; an artifact takes what is there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tiktoken.model",
    "tokenizer.model",
    "chat_template.jinja",
    TOOL_TEMPLATE,
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
GENERATION_CONFIG = "generation_config.json"


_MOST_JSON_BYTES = 256 << 20  # ten times the largest tokenizer.json


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UserError, with the place, where it cannot be read. Its numbers are finite."""
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise UserError(f"{path} has {path.stat().st_size} bytes; no file of its kind is that large")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object with finite numbers; UserError, which begins with `where`, for anything else."""
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a JSON {type(value).__name__}; it must be an object")
    return value


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


def inside(folder: Path, name: object, where: Path) -> Path:
    """The file `name` of `folder`; UserError where `name`, which the file `where` has, would lead out of the folder."""
    path = PurePath(name) if isinstance(name, str) and name and "\0" not in name else None
    if path is None or path.is_absolute() or ".." in path.parts or path == PurePath():
        raise UserError(f"{where} names the file {name!r}; it must name one inside its folder")
    return folder / name


def present(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that `folder` has as files."""
    return [name for name in names if (folder / name).is_file()]


def copy_files(source: Path, names: Iterable[str], folder: Path) -> None:
    """Copy those of `names` that `source` has into `folder`, under the same names."""
    for name in present(source, names):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def md5(path: Path, advance: Callable[[float], None]) -> str:
    """Hex md5 of a file, read by pieces; `advance` is told the bytes of each."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()
