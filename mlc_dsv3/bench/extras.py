"""What `bench` can only do with an extra installed: said in one line before anything is measured."""

from __future__ import annotations

from importlib.util import find_spec

from mlc_dsv3.errors import UserError

# How the extras are to be installed; llama.cpp is to use all that the processor has, or the comparison is not fair.
PLOT = "pip install 'mlc-dsv3[plot]'"
VERSUS = "CMAKE_ARGS='-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release' pip install 'mlc-dsv3[versus]'"


def require_plot() -> None:
    """UserError unless matplotlib is installed."""
    _require("--plot", ("matplotlib",), PLOT)


def require_llama() -> None:
    """UserError unless llama-cpp-python and gguf are installed."""
    _require("--versus llama.cpp", ("llama_cpp", "gguf"), f"{VERSUS} (it compiles llama.cpp for this processor)")


def require_torch() -> None:
    """UserError unless PyTorch is installed."""
    _require("--versus torch", ("torch",), "pip install torch")


def _require(option: str, modules: tuple[str, ...], how: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"{option} needs {' and '.join(missing)}: {how}")
