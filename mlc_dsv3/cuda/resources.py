"""What CUDA's compiler made of kernels, read off the machine code: registers, stack, shared memory, instructions."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mlc_dsv3.cuda.nvcc import find_cuobjdump
from mlc_dsv3.errors import UserError

# A fatbin's head: its magic number, version, own size and the size of what follows.
_HEAD = struct.Struct("<IHHQ")
_MAGIC, _VERSION = 0xBA55ED50, 1
_ARCHITECTURE = re.compile(r"^arch = (sm_\w+)$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


@dataclass(frozen=True)
class KernelResources:
    """One kernel's, for one architecture: registers of a thread, its bytes of stack (arrays that registers could not
    hold, and what was spilled), and the block's shared memory in bytes."""

    kernel: str
    architecture: str
    registers: int
    stack_bytes: int
    shared_bytes: int


def read_resources(library: Path) -> list[KernelResources]:
    """Those of a library's kernels, by architecture. UserError without NVIDIA's cuobjdump."""
    found, architecture, kernel = [], "", ""
    for line in _cuobjdump("-res-usage", fatbin_of(library)).splitlines():
        text = line.strip()
        if match := _ARCHITECTURE.match(text):
            architecture = match[1]
        elif text.startswith("Function "):
            kernel = text.removeprefix("Function ").removesuffix(":")
        elif match := _USAGE.match(text):
            registers, stack, shared, local = map(int, match.groups())
            found.append(KernelResources(kernel, architecture, registers, stack + local, shared))
    return sorted(found, key=lambda each: (each.architecture, each.kernel))


def read_instructions(library: Path, architecture: str) -> dict[str, Counter[str]]:
    """How often each instruction stands in each kernel for an architecture, by its full name, as LDG.E.128."""
    found: dict[str, Counter[str]] = {}
    kernel = ""
    for line in _cuobjdump("-sass", fatbin_of(library), "-arch", architecture).splitlines():
        if line.strip().startswith("Function : "):
            kernel = line.strip().removeprefix("Function : ")
            found[kernel] = Counter()
        elif kernel and (match := _INSTRUCTION.match(line)):
            found[kernel][match[1]] += 1
    return found


def fatbin_of(library: Path) -> bytes:
    """The machine code in a library. UserError where there is none."""
    data, start = library.read_bytes(), 0
    while (start := data.find(_MAGIC.to_bytes(4, "little"), start)) >= 0:
        _, version, head, size = _HEAD.unpack_from(data, start)
        if (version, head) == (_VERSION, _HEAD.size):
            return data[start : start + head + size]
        start += 4
    raise UserError(f"{library} has no machine code for CUDA")


def _cuobjdump(option: str, fatbin: bytes, *more: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".fatbin") as file:
        file.write(fatbin)
        file.flush()
        done = subprocess.run([find_cuobjdump(), option, *more, file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {option}\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout
