"""Progress of long work on standard error: a bar in a terminal, and nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_shown = False


@contextmanager
def progress(title: str, total: float) -> Iterator[Callable[..., None]]:
    """A bar over `total` units of work; yields the function that advances it by some of them.

    `advance(amount, doing)` also shows what is being done behind the title. Within another bar's work there is none.
    """
    global _shown
    if _shown or sys.stderr is None or not sys.stderr.isatty():
        yield lambda amount, doing=None: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    console = Console(stderr=True)
    _shown = True
    try:
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bars:
            task = bars.add_task(title, total=total)

            def advance(amount: float, doing: str | None = None) -> None:
                bars.update(task, advance=amount, description=f"{title}: {doing}" if doing else None)

            yield advance
    finally:
        _shown = False
