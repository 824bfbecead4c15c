"""A checkpoint folder's `.safetensors` files: found by name, opened, and held against the index.

The headers say which tensor is where; the index says which files belong together.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mlc_dsv3.errors import UserError
from mlc_dsv3.json_files import read_json
from mlc_dsv3.weights.files import inside
from mlc_dsv3.weights.safetensors import SafetensorsFile
from relax_model.fields import named

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


def has_weights(path: Path) -> bool:
    """Whether the folder has, or announces, safetensors files."""
    return (path / INDEX).exists() or any(path.glob("*.safetensors"))


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in the order of their names.

    `model.safetensors` alone, or the files that the index names, or every safetensors file in the folder. UserError
    where there is none, and for the first one that is missing.
    """
    if (path / SINGLE).exists():
        return [path / SINGLE]
    if (path / INDEX).exists():
        return _indexed_files(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path} has no *.safetensors; other weight formats are not read")
    _refuse_gaps(path, [file.name for file in files])
    return files


def read_index(path: Path) -> dict[str, str]:
    """Tensor → file name, as the folder's index says; empty where the folder needs no index.

    UserError for a name that is not one of a file inside the folder.
    """
    if (path / SINGLE).exists() or not (path / INDEX).exists():
        return {}
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path / INDEX} has no weight_map; download it again")
    # Those that are no text first: they need not be hashable.
    for name in [each for each in weight_map.values() if not isinstance(each, str)] or set(weight_map.values()):
        inside(path, name, path / INDEX)
    return weight_map


def open_files(path: Path) -> list[SafetensorsFile]:
    """All of a checkpoint's files, open; UserError where two of them have a tensor of the same name."""
    files = [SafetensorsFile(file) for file in checkpoint_files(path)]
    holders: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            if name in holders:
                raise UserError(
                    f"{path}: {holders[name]} and {file.path.name} both have {named(name)}; remove the one that "
                    "does not belong to the model"
                )
            holders[name] = file.path.name
    return files


def _indexed_files(path: Path) -> list[Path]:
    files = sorted({path / name for name in read_index(path).values()})
    absent = [file.name for file in files if not file.exists()]
    if absent:
        others = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise UserError(f"{path / INDEX} names {named(absent[0])}{others}, which the folder lacks; download the rest")
    return files


def _refuse_gaps(path: Path, names: Iterable[str]) -> None:
    """UserError for the first missing file of a numbered series (`model-00001-of-00002.safetensors`)."""
    series: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)  # stem and total → number → its digits
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            stem, number, total = found.groups()
            series[stem, total][int(number)] = len(number)
    for (stem, total), numbers in series.items():
        first = 0 if 0 in numbers else 1
        for number in range(first, first + int(total)):
            if number not in numbers:
                digits = next(iter(numbers.values()))
                missing = f"{stem}-{number:0{digits}}-of-{total}.safetensors"
                raise UserError(f"{path} lacks {missing}; download it")
