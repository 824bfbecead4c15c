"""A checkpoint's or an artifact's identity for the cache: equal only where the bytes that decide the results are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlc_dsv3.weights.artifact import Artifact
from mlc_dsv3.weights.chat_config import FILE_NAME
from mlc_dsv3.weights.checkpoint import read_config
from mlc_dsv3.weights.files import GENERATION_CONFIG, TOKENIZER_FILES, present
from mlc_dsv3.weights.plan import TENSOR_CACHE
from mlc_dsv3.weights.safetensors import SafetensorsFile
from mlc_dsv3.weights.shards import open_files

_WHOLE = 64 << 20  # a checkpoint up to this size is read whole
_SAMPLE = 512  # bytes from the middle of a tensor
_MOST_SAMPLES = 16384  # a few seconds of random reads at worst


def checkpoint_identity(path: str | Path) -> str:
    """SHA-256 (hex) over config, tokenizer, and the weights' names, sizes, headers and samples of their content.

    A small checkpoint is read whole. A large one is sampled in its tensors, evenly over all files: a fine-tune that
    moved one kind of weight in every layer is told from another, one that moved a few single weights need not be.
    """
    path = Path(path)
    read_config(path)
    digest = hashlib.sha256()
    for name in present(path, ("config.json", GENERATION_CONFIG, *TOKENIZER_FILES)):
        _update(digest, name.encode(), (path / name).read_bytes())
    files = open_files(path)
    whole = sum(file.size for file in files) <= _WHOLE
    stride = max(1, -(-sum(len(file.tensors) for file in files) // _MOST_SAMPLES))
    for file in files:
        _update(digest, file.path.name.encode(), str(file.size).encode(), file.header)
        if whole:
            _update(digest, file.read(0, file.size).tobytes())
        else:
            _sample(digest, file, stride)
        file.close()
    return digest.hexdigest()


def artifact_identity(artifact: Artifact) -> str:
    """SHA-256 (hex) over an artifact's configuration, its tokenizer and its index, which has every shard's checksum."""
    digest = hashlib.sha256()
    for name in present(artifact.path, (FILE_NAME, TENSOR_CACHE, GENERATION_CONFIG, *TOKENIZER_FILES)):
        _update(digest, name.encode(), (artifact.path / name).read_bytes())
    return digest.hexdigest()


def _sample(digest: hashlib._Hash, file: SafetensorsFile, stride: int) -> None:
    for entry in list(file.tensors.values())[::stride]:
        length = min(_SAMPLE, entry.nbytes)
        _update(digest, file.read(entry.offset + (entry.nbytes - length) // 2, length).tobytes())


def _update(digest: hashlib._Hash, *parts: bytes) -> None:
    for part in parts:
        # With the length in front, no two sequences of parts run together to the same bytes.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
