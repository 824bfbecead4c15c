"""What a library says of itself, as text within the file: to be read on a machine that could not load it."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

from mlc_dsv3.errors import UserError

_MARK = "mlc_dsv3 library "


def write_note(content: dict[str, Any], source: Path) -> Path:
    """Write the note as C source, which is linked into the library."""
    text = json.dumps(json.dumps(content, separators=(",", ":")))  # ASCII, whose escapes in JSON are those of C as well
    keep = '__attribute__((used, visibility("default")))'
    source.write_text(f'{keep} const char mlc_dsv3_note[] = "{_MARK}" {text};\n')
    return source


def read_note(library: Path) -> dict[str, Any]:
    """The note in a library. UserError where there is no such file, or no note in it."""
    if library.exists() and not library.is_file():
        raise UserError(f"{library} is no library of this program: it is no regular file")
    if not library.is_file():
        raise UserError(f"library {library} is not there; make it with: mlc_dsv3 compile")
    mark = _MARK.encode() + b"{"
    with library.open("rb") as file:
        if library.stat().st_size == 0:
            raise UserError(f"{library} is no library of this program: it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(mark) + len(mark) - 1
            end = data.find(b"\0", start)
            if start < len(mark) or end < 0:
                raise UserError(f"{library} is no library of this program, or of a version that wrote no note into it")
            return json.loads(data[start:end])
