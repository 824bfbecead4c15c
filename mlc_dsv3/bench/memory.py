"""Anonymous memory of this process: what it holds beside mapped files."""

from __future__ import annotations

from pathlib import Path


def rss_anon() -> int | None:
    """RssAnon in bytes; None where the system does not tell it apart."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)
