"""Targets from `build/`, matched with processors and GPUs; linkers found; the pinned pair of packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from golden.families import CHECKPOINTS

from mlc_dsv3 import _pins
from mlc_dsv3.compiler import devices, hosts, resolve_target, targets
from mlc_dsv3.compiler import link as link_module
from mlc_dsv3.compiler.fingerprint import library_key
from mlc_dsv3.errors import UserError
from mlc_dsv3.vulkan import native
from relax_model.config import parse_config


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """`processor(arch, *features)` makes this machine look like one."""

    def pretend(arch: str, *features: str) -> None:
        for module in (targets, hosts):
            monkeypatch.setattr(module, "host_arch", lambda: arch)
        monkeypatch.setattr(targets, "host_features", lambda: frozenset(features))

    return pretend


AVX2 = ("avx2", "fma", "f16c")
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")


def test_the_best_level_that_the_processor_has_is_taken(processor) -> None:
    processor("x86_64", *AVX2)
    assert resolve_target("cpu").level == "x86-64-avx2"
    processor("x86_64", *AVX2, *AVX512)
    assert resolve_target("cpu").level == "x86-64-avx512"
    processor("x86_64", *AVX2, *AVX512, "avx512vnni")
    assert resolve_target("cpu").level == "x86-64-avx512vnni"
    processor("x86_64", *AVX2, "avxvnni")
    assert resolve_target("cpu").level == "x86-64-avxvnni"
    processor("aarch64", "neon")
    assert resolve_target("auto").level == "aarch64-neon"
    processor("aarch64", "neon", "dotprod")
    assert resolve_target("auto").level == "aarch64-dotprod"


def test_linuxs_names_of_features_become_llvms() -> None:
    x86 = ["processor\t: 0", "flags\t\t: fpu avx2 avx512_vnni avx_vnni", "flags\t\t: other"]
    assert targets.features_of(x86) == {"fpu", "avx2", "avx512vnni", "avxvnni"}
    assert targets.features_of(["Features\t: fp asimd asimddp i8mm"]) == {"fp", "neon", "dotprod", "i8mm"}
    assert targets.features_of([]) == frozenset()


def test_another_level_can_be_named(processor) -> None:
    processor("aarch64", "neon")
    assert resolve_target("cpu", "x86-64-avx2").host.arch == "x86_64"


def test_a_processor_below_every_level_is_told_what_it_lacks(processor) -> None:
    processor("x86_64", "sse2", "fma")
    with pytest.raises(UserError, match="lacks avx2, f16c, which the lowest level, x86-64-avx2, needs"):
        resolve_target("cpu")


def test_an_unknown_architecture_device_or_level_lists_the_known_ones(processor) -> None:
    with pytest.raises(UserError, match="device 'abacus' is unknown; known: .*cpu"):
        resolve_target("abacus")
    with pytest.raises(UserError, match="'z80' is unknown; known: x86-64-avx512vnni, .*x86-64-avx2, .*aarch64-neon"):
        resolve_target("cpu", "z80")
    processor("riscv64")
    with pytest.raises(UserError, match="libraries are for aarch64, x86_64"):
        resolve_target("cpu")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """`gpu(type, subgroup size)` gives this machine a device; `gpu(None)` takes it away."""

    def pretend(type_: str | None, subgroup_size: int = 0) -> None:
        found = [{"name": "a GPU", "type": type_, "subgroup_size": subgroup_size, "lacking": ""}] if type_ else []
        monkeypatch.setattr(native, "devices", lambda: found)
        monkeypatch.setattr(native, "missing", lambda: None)
        monkeypatch.setattr(native, "not_built", lambda: None)

    return pretend


@pytest.mark.parametrize(
    ("type_", "subgroup_size", "level"),
    [
        ("discrete", 32, "discrete-32"),
        ("discrete", 16, "discrete-32"),
        ("discrete", 64, "discrete-64"),
        ("virtual", 64, "discrete-64"),
        ("other", 128, "discrete-64"),
        ("integrated", 32, "integrated"),
        ("integrated", 64, "integrated"),
        ("cpu", 8, "cpu"),
    ],
)
def test_the_kind_of_the_device_that_is_there_is_taken(gpu, type_: str, subgroup_size: int, level: str) -> None:
    gpu(type_, subgroup_size)
    target = resolve_target("vulkan")
    assert (target.level, target.features) == (level, ())
    values = {each["name"]: each["tuned"] for each in targets.read_description("vulkan")["level"]}
    assert dict(target.tuned) == values[level]
    vulkan = next(status for status in devices() if status.name == "vulkan")
    assert f"a GPU ({level})" in vulkan.reason


def test_another_kind_can_be_named_and_has_to_be_where_there_is_no_device(gpu) -> None:
    gpu("cpu", 8)
    assert resolve_target("vulkan", "discrete-64").level == "discrete-64"
    with pytest.raises(UserError, match="'abacus' is unknown; known: discrete-32, discrete-64, integrated, cpu"):
        resolve_target("vulkan", "abacus")
    gpu(None)
    assert resolve_target("vulkan", "discrete-64").level == "discrete-64"
    with pytest.raises(UserError, match="no Vulkan device.*; .*name its kind with --level: discrete-32, .*integrated"):
        resolve_target("vulkan")


def test_without_the_backend_no_kind_helps(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(None)
    monkeypatch.setattr(native, "missing", lambda: "build it")
    monkeypatch.setattr(native, "not_built", lambda: "build it")
    with pytest.raises(UserError, match="^build it$"):
        resolve_target("vulkan")


def test_how_weights_are_stored_hangs_on_no_device(gpu) -> None:
    gpu(None)
    assert targets.stored_as("vulkan", "q4f16_1") == "q4f16_1"
    assert targets.stored_as("auto", "q4f16_1") == "q4f16_1+vnni16"


def test_a_cached_librarys_key_holds_the_kind(gpu) -> None:
    config = parse_config(CHECKPOINTS["youtu"].config)
    gpu("cpu", 8)
    here = library_key(config, "q4f16_1", resolve_target("vulkan"), None)
    assert here == library_key(config, "q4f16_1", resolve_target("vulkan", "cpu"), None)
    gpu("integrated", 64)
    assert here != library_key(config, "q4f16_1", resolve_target("vulkan"), None)


def test_a_quantization_is_stored_as_the_target_reads_it_fastest_unless_it_states_a_layout(processor) -> None:
    processor("x86_64", *AVX2)
    target = resolve_target("cpu")
    stored = {
        name: target.stored_as(name) for name in ("q4f16_1", "q4f16_1+mlc", "q4f16_1+vnni16", "q0f32", "q0f32+mlc")
    }
    assert stored == {
        "q4f16_1": "q4f16_1+vnni16",
        "q4f16_1+mlc": "q4f16_1",
        "q4f16_1+vnni16": "q4f16_1+vnni16",
        "q0f32": "q0f32",
        "q0f32+mlc": "q0f32",
    }


def test_every_device_has_a_status_with_a_reason(processor) -> None:
    processor("x86_64", *AVX2)
    assert {status.name for status in devices()} == set(targets.device_names())
    cpu = next(status for status in devices() if status.name == "cpu")
    assert cpu.can_run
    assert "x86-64-avx2" in cpu.reason
    processor("riscv64")
    assert not next(status for status in devices() if status.name == "cpu").can_run


def test_without_a_c_compiler_ziglang_links(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "ziglang" else real(name))
    assert link_module.find_linker() == [sys.executable, "-m", "ziglang", "cc"]


def test_with_neither_one_line_says_how_to_get_either(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else real(name))
    with pytest.raises(UserError, match="apt install gcc.*pip install ziglang"):
        link_module.find_linker()


def test_a_compiler_named_by_cc_must_be_there(monkeypatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(UserError, match="CC is 'no-such-compiler -m64', and there is no such program"):
        link_module.find_linker()


def test_another_version_of_the_pinned_pair_is_refused_with_the_way_to_mend_it(monkeypatch) -> None:
    monkeypatch.setattr(_pins, "version", lambda package: "0.1.15")
    with pytest.raises(UserError, match=r"apache-tvm is 0\.1\.15.*pip install apache-tvm==.* apache-tvm-ffi=="):
        _pins.check_pins()


def test_the_installed_pair_is_the_pinned_one() -> None:
    _pins.check_pins()
