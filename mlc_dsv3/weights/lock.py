"""One process at a time makes a file, by a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlc_dsv3.errors import UserError, note


def make_once(product: Path, make: Callable[[], object], *, doing: str) -> bool:
    """Have `make()` make the file `product` unless it is there; returns whether it did.

    Where another process is making it, waits, says so (what it is `doing`: "compiles this model"), and leaves it at
    what that one made. `make` puts the file in its place when all is done. UserError for a folder that cannot be
    written.
    """
    if product.is_file():
        return False
    try:
        product.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {product.parent} cannot be made: {error.strerror}") from error
    with exclusive(product.with_name(f"{product.name}.lock"), wait_while=doing):
        if product.is_file():
            return False
        make()
    return True


@contextmanager
def exclusive(path: Path, *, wait_while: str | None = None) -> Iterator[None]:
    """Hold the lock file `path`.

    Where another process holds it: UserError with its id, or, with what it does in `wait_while`, say so and wait.
    """
    descriptor = _acquire(path, wait_while)
    try:
        with suppress(OSError):  # on a full disk the lock holds without its holder's id
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, wait_while: str | None) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written: {error.strerror}") from error
        try:
            _lock(descriptor, path, wait_while)
        except BaseException:
            os.close(descriptor)
            raise
        # The file that was opened may have been removed by its last holder before the lock was taken.
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _lock(descriptor: int, path: Path, wait_while: str | None) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode() or "unknown"
            if wait_while is None:
                raise UserError(
                    f"{path.parent} is being written by process {holder}; wait for it or choose another folder"
                ) from None
            note(f"process {holder} {wait_while}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(f"{path} cannot be locked: {error.strerror}; choose a folder on another disk") from error
