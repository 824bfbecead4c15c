"""A tuning record: measured tile choices for one level of processor or GPU, as JSON."""

from __future__ import annotations

import ast
import codecs
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mlc_dsv3._pins import PINS
from mlc_dsv3.compiler.kernel_sources import canonical, kernel_sources
from mlc_dsv3.compiler.targets import CompileTarget
from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import write_whole
from mlc_dsv3.json_files import parse_json
from relax_model.errors import ConfigError
from relax_model.fields import Fields, is_number, shown

FORMAT_VERSION = 1
_MOST = 1 << 20  # of threads, and of a tile's fields
# What makes a device's code out of kernels beside TVM, in files of mlc_dsv3.
_CODE_MAKERS = {"vulkan": "vulkan/glsl/*.py", "metal": "metal/source.py"}


@dataclass(frozen=True)
class TunedKernel:
    """What was found for one kernel (`KernelCall.key`): the fields of its tile that are better than the default.

    `seconds` has the medians of a call by regime ("decode": one row, "prefill": many), default's and choice's.
    An empty `tile` says that the default was best.
    """

    kernel: str
    tile: Mapping[str, int]
    seconds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """How many times as fast as the default: the geometric mean over the regimes."""
        product = 1.0
        for default, tuned in self.seconds.values():
            product *= default / tuned
        return product ** (1 / max(1, len(self.seconds)))


@dataclass(frozen=True)
class TuningRecord:
    """All that was tuned for a level. For people to read: `processor` is that or the GPU by name, and `threads` are the
    CPU's, 0 on a GPU."""

    kernels_version: str
    device: str
    level: str
    processor: str
    threads: int
    kernels: tuple[TunedKernel, ...]
    format_version: int = FORMAT_VERSION

    def joined(self, newer: TuningRecord) -> TuningRecord:
        """`newer` with what only this one has, if both are of the same version."""
        if (self.kernels_version, self.device, self.level) != (newer.kernels_version, newer.device, newer.level):
            return newer
        kernels = {kernel.kernel: kernel for kernel in (*self.kernels, *newer.kernels)}
        return TuningRecord(
            newer.kernels_version,
            newer.device,
            newer.level,
            newer.processor,
            newer.threads,
            tuple(kernels[name] for name in sorted(kernels)),
        )


def kernels_version(target: CompileTarget) -> str:
    """SHA-256 (hex) of what measured times depend on: the source of the family's kernels and of what they import, our
    own code generation for the device, the default tile, and TVM. Comments, docstrings and formatting do not count."""
    import mlc_dsv3
    import relax_model

    ours, model = (Path(str(package.__file__)).parent for package in (mlc_dsv3, relax_model))
    sources = kernel_sources(target.family, model)
    if pattern := _CODE_MAKERS.get(target.device):
        makers = {path.relative_to(ours).as_posix(): path.read_text(encoding="utf-8") for path in ours.glob(pattern)}
        sources |= {name: canonical(ast.parse(text)) for name, text in makers.items()}
    digest = hashlib.sha256(f"{sorted(PINS.items())}{target.tuned}".encode())
    for name in sorted(sources):
        digest.update(f"{name}\n{sources[name]}\n".encode())
    return digest.hexdigest()


def write_record(record: TuningRecord, path: Path) -> None:
    """Write `record` to `path`, whole or not at all. UserError where that is not possible."""
    text = json.dumps(asdict(record), indent=1) + "\n"
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_record(path: Path) -> TuningRecord:
    """Read a record. UserError for a file that is none, or is of another format version."""
    try:
        fields = Fields(parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8), "is no tuning record: it"))
        version = fields.integer("format_version")
        if version != FORMAT_VERSION:
            raise UserError(f"has format version {version}, and this program reads {FORMAT_VERSION}")
        kernels = [Fields.of(each, f"kernels[{index}]") for index, each in enumerate(fields.array("kernels"))]
        return TuningRecord(
            fields.text("kernels_version"),
            fields.text("device"),
            fields.text("level"),
            fields.text("processor"),
            fields.integer("threads", most=_MOST),
            tuple(map(_tuned_kernel, kernels)),
        )
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise UserError(f"is no tuning record: {error}") from error


def _tuned_kernel(fields: Fields) -> TunedKernel:
    tile, seconds = fields.object("tile"), fields.object("seconds", Fields({}))
    return TunedKernel(
        fields.text("kernel"),
        {name: tile.integer(name, least=-_MOST, most=_MOST) for name in tile.values},
        {regime: _seconds(seconds, regime) for regime in seconds.values},
    )


def _seconds(fields: Fields, regime: str) -> tuple[float, float]:
    both = fields.array(regime)
    if len(both) != 2 or not all(is_number(each) and 1e-12 < each < 1e6 for each in both):
        raise ConfigError(f"{fields.where}{regime} is {shown(both)}; it must be the default's seconds and the choice's")
    return float(both[0]), float(both[1])
