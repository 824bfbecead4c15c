"""Libraries for other kinds of machine, linked on this one."""

from __future__ import annotations

import json
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from golden import checkpoints
from golden.families import CHECKPOINTS
from marks import full

from mlc_dsv3.cli.main import main
from mlc_dsv3.compiler import compile_model, resolve_target
from mlc_dsv3.compiler import link as link_module
from mlc_dsv3.compiler.matrix import entries
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.compiler.targets import known_hosts
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.library import Library
from relax_model.config import parse_config

CROSS_COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-gcc", "qemu-aarch64", Path("/usr/aarch64-linux-gnu")
# Opens a library, calls nothing, and prints its note.
LOADER = r"""
#include <dlfcn.h>
#include <stdio.h>
void TVMFFIErrorSetRaisedFromCStrParts(void) {}  // TVM's, which is in the process before
int main(int count, char** arguments) {
  void* library = dlopen(arguments[count - 1], RTLD_LAZY);
  if (!library) return puts(dlerror()), 1;
  if (!dlsym(library, "__tvm_ffi__library_bin")) return puts("no model in it"), 2;
  return puts(dlsym(library, "mlc_dsv3_note")), 0;
}
"""


def compiled_for(host: str, folder: Path) -> Path:
    """A tiny model's library for a kind of machine."""
    config = parse_config(CHECKPOINTS["youtu"].config)
    return compile_model(config, "q4f16_1+vnni16", "cpu", folder / "library", host=host)


@pytest.mark.skipif(not (shutil.which(CROSS_COMPILER) and shutil.which(EMULATOR)), reason="no emulator of aarch64")
@pytest.mark.full
def test_a_library_for_aarch64_loads_there(tmp_path: Path) -> None:
    library = compiled_for("aarch64-linux", tmp_path)
    (tmp_path / "loader.c").write_text(LOADER)
    loader = tmp_path / "loader"
    subprocess.run([CROSS_COMPILER, "-o", str(loader), str(tmp_path / "loader.c"), "-rdynamic", "-ldl"], check=True)
    command = [EMULATOR, "-L", str(SYSROOT), str(loader), str(library)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
    metadata = json.loads(said.stdout[said.stdout.index("{") :])["metadata"]
    assert (metadata["host"], metadata["level"]) == ("aarch64-linux", "aarch64-neon")


@pytest.mark.parametrize(
    ("host", "magic", "level"),
    [
        full(("arm64-macos", b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01", "aarch64-dotprod")),
        full(("x86_64-windows", b"MZ", "x86-64-avx2")),
    ],
)
def test_libraries_for_other_systems_are_of_their_formats(host: str, magic: bytes, level: str, tmp_path: Path) -> None:
    library = compiled_for(host, tmp_path)
    assert library.read_bytes().startswith(magic)
    assert b"TVMFFIErrorSetRaisedFromCStrParts" in library.read_bytes()
    metadata = read_note(library)["metadata"]
    assert (metadata["host"], metadata["level"]) == (host, level)
    with pytest.raises(UserError, match=f"is compiled for {host}, and this machine is "):
        Library(library)


def test_an_unknown_host_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="--host 'amiga' is unknown; known: x86_64-linux, .*x86_64-windows"):
        resolve_target("cpu", host="amiga")


def test_a_level_and_a_host_have_to_go_together() -> None:
    assert resolve_target("cpu", "aarch64-i8mm", host="arm64-macos").host.suffix == "dylib"
    with pytest.raises(UserError, match="--level x86-64-avx2 is for x86_64, and --host arm64-macos is not"):
        resolve_target("cpu", "x86-64-avx2", host="arm64-macos")


def test_without_zig_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_has_zig", lambda: False)
    other = next(host for host in known_hosts() if not host.is_this)
    with pytest.raises(UserError, match=f"linking for {other.name} takes zig's compiler; run: pip install ziglang"):
        link_module.find_linker(other)


def test_the_matrix_has_every_level_on_every_host_that_has_it() -> None:
    found = {(entry.device, entry.level, entry.host.name) for entry in entries()}
    assert {("cpu", "x86-64-avx512vnni", "x86_64-windows"), ("cpu", "aarch64-neon", "aarch64-linux")} <= found
    assert ("cpu", "aarch64-neon", "arm64-macos") not in found  # every Mac has dotprod
    assert {host for device, _, host in found if device == "metal"} == {"arm64-macos"}
    assert {level for device, level, _ in found if device == "vulkan"} == {
        "discrete-32",
        "discrete-64",
        "integrated",
        "cpu",
    }
    with pytest.raises(UserError, match="device metal has no libraries for --host x86_64-linux"):
        entries("metal", "x86_64-linux")


@pytest.mark.full
def test_compile_all_writes_a_manifest_of_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints.write("youtu", tmp_path / "model")
    arguments = ["compile", str(tmp_path / "model"), "--quantization", "q4f16_1", "--all", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu", "--host", "arm64-macos"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "manifest.json")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [library["level"] for library in manifest["libraries"]] == ["aarch64-i8mm", "aarch64-dotprod"]
    for library in manifest["libraries"]:
        content = (tmp_path / "out" / library["file"]).read_bytes()
        assert (len(content), sha256(content).hexdigest()) == (library["bytes"], library["sha256"])
        assert (library["quantization"], library["host"]) == ("q4f16_1+vnni16", "arm64-macos")
    assert main([*arguments, "--level", "aarch64-i8mm"]) == 2
    assert "--level is for one library; leave it out beside --all" in capsys.readouterr().err


def test_the_whole_matrix_is_refused_before_the_first_library_where_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(link_module, "_has_zig", lambda: False)
    checkpoints.write("youtu", tmp_path / "model")
    arguments = ["compile", str(tmp_path / "model"), "--quantization", "q4f16_1", "--all", "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "run: pip install ziglang" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
