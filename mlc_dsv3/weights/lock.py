"""One conversion at a time into a folder, by a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlc_dsv3.errors import UserError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; UserError, with the holder's process id, where another process holds it."""
    descriptor = _acquire(path)
    try:
        with suppress(OSError):  # on a full disk the lock holds without its holder's id
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{path.parent} is being written by process {holder}; wait for it or choose another folder"
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"{path} cannot be locked: {error.strerror}; choose a folder on another disk") from error
        # The file that was opened may have been removed by its last holder before the lock was taken.
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
