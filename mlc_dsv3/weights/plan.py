"""Where each stored array goes: shards of about 1 GiB, records aligned so that a mapped array can be used in place.

Comes from the model's parameters and the layout; conversion writes by it, and `tensor-cache.json` tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relax_model.config import ModelConfig
from relax_model.layout import BufferSpec, Layout
from relax_model.parameters import parameters

TENSOR_CACHE = "tensor-cache.json"  # TVM's name and format
ALIGNMENT = 64
SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class Record:
    """One stored array: its shard and the byte at which it starts there."""

    name: str
    spec: BufferSpec
    shard: int
    offset: int


@dataclass(frozen=True)
class Plan:
    """Records by name, in the order of the parameters, and the size of each shard."""

    records: dict[str, Record]
    shard_sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(self.shard_sizes)

    def tensor_cache(self, checksums: list[str]) -> dict[str, Any]:
        """The contents of TVM's `tensor-cache.json`, given each shard's md5."""
        shards: list[dict[str, Any]] = [
            {"dataPath": shard_name(index), "format": "raw-shard", "nbytes": size, "records": [], "md5sum": md5}
            for index, (size, md5) in enumerate(zip(self.shard_sizes, checksums, strict=True))
        ]
        for record in self.records.values():
            shards[record.shard]["records"].append(
                {
                    "name": record.name,
                    "shape": list(record.spec.shape),
                    "dtype": record.spec.dtype,
                    "format": "raw",
                    "nbytes": record.spec.nbytes,
                    "byteOffset": record.offset,
                }
            )
        stored = sum(record.spec.nbytes for record in self.records.values())
        return {"metadata": {"ParamSize": len(self.records), "ParamBytes": float(stored)}, "records": shards}


def shard_name(index: int) -> str:
    """File name of a shard."""
    return f"params_shard_{index}.bin"


def plan(config: ModelConfig, layout: Layout, shard_bytes: int = SHARD_BYTES) -> Plan:
    """Place every parameter; an array that is larger than a shard gets one alone."""
    records: dict[str, Record] = {}
    sizes = [0]
    for parameter in parameters(config):
        for name, spec in parameter.buffers(layout).items():
            offset = -(-sizes[-1] // ALIGNMENT) * ALIGNMENT
            if sizes[-1] and offset + spec.nbytes > shard_bytes:
                sizes.append(0)
                offset = 0
            records[name] = Record(name, spec, len(sizes) - 1, offset)
            sizes[-1] = offset + spec.nbytes
    return Plan(records, tuple(sizes))
