"""`PageStore`: runs of latent-cache pages in a folder on disk, of bounded size and checked when they are read.

A file is named after what its pages hold (`saved_prefixes.py` makes the names) and is never changed. Several processes
may share a folder: a file appears under its name when it is whole, and one that has gone is not found.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from queue import Queue

import numpy as np

from mlc_dsv3.errors import UserError, said, warn, warn_once

_SUFFIX, _UNFINISHED = ".pages", ".unfinished"
_DIGEST_BYTES = 32


class PageStore:
    """The runs of one model among those of all models in a folder.

    folder: made where it is missing; UserError where nothing can be written there. model: a name for what decides the
    pages' bits: weights, quantization, library, cache dtype. most_bytes: of all models' files together; the least
    recently used go first. most_waiting: runs that wait to be written; whoever saves more waits.
    """

    def __init__(self, folder: Path, model: str, *, most_bytes: int, most_waiting: int = 64) -> None:
        self._all, self._own, self._most_bytes = folder, folder / model, most_bytes
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, int] = OrderedDict()  # sizes, the least recently used first
        self._bytes = 0
        self._waiting: dict[str, np.ndarray] = {}  # to be written
        self._failing = False
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            self._find_files()
        except OSError as error:
            raise UserError(f"the folder {folder} for saved prefixes cannot be used: {said(error)}") from None
        self._writing: Queue[str | None] = Queue(most_waiting)
        self._writer = threading.Thread(target=self._write_all, name="page store", daemon=True)
        self._writer.start()

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._waiting or self._path(name) in self._files

    @property
    def stored_bytes(self) -> int:
        """Size of all files."""
        with self._lock:
            return self._bytes

    def save(self, name: str, content: np.ndarray) -> None:
        """Write `content` (uint8) under a name that is not there, in the background; the array must not change
        afterwards."""
        with self._lock:
            self._waiting[name] = content
        self._writing.put(name)

    def load(self, name: str, nbytes: int) -> np.ndarray | None:
        """What was saved under a name: uint8 (nbytes,). None where it is not there, or is damaged, which is said
        once."""
        with self._lock:
            if name in self._waiting:
                return self._waiting[name]
        path = self._path(name)
        try:
            stored = np.fromfile(path, np.uint8)
        except OSError:
            stored = None
        if stored is not None and stored.nbytes == _DIGEST_BYTES + nbytes:
            content = stored[_DIGEST_BYTES:]
            if _digest(name, content) == stored[:_DIGEST_BYTES].tobytes():
                self._touch(path)
                return content
        if stored is not None:
            warn_once(f"the saved prefix {path} is damaged; it is deleted, and its tokens are computed again")
        self._delete(path)
        return None

    def close(self) -> None:
        """Return once everything is written."""
        self._writing.put(None)
        self._writer.join()

    def _path(self, name: str) -> Path:
        return self._own / name[:2] / (name + _SUFFIX)

    def _find_files(self) -> None:
        """The files that are there, and none that a process left unfinished."""
        found = []
        for path in self._all.glob("*/*/*"):
            # Another process may delete what this one has just seen, and is still writing what has just changed.
            with suppress(FileNotFoundError):
                if path.suffix == _SUFFIX:
                    status = path.stat()
                    found.append((status.st_mtime_ns, path, status.st_size))
                elif path.suffix == _UNFINISHED and not _is_running(path):
                    path.unlink()
        for _, path, size in sorted(found):
            self._add(path, size)

    def _write_all(self) -> None:
        while (name := self._writing.get()) is not None:
            try:
                self._write(self._path(name), name, self._waiting[name])
                self._failing = False
            except OSError as error:
                if not self._failing:
                    warn(f"a prefix cannot be saved in {self._own}: {said(error)}; answers are the same without")
                self._failing = True
            with self._lock:
                del self._waiting[name]

    def _write(self, path: Path, name: str, content: np.ndarray) -> None:
        size = _DIGEST_BYTES + content.nbytes
        if size > self._most_bytes:
            return
        unfinished = path.with_suffix(f".{os.getpid()}{_UNFINISHED}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("wb") as file:
                file.write(_digest(name, content))
                file.write(content.data)
            unfinished.replace(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            raise
        self._add(path, size)
        self._trim()

    def _trim(self) -> None:
        while True:
            with self._lock:
                if self._bytes <= self._most_bytes:
                    return
                oldest = next(iter(self._files))
            self._delete(oldest)

    def _add(self, path: Path, size: int) -> None:
        with self._lock:
            self._bytes += size - self._files.pop(path, 0)
            self._files[path] = size

    def _touch(self, path: Path) -> None:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
        with suppress(OSError):
            os.utime(path)

    def _delete(self, path: Path) -> None:
        with self._lock:
            self._bytes -= self._files.pop(path, 0)
        with suppress(OSError):
            path.unlink()


def _digest(name: str, content: np.ndarray) -> bytes:
    """Of a file's name too, so that no file passes for another."""
    return hashlib.blake2b(content.data, digest_size=_DIGEST_BYTES, key=name.encode()[:64]).digest()


def _is_running(unfinished: Path) -> bool:
    """Whether the process that writes a file lives."""
    try:
        os.kill(int(unfinished.suffixes[-2][1:]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
