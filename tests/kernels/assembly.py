"""What LLVM makes of a kernel at any level of `build/cpu.toml`: its assembly text, and the innermost loops in it.

Nothing is linked and nothing runs, so that every level can be looked at from every machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from levels import built

from relax_model.kernels.cpu_tiles import CpuTile

_LABEL = re.compile(r"^(\.?[\w$.]+):")
_JUMP = re.compile(r"^(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.?L\w+)$")
# A spill slot is at a fixed place; an array on the stack is indexed, or behind a pointer.
_X86_SLOT = re.compile(r"-?\w*\(%(rsp|rbp)\)")
_ARM_SLOT = re.compile(r"\[(sp|x29)(?:, #-?\w+)?\]")
_X86_VECTOR = re.compile(r"%[xyz]mm\d")
_ARM_VECTOR = re.compile(r"\b[vqdsh]\d+\b")
_X86_ONLY_READS = re.compile(r"v?(u?comi|cmp|test|prefetch|jmp|call)")


@cache
def assembly(level: str, tile: CpuTile, operator: str, *arguments: object) -> str:
    """The assembly text of a kernel for a level's features, with any tile."""
    return built(level, tile, operator, *arguments).mod.inspect_source("asm")


@dataclass(frozen=True)
class Loop:
    """The instructions of an innermost loop."""

    lines: tuple[str, ...]
    frame_pointer: bool

    def count(self, pattern: str) -> int:
        """How many instructions match from their start."""
        return sum(re.match(pattern, line) is not None for line in self.lines)

    @property
    def spills(self) -> tuple[str, ...]:
        """Stores to fixed places on the stack, and vectors reloaded from there."""
        return tuple(line for line in self.lines if self._spills(line))

    def _spills(self, line: str) -> bool:
        if slot := _X86_SLOT.search(line):
            stores = line.endswith(slot.group()) and not _X86_ONLY_READS.match(line)
            spills = stores or _X86_VECTOR.search(line)
        elif slot := _ARM_SLOT.search(line):
            spills = line.startswith("st") or _ARM_VECTOR.search(line)
        else:
            return False
        return bool(spills) and (self.frame_pointer or slot[1] in ("rsp", "sp"))


def innermost_loops(text: str) -> tuple[Loop, ...]:
    """Runs of instructions from a label to the last jump back to it, that hold no such run themselves."""
    found = []
    for lines, frame_pointer in _functions(text):
        labels = {match[1]: at for at, line in enumerate(lines) if (match := _LABEL.match(line))}
        ends: dict[int, int] = {}
        for at, line in enumerate(lines):
            if (match := _JUMP.match(line)) and (start := labels.get(match[1], at)) < at:
                ends[start] = at
        for start, end in ends.items():
            if not any(start <= other and ends[other] <= end for other in ends if other != start):
                body = tuple(line for line in lines[start : end + 1] if not _LABEL.match(line))
                found.append(Loop(body, frame_pointer))
    return tuple(found)


def _functions(text: str) -> Iterator[tuple[list[str], bool]]:
    """Labels and instructions of each function, and whether its frame has a pointer."""
    for function in re.split(r"^\s*\.cfi_startproc$", text, flags=re.MULTILINE)[1:]:
        body = function.partition(".cfi_endproc")[0].replace("\t", " ")
        stripped = (re.split(r"\s*(?:#+|//) ", line)[0].strip() for line in body.splitlines())
        lines = [line for line in stripped if line and (line[0] != "." or _LABEL.match(line))]
        yield lines, "movq %rsp, %rbp" in lines or "mov x29, sp" in lines
