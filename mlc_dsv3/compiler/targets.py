"""Targets as `build/*.toml` describes them, matched with a processor or a GPU: the only reader of that folder."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlc_dsv3.compiler.hosts import Host, find_host, host_arch, host_system, host_with
from mlc_dsv3.errors import UserError
from relax_model.layout import CACHE_DTYPES

# A wheel carries the folder inside the package; a source checkout has it beside.
_FOLDERS = (Path(__file__).parents[1] / "build", Path(__file__).parents[2] / "build")
# What Linux calls otherwise than LLVM.
_LINUX_NAMES = {"avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni", "asimd": "neon", "asimddp": "dotprod"}


@dataclass(frozen=True)
class CompileTarget:
    """A device to compile for, down to the processor's features or the kind of GPU: `level`."""

    device: str
    family: str
    level: str
    host: Host
    features: tuple[str, ...]
    tvm: tuple[tuple[str, Any], ...]
    tuned: tuple[tuple[str, int], ...]
    defaults: tuple[tuple[str, Any], ...]
    cache_dtypes: tuple[tuple[str, str], ...]
    architectures: tuple[str, ...] = ()  # CUDA's that a library holds code for
    chosen_cache: str | None = None

    def default(self, name: str) -> Any:
        """A value of the target's `[defaults]`."""
        return dict(self.defaults)[name]

    def stored_as(self, quantization: str) -> str:
        """See `stored_as`, below."""
        return stored_as(self.device, quantization)

    def cache_dtype(self, quantization: str) -> str:
        """The latent cache's dtype: the one that was asked for, or what suits weights of this quantization."""
        if self.chosen_cache:
            return self.chosen_cache
        dtypes = dict(self.cache_dtypes)
        return dtypes.get(quantization, dtypes["other"])


@cache
def device_names() -> tuple[str, ...]:
    """The devices that `build/` describes."""
    return tuple(sorted(path.stem for path in build_folder().glob("*.toml")))


@cache
def read_description(device: str) -> dict[str, Any]:
    """A device's TOML file ("auto" is the CPU); UserError lists the known devices."""
    device = "cpu" if device == "auto" else device
    path = build_folder() / f"{device}.toml"
    if not path.is_file():
        raise UserError(f"device {device!r} is unknown; known: {', '.join(device_names())}")
    return tomllib.loads(path.read_text())


def stored_as(device: str, quantization: str) -> str:
    """The quantization with the layout that a device reads fastest, or with the one that its name states.

    `q4f16_1+vnni16` states one, and `q4f16_1+mlc` mlc-llm's own, which is stored as plain `q4f16_1`. UserError
    for a layout that the device's kernels do not read.
    """
    description = read_description(device)
    layouts = description["layouts"]
    stored = layouts.get(quantization, quantization.removesuffix("+mlc"))
    if "+" in stored and stored not in layouts.values():
        raise UserError(f"kernels of device {description['target']['name']} read no weights stored as {stored}")
    return stored


def resolve_target(
    device: str = "auto",
    level: str | None = None,
    cache_dtype: str | None = None,
    architectures: Sequence[str] | None = None,
    host: str | None = None,
) -> CompileTarget:
    """The target for `device` ("auto" is the CPU), at `level` or at the one that fits this machine.

    `cache_dtype` is the latent cache's, for any quantization; `architectures` are CUDA's, by default that of this
    machine's GPU, or without one those of the target's description. `host` is the kind of machine that the library is
    for, by default the target's own or this one, and without `level` such processors' lowest. Raises UserError for an
    unknown device, level, host or dtype, for a processor below every level, and for a GPU that is not there.
    """
    if cache_dtype is not None and cache_dtype not in CACHE_DTYPES:
        raise UserError(f"cache dtype {cache_dtype!r} is unknown; known: {', '.join(CACHE_DTYPES)}")
    description = read_description(device)
    family, dtypes = description["target"]["family"], description["cache_dtype"]
    name = description["target"]["name"]
    if architectures and name != "cuda":
        raise UserError(f"--arch is for the device cuda, not for {name}")
    found = _level(description, level, host)
    if host is None and "arch" in found and "host" not in description["target"]:
        machine = host_with(known_hosts(), found["arch"], host_system())
    else:
        machine = host_of(device, host)
    if found.get("arch", machine.arch) != machine.arch:
        raise UserError(f"--level {found['name']} is for {found['arch']}, and --host {machine.name} is not")
    return CompileTarget(
        device=name,
        family=family,
        level=found["name"],
        host=machine,
        features=tuple(found.get("features", ())),
        tvm=tuple(description["target"]["tvm"].items()),
        tuned=tuple(found["tuned"].items()),
        defaults=tuple(description["defaults"].items()),
        cache_dtypes=tuple(dtypes.items()),
        architectures=_architectures(description, architectures) if name == "cuda" else (),
        chosen_cache=cache_dtype,
    )


def known_hosts() -> list[Host]:
    """The kinds of machine that `build/cpu.toml` describes."""
    return [Host(**fields) for fields in read_description("cpu")["host"]]


def host_of(device: str, name: str | None = None) -> Host:
    """The kind of machine of this name, or by default the device's own, or this one. UserError lists the known ones."""
    target = read_description(device)["target"]
    wanted = name or target.get("host")
    if not wanted:
        return host_with(known_hosts(), host_arch(), host_system())
    found, possible = find_host(known_hosts(), wanted), target.get("hosts")
    if possible and found.name not in possible:
        raise UserError(f"device {device} is there on {' and '.join(possible)}, not on {found.name}")
    return found


def _level(description: dict[str, Any], level: str | None, host: str | None) -> dict[str, Any]:
    levels, name = description["level"], description["target"]["name"]
    if level:
        return _named(levels, level)
    if name == "cpu" and host and not (machine := find_host(known_hosts(), host)).is_this:
        return _named(levels, machine.level)
    return _CHOICES[name](levels)


def _named(levels: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for level in levels:
        if level["name"] == name:
            return level
    raise UserError(f"--level {name!r} is unknown; known: {_names(levels)}")


def _names(levels: list[dict[str, Any]]) -> str:
    return ", ".join(level["name"] for level in levels)


def _of_processor(levels: list[dict[str, Any]]) -> dict[str, Any]:
    arch, has = host_arch(), host_features()
    for level in levels:
        if level["arch"] == arch and not set(level["features"]) - has:
            return level
    wanted = next((level for level in reversed(levels) if level["arch"] == arch), None)
    if wanted is None:
        raise UserError(f"this machine is {platform.machine()}; libraries are for {', '.join(_supported(levels))}")
    lacking = sorted(set(wanted["features"]) - has)
    raise UserError(f"this processor lacks {', '.join(lacking)}, which the lowest level, {wanted['name']}, needs")


def _supported(levels: list[dict[str, Any]]) -> list[str]:
    return sorted({level["arch"] for level in levels})


def _architectures(description: dict[str, Any], wanted: Sequence[str] | None) -> tuple[str, ...]:
    from mlc_dsv3.cuda import driver
    from mlc_dsv3.runtime.virtual_machine import load_runtime

    if wanted:
        return tuple(wanted)
    load_runtime()
    return tuple(description["defaults"]["architectures"]) if driver.missing() else (driver.architecture(),)


def _of_vulkan(levels: list[dict[str, Any]]) -> dict[str, Any]:
    from mlc_dsv3.runtime.virtual_machine import load_runtime
    from mlc_dsv3.vulkan import native

    load_runtime()
    try:
        return level_of_gpu(levels, native.first_device())
    except UserError as error:
        if native.not_built():
            raise
        raise UserError(
            f"{error}; to compile for another machine's, name its kind with --level: {_names(levels)}"
        ) from None


def level_of_gpu(levels: list[dict[str, Any]], device: dict[str, Any]) -> dict[str, Any]:
    """The first level that fits a device, by the type and subgroup size that `vulkan.native.devices` says it has."""
    return next(
        level
        for level in levels
        if device["type"] in level["types"] and device["subgroup_size"] <= level["widest_subgroup"]
    )


def _first(levels: list[dict[str, Any]]) -> dict[str, Any]:
    return levels[0]


# What a device's level is when none is named.
_CHOICES = {"cpu": _of_processor, "vulkan": _of_vulkan, "cuda": _first, "metal": _first}


@cache
def host_features() -> frozenset[str]:
    """The processor's features by LLVM's names, as the operating system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import tvm

        cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
        features = tvm.get_global_func("target.llvm_get_cpu_features")
        return frozenset(map(str, features(tvm.target.Target({"kind": "llvm", "mcpu": cpu}))))
    return features_of(lines)


def features_of(cpuinfo: Iterable[str]) -> frozenset[str]:
    """LLVM's names of the features that the first processor in Linux's /proc/cpuinfo lists."""
    names = next((line.partition(":")[2].split() for line in cpuinfo if line.startswith(("flags", "Features"))), [])
    return frozenset(_LINUX_NAMES.get(name, name) for name in names)


def build_folder() -> Path:
    """The folder of what is particular to targets: descriptions, and tuning records."""
    return next(folder for folder in _FOLDERS if (folder / "cpu.toml").is_file())
