"""What an installation says of native parts that it lacks, and what pip is asked for before they are built."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mlc_dsv3 import native_parts

GONE = Path("/nowhere/libmlc_vulkan.so")


@pytest.fixture
def lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`lacks("compiler", …)` makes this an installation whose Vulkan part lacked these."""

    def pretend(*missing: str) -> None:
        record = tmp_path / "native.json"
        record.write_text(json.dumps({"cuda": [], "vulkan": missing}))
        monkeypatch.setattr(native_parts, "_RECORD", record)

    return pretend


def test_a_part_that_is_there_is_built(lacks) -> None:
    lacks("compiler")
    assert native_parts.not_built("vulkan", Path(__file__)) is None


@pytest.mark.parametrize(
    ("missing", "said", "unsaid"),
    [
        (["compiler"], "no working C++ compiler; install a C++ compiler (Debian: apt install g++)", "Vulkan headers"),
        (["vulkan_headers"], "no Vulkan headers; install the Vulkan headers (Debian: apt install libvulkan", "C++"),
        (["compiler", "vulkan_headers"], "no working C++ compiler and there were no Vulkan headers; ", "apache-tvm"),
        (["tvm_headers"], "had no apache-tvm, whose headers it needs; leave out pip's --no-build-isolation", "C++"),
        (["newer_vulkan_headers"], "were older than 1.2; install newer Vulkan headers", "C++"),
    ],
)
def test_what_was_missing_is_named_and_nothing_else(lacks, missing: list[str], said: str, unsaid: str) -> None:
    lacks(*missing)
    reason = native_parts.not_built("vulkan", GONE)
    assert said in reason
    assert unsaid not in reason


def test_a_part_that_was_built_and_is_gone(lacks) -> None:
    lacks()
    assert native_parts.not_built("vulkan", GONE) == f"{GONE} is gone from this installation: install mlc_dsv3 again"


def test_a_folder_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_parts, "_RECORD", tmp_path / "native.json")
    assert "install mlc_dsv3 with pip" in native_parts.not_built("vulkan", GONE)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize(
    ("programs", "cxx", "asks"),
    [
        ([], None, False),
        (["gcc"], None, False),
        (["g++"], None, True),
        (["clang++"], None, True),
        (["g++"], "ccache-of-elsewhere g++", False),
        (["g++", "ccache"], "ccache g++", True),
    ],
)
def test_pip_is_asked_for_tvm_where_there_is_a_compiler(
    kind: str, programs: list[str], cxx: str | None, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in programs:
        (tmp_path / program).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if cxx:
        monkeypatch.setenv("CXX", cxx)
    required = getattr(_build_backend(monkeypatch), f"get_requires_for_build_{kind}")()
    assert required[0] == "ninja"
    assert [each.partition("==")[0] for each in required[1:]] == ["apache-tvm", "apache-tvm-ffi"] * asks


def _build_backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file that pip runs, over a scikit-build-core that asks for Ninja alone. Installations do not have it."""

    def ask(settings: object = None) -> list[str]:
        return ["ninja"]

    scikit = ModuleType("scikit_build_core")
    scikit.build = SimpleNamespace(get_requires_for_build_wheel=ask, get_requires_for_build_editable=ask, __all__=[])
    monkeypatch.setitem(sys.modules, "scikit_build_core", scikit)
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", scikit.build)
    path = Path(__file__).parents[1] / "mlc_dsv3" / "_build_backend.py"
    spec = importlib.util.spec_from_file_location("_build_backend", path)
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    return backend
