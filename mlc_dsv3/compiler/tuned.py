"""The tiles that `compile` uses for a target: what `tune` found on this machine, before what we found on ours.

Our records lie in `build/tuned/`, the user's in the data folder; the user's wins, kernel by kernel.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_dsv3.compiler.targets import CompileTarget, build_folder
from mlc_dsv3.compiler.tuning_record import TunedKernel, kernels_version, read_record
from mlc_dsv3.errors import UserError, warn
from mlc_dsv3.folders import data_folder
from relax_model.errors import ConfigError
from relax_model.kernels import cpu_choices, gpu_choices
from relax_model.kernels.cpu_choices import Choices
from relax_model.layout import Layout, layout_of


def choices(operator: str, family: str, layout: Layout | None) -> Choices:
    """Field of the family's tile → values to try for `operator`, beside weights in `layout` where it has any; nothing
    where there is nothing to tune."""
    if family != "cpu":
        return gpu_choices.choices(operator)
    return cpu_choices.choices(operator, layout) if layout else {}


def is_possible(family: str, tile: Mapping[str, int]) -> bool:
    """Whether a family's kernels can be made with a tile of these fields."""
    return family == "cpu" or gpu_choices.is_possible(tile)


def user_record(target: CompileTarget) -> Path:
    """Where `tune` writes this target's record, and `compile` looks first."""
    return data_folder() / "tuned" / _file_name(target)


def shipped_record(target: CompileTarget) -> Path:
    """Where ours is, if there is one."""
    return build_folder() / "tuned" / _file_name(target)


@dataclass(frozen=True)
class TunedTiles:
    """Kernel (`KernelCall.key`) → the fields of its tile that differ from the default; `own` are from `record`."""

    tiles: Mapping[str, Mapping[str, int]]
    record: Path
    own: frozenset[str]

    def warn_unless_for(self, kernels: Collection[str]) -> None:
        """A warning where the user's record has something, and nothing for the kernels of the model at hand."""
        if self.own and not self.own & set(kernels):
            warn(
                f"tuning record {self.record} is for other shapes than this model's and is ignored; "
                "mlc_dsv3 tune adds this model's to it"
            )


def find_tuned(target: CompileTarget) -> TunedTiles:
    """What our record and the user's choose for `target`; what does not fit is ignored with a warning."""
    ours, *users = _records(target)
    own = {kernel: tile for path in users for kernel, tile in _fitting(path, target).items()}
    tiles = {kernel: tile for kernel, tile in (_fitting(ours, target) | own).items() if tile}
    return TunedTiles(tiles, users[0] if users else ours, frozenset(own))


def tuned_text(target: CompileTarget, quantization: str) -> str:
    """What records choose for weights of this quantization, unchecked: a part of the key of a cached library."""
    found: dict[str, Any] = {}
    for path in _records(target):
        try:
            kernels = read_record(path).kernels
        except UserError:
            continue
        found |= {each.kernel: dict(each.tile) for each in kernels if _layout(each.kernel) in (None, quantization)}
    return json.dumps({kernel: tile for kernel, tile in found.items() if tile}, sort_keys=True)


def _file_name(target: CompileTarget) -> str:
    return f"{target.device}-{target.level}.json"


def _records(target: CompileTarget) -> list[Path]:
    """Where our record and the user's are, if they are; a user without a folder for data has none."""
    try:
        return [shipped_record(target), user_record(target)]
    except UserError:
        return [shipped_record(target)]


def _fitting(path: Path, target: CompileTarget) -> dict[str, dict[str, int]]:
    """The choices of the record at `path` that are for this target and these kernels."""
    if not path.is_file():
        return {}
    try:
        record = read_record(path)
    except UserError as error:
        warn(f"tuning record {path} {error}; it is ignored")
        return {}
    if (record.device, record.level) != (target.device, target.level):
        warn(f"tuning record {path} is for {record.level}, and the target is {target.level}; it is ignored")
        return {}
    if record.kernels_version != kernels_version(target):
        warn(f"tuning record {path} is for another version of the kernels and is ignored; mlc_dsv3 tune renews it")
        return {}
    known = [each for each in record.kernels if _is_known(each, target)]
    unknown = [each.kernel.partition(" ")[0] for each in record.kernels if each not in known]
    if unknown:
        warn(f"tuning record {path} has unknown choices, for {', '.join(sorted(set(unknown)))}; they are ignored")
    return {each.kernel: dict(each.tile) for each in known}


def _is_known(tuned: TunedKernel, target: CompileTarget) -> bool:
    """Whether all that was chosen is what `tune` may choose for this operator."""
    named = _layout(tuned.kernel)
    try:
        layout = layout_of(named) if named else None
    except ConfigError:
        return False
    known = choices(tuned.kernel.partition(" ")[0], target.family, layout)
    if not known or any(value not in known.get(name, ()) for name, value in tuned.tile.items()):
        return False
    return is_possible(target.family, {**dict(target.tuned), **tuned.tile})


def _layout(kernel: str) -> str | None:
    """The layout of the weights that a kernel reads, by its key; None where it reads none."""
    return next((word.removeprefix("layout=") for word in kernel.split() if word.startswith("layout=")), None)
