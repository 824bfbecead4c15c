"""Progress of long work on standard error: a bar in a terminal, and nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """A bar over `total` units of work; yields the function that advances it by some of them."""
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda amount: bars.advance(task, amount)
