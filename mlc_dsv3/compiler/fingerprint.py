"""What decides a library's bytes, as one digest: the key under which it is cached."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from mlc_dsv3._pins import PINS
from mlc_dsv3.compiler.targets import CompileTarget
from mlc_dsv3.compiler.tools import tools_version
from mlc_dsv3.compiler.tuned import tuned_text
from relax_model.config import ModelConfig

_COMPILER = ("compiler", "cuda", "metal", "vulkan")


@cache
def compiler_version() -> str:
    """SHA-256 (hex) of the compiler itself: our sources that turn a configuration into code, and TVM's version."""
    import mlc_dsv3
    import relax_model

    package = Path(mlc_dsv3.__file__).parent
    digest = hashlib.sha256("".join(f"{name}{pin}" for name, pin in PINS.items()).encode())
    for folder in (Path(relax_model.__file__).parent, *(package / name for name in _COMPILER)):
        for source in sorted(folder.rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def library_key(config: ModelConfig, quantization: str, target: CompileTarget, context_window: int | None) -> str:
    """SHA-256 (hex) of a library: the model, the quantization, the target with its values, tuning, the compiler and the
    programs that it calls."""
    tuned, tools = tuned_text(target, quantization), tools_version(target)
    parts = (config.digest(), quantization, repr(target), tuned, str(context_window), compiler_version(), tools)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
