"""DeepSeek-V3-family models, compiled with TVM Relax and run with quantized weights."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlc_dsv3.errors import ForkError, UserError
    from mlc_dsv3.runtime.completion import Completion
    from mlc_dsv3.runtime.grammar import Grammar
    from mlc_dsv3.runtime.llm import LLM
    from mlc_dsv3.runtime.sampling import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "ForkError", "Grammar", "SamplingParams", "UserError", "__version__"]

_HOMES = {
    "LLM": "mlc_dsv3.runtime.llm",
    "Completion": "mlc_dsv3.runtime.completion",
    "Grammar": "mlc_dsv3.runtime.grammar",
    "SamplingParams": "mlc_dsv3.runtime.sampling",
    "ForkError": "mlc_dsv3.errors",
    "UserError": "mlc_dsv3.errors",
}


def __getattr__(name: str) -> object:
    # The command line imports this package for `--help` too, and must not wait for numpy or tvm.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
