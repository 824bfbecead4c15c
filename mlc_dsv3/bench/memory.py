"""Anonymous memory of a process: what it holds beside mapped files."""

from __future__ import annotations

from pathlib import Path


def rss_anon(process: int | None = None) -> int | None:
    """RssAnon in bytes of a process by its number (None: this one); None where the system does not tell it apart."""
    try:
        lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)
