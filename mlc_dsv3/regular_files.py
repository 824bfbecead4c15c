"""Files that are read as they are: opening a pipe would wait for its writer, and a device has no end."""

from __future__ import annotations

import stat
from pathlib import Path

from mlc_dsv3.errors import UserError


def regular_size(path: Path) -> int:
    """Bytes of the file `path`; UserError where it is absent, or a folder, a pipe or a device."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}")
    return status.st_size
