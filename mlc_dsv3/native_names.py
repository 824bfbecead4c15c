"""File names for code that is not Python's: it takes UTF-8, whatever the locale makes of a name's bytes."""

from __future__ import annotations

import os
from pathlib import Path

from mlc_dsv3.errors import UserError


def native_name(path: Path) -> str:
    """The text whose UTF-8 bytes are the absolute name of `path`; UserError where its bytes are not UTF-8.

    Under `LC_ALL=C` without UTF-8 mode, or in a Latin-1 locale, Python's own text of a name is another one.
    """
    try:
        return os.fsencode(path.absolute()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the name {str(path)!r} is not valid UTF-8, and the file cannot be opened; rename it"
        ) from error
