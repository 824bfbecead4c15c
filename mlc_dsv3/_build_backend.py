"""scikit-build-core, which also asks pip for TVM, whose headers the native parts need, where a C++ compiler is there.
Runs before the package is installed, and imports nothing of it."""

from __future__ import annotations

import os
import shlex
import shutil
import tomllib
from pathlib import Path

from scikit_build_core import build as _scikit
from scikit_build_core.build import *  # noqa: F403  all of the interface but for the functions below

Settings = dict[str, list[str] | str] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """The packages that pip installs before it builds a wheel."""
    return [*_scikit.get_requires_for_build_wheel(config_settings), *_tvm()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """The packages that pip installs before `pip install --editable`."""
    return [*_scikit.get_requires_for_build_editable(config_settings), *_tvm()]


def _tvm() -> list[str]:
    if not _has_compiler():
        return []
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    return [needed for needed in project["dependencies"] if needed.startswith("apache-tvm")]


def _has_compiler() -> bool:
    """Whether CMake will look at a C++ compiler. Whether that one works is left to CMake."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return any(shutil.which(name) for name in named or ("c++", "g++", "clang++"))
