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
from relax_model.kernels.cpu_choices import choices
from relax_model.layout import layout_of


def user_record(target: CompileTarget) -> Path:
    """Where `tune` writes this target's record, and `compile` looks first."""
    return data_folder() / "tuned" / f"{target.device}-{target.level}.json"


def shipped_record(target: CompileTarget) -> Path:
    """Where ours is, if there is one."""
    return build_folder() / "tuned" / user_record(target).name


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
    path = user_record(target)
    ours, own = _fitting(shipped_record(target), target), _fitting(path, target)
    tiles = {kernel: tile for kernel, tile in (ours | own).items() if tile}
    return TunedTiles(tiles, path, frozenset(own))


def tuned_text(target: CompileTarget, quantization: str) -> str:
    """What records choose for weights of this quantization, unchecked: a part of the key of a cached library."""
    found: dict[str, Any] = {}
    for path in (shipped_record(target), user_record(target)):
        try:
            kernels = read_record(path).kernels
        except UserError:
            continue
        found |= {each.kernel: dict(each.tile) for each in kernels if f"layout={quantization}" in each.kernel.split()}
    return json.dumps({kernel: tile for kernel, tile in found.items() if tile}, sort_keys=True)


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
    unknown = [each.kernel.partition(" ")[0] for each in record.kernels if not _is_known(each)]
    if unknown:
        warn(f"tuning record {path} has unknown choices, for {', '.join(sorted(set(unknown)))}; they are ignored")
    return {each.kernel: dict(each.tile) for each in record.kernels if _is_known(each)}


def _is_known(tuned: TunedKernel) -> bool:
    """Whether all that was chosen is what `tune` may choose for this operator."""
    operator, *words = tuned.kernel.split()
    try:
        layout = layout_of(next((word.removeprefix("layout=") for word in words if word.startswith("layout=")), ""))
    except ConfigError:
        return False
    known = choices(operator, layout)
    return bool(known) and all(value in known.get(name, ()) for name, value in tuned.tile.items())
