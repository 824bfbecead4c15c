"""An artifact folder: configuration and weights as conversion left them, checked and mapped.

Comes from `convert`; the runtime takes its parameters in place, without a copy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.json_files import naming, warn_of_absent
from mlc_dsv3.progress import progress as progress_bar
from mlc_dsv3.weights.chat_config import FILE_NAME, read_chat_config
from mlc_dsv3.weights.files import Progress, md5
from mlc_dsv3.weights.mapping import mapped
from mlc_dsv3.weights.plan import ALIGNMENT, TENSOR_CACHE
from mlc_dsv3.weights.tensor_cache import Shard, read_shards
from relax_model.config import ModelConfig, parse_config
from relax_model.fields import named
from relax_model.layout import Layout, layout_of
from relax_model.parameters import parameters

_STORED_AS = {"bfloat16": "uint16"}  # NumPy knows no bfloat16 of its own


@dataclass(frozen=True)
class Artifact:
    """An opened artifact; `shards` are its files of weights, and `chat_config` its `mlc-chat-config.json`, checked."""

    path: Path
    chat_config: dict[str, Any]
    model_config: ModelConfig
    quantization: str
    shards: tuple[Shard, ...]

    @staticmethod
    def open(path: str | Path, *, ignore: Collection[str] = ()) -> Artifact:
        """Open the folder and check that its files are there, whole, and what its own configuration says.

        `ignore` names fields of `model_config` to go on without, which `chat_config` then lacks; warns of those that
        the file does not have. Contents are not read (see `verify`). UserError names the first file, field or parameter
        that is wrong.
        """
        path = Path(path)
        if not (path / FILE_NAME).is_file():
            raise UserError(f"{path} has no {FILE_NAME}; an artifact is a folder made by convert_weight")
        fields = read_chat_config(path / FILE_NAME)
        warn_of_absent(ignore, fields["model_config"], path / FILE_NAME)
        kept = {name: value for name, value in fields["model_config"].items() if name not in ignore}
        fields = {**fields, "model_config": kept}
        with naming(path / FILE_NAME):
            model, layout = parse_config(fields["model_config"]), layout_of(fields["quantization"])
        shards = read_shards(path)
        _check_arrays(path, shards, model, layout)
        return Artifact(path, fields, model, fields["quantization"], shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(shard.nbytes for shard in self.shards)

    def map_parameters(self) -> dict[str, np.ndarray]:
        """Stored array by name, in the order of the parameters; each aligned to 64 bytes, bfloat16 as uint16.

        The files are mapped copy-on-write: nothing is read before it is used, and nothing is ever written back.
        """
        arrays: dict[str, np.ndarray] = {}
        for shard in self.shards:
            data = mapped(self.path / shard.name)
            for array in shard.arrays:
                raw, spec = data[array.offset : array.offset + array.nbytes], array.spec
                arrays[array.name] = raw.view(_STORED_AS.get(spec.dtype, spec.dtype)).reshape(spec.shape)
        return arrays

    def verify(self, progress: Progress = progress_bar) -> None:
        """Read every shard and compare its md5; UserError names the first that changed since it was written."""
        with progress("Verifying weights", self.nbytes) as advance:
            for shard in self.shards:
                path = self.path / shard.name
                if md5(path, advance) != shard.md5:
                    raise UserError(
                        f"{path} is damaged: its checksum differs from {TENSOR_CACHE}'s; convert the model again"
                    )


def refuse_mtp_layers(where: Path, model: ModelConfig) -> None:
    """UserError where an artifact at `where` has MTP layers although it should go without."""
    if model.num_nextn_predict_layers:
        raise UserError(f"{where}: the artifact has its MTP layer; use --no-mtp when you convert the checkpoint")


def _check_arrays(path: Path, shards: tuple[Shard, ...], model: ModelConfig, layout: Layout) -> None:
    """Compare the stored arrays with what model and layout make them, and with their shard's extent."""
    expected = {name: spec for parameter in parameters(model) for name, spec in parameter.buffers(layout).items()}
    where = path / TENSOR_CACHE
    for shard in shards:
        for array in shard.arrays:
            spec, found = expected.pop(array.name, None), array.spec
            if spec is None:
                raise UserError(
                    f"{where} has {named(array.name)}, which the model in {FILE_NAME} lacks or which comes twice"
                )
            if found != spec:
                made = f"{spec.dtype} {spec.shape}"
                raise UserError(
                    f"{where}: {array.name} is {named(found.dtype)} {found.shape}; {FILE_NAME} makes it {made}"
                )
            start, nbytes = array.offset, array.nbytes
            if nbytes != spec.nbytes or start % ALIGNMENT or start + nbytes > shard.nbytes:
                raise UserError(
                    f"{where}: {array.name} has impossible extent {start}+{nbytes}; convert the model again"
                )
    if expected:
        raise UserError(f"{where} lacks {next(iter(expected))}, which {FILE_NAME} asks for; convert the model again")
