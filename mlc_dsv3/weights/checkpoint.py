"""A Hugging Face checkpoint folder: its configuration, and its tensors as float32 rows.

Comes from disk as `config.json` with safetensors files; goes to conversion. The tensors decide where they contradict
the configuration: whether there is an MTP layer, and whether weights are quantized.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.json_files import naming, read_json, warn_of_absent
from mlc_dsv3.weights.corrections import check_index, with_stored_mtp_layers, with_stored_quantization
from mlc_dsv3.weights.decode import DECODABLE, apply_block_scales, to_float32
from mlc_dsv3.weights.safetensors import SafetensorsFile, TensorEntry
from mlc_dsv3.weights.shards import open_files
from mlc_dsv3.weights.spelling import family_names
from relax_model.config import ModelConfig, parse_config
from relax_model.fields import Fields, named, shown

_SCALE_SUFFIX = "_scale_inv"


class Checkpoint:
    """An open checkpoint: `config` is config.json as the tensors bear it out, `model_config` the same one checked.

    Tensors go by the family's names (`model.layers.0…`, `lm_head.weight`), whatever the files call them.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        model_config: ModelConfig,
        files: dict[str, SafetensorsFile],
        tensors: dict[str, TensorEntry],
    ) -> None:
        self.path = path
        self.config = config
        self.model_config = model_config
        self._files = files
        self._tensors = tensors
        self._scale_block = _scale_block(path, config)

    @staticmethod
    def open(path: str | Path, *, ignore: Collection[str] = (), without_mtp: bool = False) -> Checkpoint:
        """Open the folder `path` and check that config and files are whole; contents are not read.

        `ignore` as for `parse_config`; `without_mtp` leaves out the MTP layers. Warns, once, of what the configuration
        announces and the tensors do not bear out, and of fields to ignore that it does not have.
        """
        path = Path(path)
        config = read_config(path)
        warn_of_absent(ignore, config, path / "config.json")
        announced = _parse(path, config, ignore)
        files = {name: file for file in open_files(path) for name in file.tensors}
        own_names = family_names(files)
        tensors = {name: files[own].tensors[own] for name, own in own_names.items()}
        config = {name: value for name, value in config.items() if name not in ignore}
        config = with_stored_quantization(path, config, tensors)
        config = with_stored_mtp_layers(path, config, announced, tensors, without_mtp)
        model_config = _parse(path, config, ignore)
        check_index(path, files, model_config)
        return Checkpoint(path, config, model_config, {name: files[own] for name, own in own_names.items()}, tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        """Names of the tensors, the block scales of fp8 weights left out."""
        return [name for name in self._files if not self._is_scale(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; UserError where the checkpoint has none of this name."""
        return self._entry(name).shape

    def read(self, name: str) -> np.ndarray:
        """The whole tensor as float32."""
        self.check(name)
        shape = self.shape(name)
        return self.read_rows(name, 0, shape[0]) if shape else self._read(name, 0, 1).reshape(())

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` along the first axis as float32, fp8 weights multiplied by their block scales."""
        self.check(name)
        assert 0 <= start < stop <= self.shape(name)[0]
        values = self._read(name, start, stop)
        if self._entry(name).dtype == "F8_E4M3":
            height = self._scale_block[0]
            first = start // height
            scales = self._read(name + _SCALE_SUFFIX, first, -(-stop // height))
            apply_block_scales(values, scales, self._scale_block, start - first * height)
        return values

    def read_e4m3(self, name: str, start: int, stop: int, group: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows `start` to `stop` as they are stored: uint8 e4m3 codes (rows, columns), and the float32 scales of each
        row's groups of `group` columns (rows, groups); None where the tensor is not in such codes and groups."""
        self.check(name)
        height, width = self._scale_block
        if self._entry(name).dtype != "F8_E4M3" or width != group:
            return None
        first = start // height
        scales = self._read(name + _SCALE_SUFFIX, first, -(-stop // height))
        return self._raw(name, start, stop).reshape(stop - start, -1), scales[np.arange(start, stop) // height - first]

    def check(self, name: str) -> None:
        """UserError where the tensor is missing, of a dtype that is not read, or fp8 without scales that fit."""
        entry = self._entry(name)
        if entry.dtype not in DECODABLE:
            path = self._files[name].path
            raise UserError(f"{path}: {named(name)} has dtype {named(entry.dtype)}; known: {', '.join(DECODABLE)}")
        if entry.dtype != "F8_E4M3":
            return
        scale_name, block = name + _SCALE_SUFFIX, self._scale_block
        if scale_name not in self._files:
            raise UserError(f"{self.path}: {named(name)} is fp8 and its scales {named(scale_name)} are missing")
        scale = self._entry(scale_name)
        blocks = tuple(-(-extent // size) for extent, size in zip(entry.shape, block, strict=False))
        if len(entry.shape) != 2 or scale.shape != blocks or scale.dtype not in DECODABLE:
            raise UserError(
                f"{self.path}: {named(scale_name)} is {named(scale.dtype)} {scale.shape}; {named(name)} "
                f"{entry.shape} in blocks of {block[0]}x{block[1]} needs float scales {blocks}"
            )

    def close(self) -> None:
        """Close the files."""
        for file in set(self._files.values()):
            file.close()

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._tensors:
            raise UserError(f"{self.path}: tensor {name} is missing")
        return self._tensors[name]

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        entry = self._entry(name)
        return to_float32(self._raw(name, start, stop), entry.dtype, (stop - start, *entry.shape[1:]))

    def _raw(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes of rows."""
        entry, file = self._entry(name), self._files[name]
        row_bytes = entry.nbytes // (entry.shape[0] if entry.shape else 1)
        return file.read(entry.offset + start * row_bytes, (stop - start) * row_bytes)

    def _is_scale(self, name: str) -> bool:
        return name.endswith(_SCALE_SUFFIX) and name.removesuffix(_SCALE_SUFFIX) in self._files


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder; UserError where the folder or the file is absent or broken."""
    if not path.is_dir():
        raise UserError(f"{path} is {'not a folder' if path.exists() else 'absent'}; a checkpoint is a folder")
    if not (path / "config.json").exists():
        raise UserError(f"{path} has no config.json; a checkpoint is a folder with config.json and *.safetensors")
    return read_json(path / "config.json")


def _parse(path: Path, config: dict[str, Any], ignore: Collection[str]) -> ModelConfig:
    with naming(path / "config.json"):
        return parse_config(config, ignore=ignore)


def _scale_block(path: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale in fp8 weights."""
    with naming(path / "config.json"):
        fields = Fields(config).object("quantization_config", None)
        block = fields and fields.integers("weight_block_size", None, least=1, most=1 << 20)
        if block and len(block) != 2:
            raise UserError(f"{fields.where}weight_block_size is {shown(list(block))}; it must be two sizes")
    return block or (128, 128)
