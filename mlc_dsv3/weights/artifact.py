"""An artifact folder: configuration and weights as conversion left them, checked and mapped.

Comes from `convert`; the runtime takes its parameters in place, without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlc_dsv3.errors import UserError
from mlc_dsv3.progress import progress as progress_bar
from mlc_dsv3.weights.chat_config import FILE_NAME, read_chat_config
from mlc_dsv3.weights.files import Progress, inside, md5, naming, read_json
from mlc_dsv3.weights.plan import ALIGNMENT, TENSOR_CACHE
from relax_model.config import ModelConfig, parse_config
from relax_model.layout import BufferSpec, Layout, layout_of
from relax_model.parameters import parameters

_STORED_AS = {"bfloat16": "uint16"}  # NumPy knows no bfloat16 of its own


@dataclass(frozen=True)
class Artifact:
    """An opened artifact; `shards` are the records of its `tensor-cache.json`, one a file."""

    path: Path
    chat_config: dict[str, Any]
    model_config: ModelConfig
    quantization: str
    shards: tuple[dict[str, Any], ...]

    @staticmethod
    def open(path: str | Path) -> Artifact:
        """Open the folder and check that its files are there, whole, and what its own configuration says.

        Contents are not read (see `verify`). UserError names the first file, field or parameter that is wrong.
        """
        path = Path(path)
        if not (path / FILE_NAME).is_file():
            raise UserError(f"{path} has no {FILE_NAME}; an artifact is a folder made by convert_weight")
        fields = read_chat_config(path / FILE_NAME)
        with naming(path / FILE_NAME):
            model, layout = parse_config(fields["model_config"]), layout_of(fields["quantization"])
        try:
            shards = _read_shards(path)
            _check_records(path, shards, model, layout)
        except (TypeError, KeyError) as error:
            raise UserError(f"{path / TENSOR_CACHE} is damaged ({error!r}); convert the model again") from error
        return Artifact(path, fields, model, fields["quantization"], shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(shard["nbytes"] for shard in self.shards)

    def map_parameters(self) -> dict[str, np.ndarray]:
        """Stored array by name, in the order of the parameters; each aligned to 64 bytes, bfloat16 as uint16.

        The files are mapped copy-on-write: nothing is read before it is used, and nothing is ever written back.
        """
        arrays: dict[str, np.ndarray] = {}
        for shard in self.shards:
            data = np.memmap(self.path / shard["dataPath"], np.uint8, mode="c")
            for record in shard["records"]:
                raw = data[record["byteOffset"] : record["byteOffset"] + record["nbytes"]]
                arrays[record["name"]] = raw.view(_STORED_AS.get(record["dtype"], record["dtype"])).reshape(
                    record["shape"]
                )
        return arrays

    def verify(self, progress: Progress = progress_bar) -> None:
        """Read every shard and compare its md5; UserError names the first that changed since it was written."""
        with progress("Verifying weights", self.nbytes) as advance:
            for shard in self.shards:
                path = self.path / shard["dataPath"]
                if md5(path, advance) != shard["md5sum"]:
                    raise UserError(
                        f"{path} is damaged: its checksum differs from {TENSOR_CACHE}'s; convert the model again"
                    )


def refuse_mtp_layers(where: Path, model: ModelConfig) -> None:
    """UserError where an artifact at `where` has MTP layers although it should go without."""
    if model.num_nextn_predict_layers:
        raise UserError(f"{where}: the artifact has its MTP layer; use --no-mtp when you convert the checkpoint")


def _read_shards(path: Path) -> tuple[dict[str, Any], ...]:
    if not (path / TENSOR_CACHE).is_file():
        raise UserError(f"{path} has no {TENSOR_CACHE}: its conversion did not finish; run convert_weight again")
    shards = read_json(path / TENSOR_CACHE)["records"]
    for shard in shards:
        file = inside(path, shard["dataPath"], path / TENSOR_CACHE)
        if not file.is_file():
            raise UserError(f"{file} is missing; convert the model again")
        size, written = file.stat().st_size, shard["nbytes"]
        if size != written:
            what = "truncated" if size < written else "too long"
            raise UserError(f"{file} is {what}: {size} bytes, and {written} were written; convert the model again")
    return tuple(shards)


def _check_records(path: Path, shards: tuple[dict[str, Any], ...], model: ModelConfig, layout: Layout) -> None:
    """Compare the stored arrays with what model and layout make them, and with their shard's extent."""
    expected = {name: spec for parameter in parameters(model) for name, spec in parameter.buffers(layout).items()}
    where = path / TENSOR_CACHE
    for shard in shards:
        for record in shard["records"]:
            spec = expected.pop(record["name"], None)
            if spec is None:
                raise UserError(
                    f"{where} has {record['name']}, which the model in {FILE_NAME} lacks or which comes twice"
                )
            found = BufferSpec(tuple(record["shape"]), record["dtype"])
            if found != spec:
                made = f"{spec.dtype} {spec.shape}"
                raise UserError(
                    f"{where}: {record['name']} is {found.dtype} {found.shape}; {FILE_NAME} makes it {made}"
                )
            start, nbytes = record["byteOffset"], record["nbytes"]
            if nbytes != spec.nbytes or start < 0 or start % ALIGNMENT or start + nbytes > shard["nbytes"]:
                raise UserError(
                    f"{where}: {record['name']} has impossible extent {start}+{nbytes}; convert the model again"
                )
    if expected:
        raise UserError(f"{where} lacks {next(iter(expected))}, which {FILE_NAME} asks for; convert the model again")
