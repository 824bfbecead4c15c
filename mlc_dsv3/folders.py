"""Where what we make for the user is kept, by the platform's conventions."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Artifacts and libraries made on demand: safe to delete, made again when missing."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlc_dsv3"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlc_dsv3"


def data_folder() -> Path:
    """What is kept for good: tuning records."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mlc_dsv3"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "mlc_dsv3"
