"""How much memory this process holds, for /stats."""

from __future__ import annotations

import sys
from pathlib import Path


def memory_summary(status: Path = Path("/proc/self/status")) -> str:
    """One phrase: own memory and mapped files (weights) on Linux, the peak elsewhere."""
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        own, mapped = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    except (OSError, KeyError, ValueError):
        return f"{_size(_peak())} at its peak"
    return f"{_size(own)} own, {_size(mapped)} mapped from files"


def _peak() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
