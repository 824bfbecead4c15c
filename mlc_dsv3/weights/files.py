"""Files of checkpoints and artifacts: JSON with errors that name the file, checksums, and the tokenizer's files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Any

from mlc_dsv3.errors import UserError

# As `mlc_dsv3.progress.progress`: title and total → a context that yields the function which advances.
Progress = Callable[[str, float], AbstractContextManager[Callable[[float], None]]]

# What a tokenizer, a chat template and generation's defaults may be spread over; an artifact takes what is there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tiktoken.model",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
GENERATION_CONFIG = "generation_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UserError, with the place, where it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; it must be an object")
    return value


def inside(folder: Path, name: object, where: Path) -> Path:
    """The file `name` of `folder`; UserError where `name`, which the file `where` has, would lead out of the folder."""
    if not isinstance(name, str) or PurePath(name).is_absolute() or not name or ".." in PurePath(name).parts:
        raise UserError(f"{where} names the file {name!r}; it must name one inside its folder")
    return folder / name


def present(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Those of `names` that `folder` has as files."""
    return [name for name in names if (folder / name).is_file()]


def md5(path: Path, advance: Callable[[float], None]) -> str:
    """Hex md5 of a file, read by pieces; `advance` is told the bytes of each."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(4 << 20):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()
