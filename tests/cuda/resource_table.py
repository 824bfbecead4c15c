"""The table of what CUDA's compiler makes of each kernel: docs/cuda_kernels.md.

python tests/cuda/resource_table.py    writes it anew, after a change that is meant to be one
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from mlc_dsv3.compiler import compile_model
from mlc_dsv3.cuda.resources import read_instructions, read_resources
from mlc_dsv3.json_files import read_json
from relax_model.config import parse_config

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "cuda_kernels.md"
ARCHITECTURES = ("sm_80", "sm_90a")
_COLUMNS = ("kernel", "architecture", "registers", "stack", "shared", "HMMA", "LDG.128", "LDG", "SHFL")
_HEAD = """\
# What CUDA's compiler makes of the kernels

Of `tests/shapes/lite9.json` in `q4f16_1`: registers of a thread, bytes of stack (nothing is spilled; the table of
angles has sine and cosine of any argument, which keep an array on some GPUs), bytes of a block's shared memory, and how
often some instructions stand in the code: matrix products (HMMA), loads from memory of 16 bytes and in all, and values
passed within a warp. `_kernel` is for one row, `_kernel_1` for up to eight and `_kernel_2` for more, where an operator
has all three. `tests/cuda` compares a compilation with this table; `python tests/cuda/resource_table.py` writes it.

"""


@dataclass(frozen=True)
class Row:
    """A kernel for one architecture."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    shared: int
    products: int
    wide_loads: int
    loads: int
    shuffles: int


def compile_shape(
    folder: Path, architectures: tuple[str, ...] = ARCHITECTURES, *, cache_dtype: str | None = None
) -> Path:
    """The library that the table is of, or one for other architectures or with another cache."""
    config = parse_config(read_json(ROOT / "tests" / "shapes" / "lite9.json"))
    library = folder / "lite9.so"
    return compile_model(config, "q4f16_1", "cuda", library, architectures=architectures, cache_dtype=cache_dtype)


def rows_of(library: Path) -> list[Row]:
    """A row for each kernel and architecture."""
    resources = read_resources(library)
    architectures = {each.architecture for each in resources}
    instructions = {architecture: read_instructions(library, architecture) for architecture in architectures}
    rows = []
    for each in resources:
        counts = instructions[each.architecture][each.kernel]

        def count(suits: Callable[[str], bool], counts: dict[str, int] = counts) -> int:
            return sum(number for name, number in counts.items() if suits(name))

        rows.append(
            Row(
                each.kernel,
                each.architecture,
                each.registers,
                each.stack_bytes,
                each.shared_bytes,
                count(lambda name: name.startswith("HMMA")),
                count(lambda name: name.startswith("LDG") and ".128" in name),
                count(lambda name: name.startswith("LDG")),
                count(lambda name: name.startswith("SHFL")),
            )
        )
    return rows


def read_table() -> list[Row]:
    """The rows as the repository has them."""
    lines = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    return [Row(line[0].strip("`"), line[1], *map(int, line[2:])) for line in lines]


def write_table(rows: list[Row]) -> None:
    """Write the table."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")
    for row in rows:
        name, *others = astuple(row)
        text += f"| `{name}` | {' | '.join(map(str, others))} |\n"
    TABLE.write_text(_HEAD + text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        write_table(rows_of(compile_shape(Path(place))))
