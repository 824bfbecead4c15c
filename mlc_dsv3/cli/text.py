"""Text that a command reads from a file or from standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from mlc_dsv3.errors import UserError


def read_text(path: str, option: str) -> str:
    """A file's text, or standard input's for "-". UserError, which names `option`, where there is none."""
    if path == "-":
        text = sys.stdin.read()
    else:
        file = Path(path)
        if not file.exists():
            raise UserError(f"{option} is {path}, and there is no such file")
        if file.is_dir():
            raise UserError(f"{option} is {path}, which is a folder; it takes a file of text")
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no text in UTF-8") from error
    if not text.strip():
        raise UserError(f"{option} is {path}, which is empty")
    return text
