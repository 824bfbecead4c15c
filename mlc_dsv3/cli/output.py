"""What verbs write to standard output: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mlc_dsv3.encodings import takes_everything
from mlc_dsv3.errors import escaped


def print_json(content: Any) -> None:
    """`content` as indented JSON, in which other characters than the terminal's are escaped."""
    print(json.dumps(content, ensure_ascii=not takes_everything(sys.stdout), indent=2))


def print_table(rows: Iterable[Sequence[object]], columns: Sequence[str] | None = None) -> None:
    """Rows of cells, under `columns` where given; wrapped to the width of a terminal and to none in a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=columns is not None, pad_edge=False)
    cells = [[Text(escaped(str(cell))) for cell in row] for row in rows]
    for name in columns or [""] * max(map(len, cells), default=0):
        table.add_column(name)
    for row in cells:
        table.add_row(*row)
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000)
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def size(count: int) -> str:
    """Bytes for people."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.2f} {unit}"
    return f"{count} bytes"
