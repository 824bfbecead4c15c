"""A cached library's key holds the versions of the programs that make it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from golden.families import CHECKPOINTS

from mlc_dsv3.compiler import resolve_target, tools
from mlc_dsv3.compiler.fingerprint import library_key
from mlc_dsv3.cuda import nvcc
from mlc_dsv3.vulkan import native, spirv
from relax_model.config import parse_config

Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """`program(name, version)` writes a program that says it is of this version."""

    def write(name: str, version: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho {name} {version}\n")
        path.chmod(0o755)
        return path

    return write


def key(device: str) -> str:
    spirv.tools_version.cache_clear()
    level = {"vulkan": "cpu", "cpu": "x86-64-avx2"}.get(device)
    return library_key(parse_config(CHECKPOINTS["youtu"].config), "q4f16_1", resolve_target(device, level), None)


@pytest.mark.parametrize("device", ["cpu", "cuda", "vulkan"])
def test_of_the_linker(device: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(program("cc", "1")))
    first = key(device)
    assert key(device) == first
    program("cc", "2")
    assert key(device) != first


def test_of_the_linkers_options(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(program("cc", "1")))
    first = key("cpu")
    monkeypatch.setenv("CC", f"{program('cc', '1')} -static")
    assert key("cpu") != first


@pytest.mark.parametrize("name", ["nvcc", "g++"])
def test_of_cudas_compiler_and_the_one_it_calls(name: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("nvcc", "g++"):
        program(each, "1")
    monkeypatch.setenv("PATH", str(program(name, "1").parent), prepend=os.pathsep)
    first = key("cuda"), key("cpu")
    program(name, "2")
    assert key("cuda") != first[0]
    assert key("cpu") == first[1]


def test_of_parts_of_cudas_compiler_from_pypi(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = dict.fromkeys(nvcc._PARTS, "13.0")
    monkeypatch.setattr(nvcc.sysconfig, "get_path", lambda _: str(program("nvcc", "1").parent))
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: str(program("nvcc", "1")))
    monkeypatch.setattr(nvcc.metadata, "version", versions.get)
    first = key("cuda")
    versions["nvidia-nvvm"] = "13.1"
    assert key("cuda") != first


@pytest.mark.parametrize("name", ["glslang", "spirv-opt", "spirv-val"])
def test_of_vulkans_compilers(name: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {each: str(program(each, "1")) for each in ("glslang", "spirv-opt", "spirv-val")}
    monkeypatch.setattr(spirv, "tools", lambda: paths)
    monkeypatch.setattr(native, "not_built", lambda: None)
    first = key("vulkan")
    program(name, "2")
    assert key("vulkan") != first
    spirv.tools_version.cache_clear()


def test_of_ziglang_which_links_for_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlc_dsv3.compiler.link._has_zig", lambda: True)
    monkeypatch.setattr(tools, "version", {"ziglang": "1"}.get)
    first = key("metal")
    monkeypatch.setattr(tools, "version", {"ziglang": "2"}.get)
    assert key("metal") != first


def test_without_a_linker_there_is_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with_one = key("cpu")
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert key("cpu") != with_one
