"""One model for every target that `build/` describes: libraries in a folder, and a manifest that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlc_dsv3.compiler.compile import check_backend, compile_model
from mlc_dsv3.compiler.hosts import Host
from mlc_dsv3.compiler.link import find_linker
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.compiler.targets import (
    device_names,
    host_of,
    known_hosts,
    read_description,
    resolve_target,
    stored_as,
)
from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import write_whole
from mlc_dsv3.output_paths import folder_made, output_file, output_folder
from mlc_dsv3.progress import progress
from relax_model.config import ModelConfig

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """A library of the matrix."""

    device: str
    level: str
    host: Host

    def file_name(self, name: str, quantization: str) -> str:
        """As the others are called, down to the level and the kind of machine."""
        return f"{name}-{quantization}-{self.device}-{self.level}-{self.host.name}.{self.host.suffix}"


def entries(device: str | None = None, host: str | None = None) -> list[Entry]:
    """The matrix, or what of it is for a device or a kind of machine. UserError where nothing is."""
    wanted = host_of("cpu", host) if host else None
    found = [
        Entry(name, level, machine)
        for name in ([device] if device else device_names())
        for machine in _hosts(name)
        if wanted in (None, machine)
        for level in _levels(name, machine)
    ]
    if not found:
        raise UserError(f"device {device} has no libraries for --host {host}")
    return found


def _hosts(device: str) -> list[Host]:
    hosts = {host.name: host for host in known_hosts()}
    return [hosts[name] for name in read_description(device)["target"].get("hosts", hosts)]


def _levels(device: str, host: Host) -> list[str]:
    """The levels of processors of this architecture, from the best one to the host's; all of a GPU's."""
    levels = read_description(device)["level"]
    fitting = [level["name"] for level in levels if level.get("arch", host.arch) == host.arch]
    return fitting[: fitting.index(host.level) + 1] if device == "cpu" else fitting


def compile_matrix(
    config: ModelConfig,
    name: str,
    quantization: str,
    folder: Path,
    wanted: list[Entry],
    *,
    context_window: int | None = None,
    cache_dtype: str | None = None,
    architectures: Sequence[str] | None = None,
) -> Path:
    """Compile `config` for `wanted`, each library in the layout that its device reads fastest, and return the manifest.

    UserError, before anything is compiled, where one of them cannot be compiled, linked or written on this machine.
    """
    output_folder(folder)
    for entry in wanted:
        output_file(folder / entry.file_name(name, stored_as(entry.device, quantization)))
        check_backend(
            resolve_target(
                entry.device, entry.level, cache_dtype, _architectures(entry, architectures), entry.host.name
            )
        )
        find_linker(entry.host)
    output_file(folder / MANIFEST)
    libraries = []
    with folder_made(folder), progress("Compiling the matrix", total=len(wanted)) as advance:
        for entry in wanted:
            stored = stored_as(entry.device, quantization)
            output = folder / entry.file_name(name, stored)
            compile_model(
                config,
                stored,
                entry.device,
                output,
                level=entry.level,
                context_window=context_window,
                cache_dtype=cache_dtype,
                architectures=_architectures(entry, architectures),
                host=entry.host.name,
            )
            libraries.append(_described(output))
            advance(1, output.name)
    manifest = {"model": name, "config_digest": config.digest(), "libraries": libraries}
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
    return folder / MANIFEST


def _architectures(entry: Entry, wanted: Sequence[str] | None) -> Sequence[str] | None:
    if entry.device != "cuda":
        return None
    return wanted or read_description("cuda")["defaults"]["architectures"]


def _described(library: Path) -> dict[str, Any]:
    metadata = read_note(library)["metadata"]
    fields = ("device", "host", "level", "features", "architectures", "quantization", "product_version")
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    named = {field: metadata[field] for field in fields}
    return {"file": library.name, "bytes": library.stat().st_size, "sha256": digest, **named}
