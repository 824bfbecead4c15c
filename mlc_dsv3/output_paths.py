"""Paths that a user names for results, checked before the work that makes them.

Each function returns its path, so that it also serves as the `type` of a command line's argument.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlc_dsv3.errors import UserError


def output_file(path: str | Path) -> Path:
    """`path`; UserError where no file can be written: a folder or a device is there, or no folder can hold it."""
    path = Path(path)
    found = _status(path)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder; name a file in it, as {path / 'NAME'}")
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a regular file; choose another name")
    _check_folder(path, path.parent)
    return path


def output_folder(path: str | Path) -> Path:
    """`path`; UserError where it is not a folder that can be written, and none can be made there."""
    path = Path(path)
    _check_folder(path, path)
    return path


def artifact_folder(path: str | Path) -> Path:
    """`output_folder`; UserError also where a checkpoint is there: the artifact would be read in its place."""
    path = output_folder(path)
    if (path / "config.json").exists() or any(path.glob("*.safetensors")):
        raise UserError(f"{path} holds a checkpoint, and an artifact would be read in its place; name another folder")
    return path


@contextmanager
def folder_made(path: Path) -> Iterator[None]:
    """Make the folder `path`, and those above it, for the work inside. Where that fails, those that were made and are
    empty are removed. UserError where the folder cannot be made."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"folder {path} cannot be made: {error.strerror}") from error
        yield
    except BaseException:
        for each in made:
            with suppress(OSError):
                each.rmdir()
        raise


def _status(path: Path) -> os.stat_result | None:
    """What is at `path`, links followed; None for nothing."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _check_folder(path: Path, folder: Path) -> None:
    """UserError unless `path` can be written in `folder`, or that can be made in the nearest folder above it."""
    try:
        folder = folder.absolute()
    except FileNotFoundError:
        raise UserError(f"{path} cannot be written: the current folder has been removed; change to another") from None
    for each in (folder, *folder.parents):
        found = _status(each)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            raise UserError(f"{path} cannot be written: {each} is a file, not a folder")
        if found is None and each.is_symlink():
            raise UserError(f"{path} cannot be written: {each} is a link to a folder that is not there")
        if found is not None:
            if not os.access(each, os.W_OK | os.X_OK):
                raise UserError(f"{path} cannot be written: you may not write in {each}")
            return
