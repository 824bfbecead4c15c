"""scikit-build-core, which is told to fetch TVM's headers too where the native part can be built: with a C++ compiler
and the Vulkan headers there. Runs before the package is installed, and imports nothing of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

from scikit_build_core import build as _scikit
from scikit_build_core.build import *  # noqa: F403  all of the interface but for the function below

Settings = dict[str, list[str] | str] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What pip installs before it builds."""
    return [*_scikit.get_requires_for_build_wheel(config_settings), *_tvm()]


def _tvm() -> list[str]:
    if not _has_headers():
        return []
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    return [needed for needed in project["dependencies"] if needed.startswith("apache-tvm")]


def _has_headers() -> bool:
    named = os.environ.get("CXX")
    compiler = (
        named.split() if named else next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), [])
    )
    if not compiler:
        return False
    sdk = os.environ.get("VULKAN_SDK")
    include = ["-I", f"{sdk}/include"] if sdk else []
    command = [*compiler, *include, "-E", "-x", "c++", "-"]
    done = subprocess.run(command, input="#include <vulkan/vulkan.h>\n", capture_output=True, text=True)
    return done.returncode == 0
