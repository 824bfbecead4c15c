"""Where what we make for the user is kept: the folders that the XDG variables name, or else the platform's own."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from mlc_dsv3.errors import UserError

_NAME = "mlc_dsv3"


def cache_folder() -> Path:
    """Artifacts and libraries made on demand: safe to delete, made again when missing. UserError without a home."""
    return _chosen("XDG_CACHE_HOME") or _home("XDG_CACHE_HOME") / _BY_PLATFORM["cache"] / _NAME


def data_folder() -> Path:
    """What is kept for good: tuning records and what was typed in `chat`. UserError without a home."""
    return _chosen("XDG_DATA_HOME") or _home("XDG_DATA_HOME") / _BY_PLATFORM["data"] / _NAME


def variable_of(path: str | Path) -> str | None:
    """The variable that chooses the folder of ours that `path` is in; None where it is in neither."""
    for variable, folder in (("XDG_CACHE_HOME", cache_folder), ("XDG_DATA_HOME", data_folder)):
        with suppress(UserError):
            if Path(path).is_relative_to(folder()):
                return variable
    return None


def temporary_folder() -> Path:
    """What TMPDIR names, or another folder where that cannot be written to. UserError where there is none."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise UserError("no folder for temporary files can be written to; set TMPDIR to one that can") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, with the folders above it, whole or not at all: nothing else stays behind. OSError where it cannot
    be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        partial = Path(folder) / path.name
        partial.write_bytes(data)
        os.replace(partial, path)


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ or ~user replaced; UserError where that has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path} begins with a home folder that is not known; write the whole path") from None


def import_tvm() -> None:
    """Import TVM, also for a user without a home: it asks for one, to keep in it what we never make."""
    if "XDG_CACHE_HOME" in os.environ or _has_home():
        return  # whoever needs TVM imports it
    os.environ["XDG_CACHE_HOME"] = os.sep
    try:
        import tvm.contrib.pickle_memoize  # noqa: F401
    finally:
        del os.environ["XDG_CACHE_HOME"]


_BY_PLATFORM = {
    "darwin": {"cache": "Library/Caches", "data": "Library/Application Support"},
    "win32": {"cache": "AppData/Local", "data": "AppData/Local"},
}.get(sys.platform, {"cache": ".cache", "data": ".local/share"})


def _chosen(variable: str) -> Path | None:
    """Our folder in the one that an XDG variable names; a relative path does not count (XDG Base Directory)."""
    chosen = os.environ.get(variable)
    return Path(chosen) / _NAME if chosen and Path(chosen).is_absolute() else None


def _home(variable: str) -> Path:
    if not _has_home():
        raise UserError(
            f"the user has no home folder to keep files in: HOME is not set, and there is no account; set HOME, or "
            f"{variable} to a folder"
        )
    return Path.home()


def _has_home() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return False
    return True
