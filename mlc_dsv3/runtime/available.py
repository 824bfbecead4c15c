"""How much memory this machine can still give: what the system has left, and what control groups allow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can allocate without swapping: what the system has available, or less where a control
    group of this process, as a container's, has a lower limit. `root` is where /proc and /sys are found."""
    return min([_of_the_system(root), *_of_control_groups(root)])


def gib(size: int) -> str:
    """Bytes for people who compare memories."""
    return f"{size / 2**30:.2f} GiB"


def _of_the_system(root: Path) -> int:
    """Linux's MemAvailable; elsewhere the free or else all memory."""
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _of_control_groups(root: Path) -> Iterator[int]:
    """What each control group over this process leaves it (cgroups(7), versions 1 and 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            files = ("memory.max", "memory.current", "inactive_file")
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mounts = [root / "sys/fs/cgroup/memory"]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for mount in mounts:
            # In a container the path may be the host's; its own group is then the mount itself.
            for group in (mount / inner, *(mount / parent for parent in inner.parents)):
                left = _left_in(group, *files)
                if left is not None:
                    yield left


def _left_in(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """Bytes that a group has left; None where it has no limit. Cached files that nobody uses count as free."""
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - used + int(statistics.get(reclaimable, 0)))
    except (OSError, ValueError):  # "max" is no limit
        return None
