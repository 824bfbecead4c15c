"""Whether what compilers write has room: LLVM ends the process where a disk is full, so it is tried beforehand."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlc_dsv3.errors import UserError

# Objects and library of the largest models take a megabyte for the CPU, and some ten with CUDA's machine code.
_MEBIBYTES = 32


def refuse_full(folder: Path) -> None:
    """UserError where a folder does not take what a compilation writes: its disk or quota is full, files may not become
    as large, or it is read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(_MEBIBYTES):
                file.write(bytes(1 << 20))
            file.flush()
    except OSError as error:
        raise UserError(f"compiling writes up to {_MEBIBYTES} MiB to {folder}: {error.strerror}") from None
