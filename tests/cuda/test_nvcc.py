"""NVIDIA's compiler: found, asked what it knows, and told what is wrong where it cannot be used."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mlc_dsv3.cuda import nvcc
from mlc_dsv3.errors import UserError

KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }'


def listed(option: str, fatbin: Path) -> str:
    """What cuobjdump says of a fatbin."""
    command = [nvcc.find_cuobjdump(), option, str(fatbin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_fatbin_holds_each_architectures_machine_code_and_the_last_ones_ptx(tmp_path: Path) -> None:
    fatbin = tmp_path / "kernels.fatbin"
    fatbin.write_bytes(nvcc.compile_source(KERNEL, ["sm_80", "sm_90a", "sm_120"]))
    machine_code, intermediate = listed("--list-elf", fatbin), listed("--list-ptx", fatbin)
    assert [name in machine_code for name in ("sm_80.", "sm_90a.", "sm_120.")] == [True] * 3
    assert "sm_120." in intermediate
    assert "sm_90" not in intermediate


def test_a_temporary_folder_that_cannot_be_written_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python passes over such a folder; the compiler that it starts would not."""
    (tmp_path / "absent").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    assert nvcc.compile_source(KERNEL, ["sm_80"])


def test_source_that_is_none_is_answered_in_the_compilers_words() -> None:
    with pytest.raises(RuntimeError, match='identifier "nonsense" is undefined'):
        nvcc.compile_source('extern "C" __global__ void f() { nonsense; }', ["sm_80"])


def test_an_unknown_architecture_lists_those_of_the_compiler() -> None:
    with pytest.raises(UserError, match=r"knows no architecture sm_91; it has .*sm_80, .*sm_90a, "):
        nvcc.refuse_unknown(["sm_80", "sm_91"])
    with pytest.raises(UserError, match="architecture 'hopper' is none; they are called sm_80, sm_90a and so on"):
        nvcc.refuse_unknown(["hopper"])


def test_without_the_compiler_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "_places", lambda program: iter([Path("/nowhere/nvcc")]))
    with pytest.raises(UserError, match=r"no nvcc to compile for CUDA with; install pip install 'mlc-dsv3\[cuda\]'"):
        nvcc.find_nvcc()
    with pytest.raises(UserError, match=r"no cuobjdump to read CUDA's machine code with; install pip install"):
        nvcc.find_cuobjdump()


def test_without_a_compiler_for_the_host_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "g++" else which(name))
    with pytest.raises(UserError, match="nvcc needs a C\\+\\+ compiler beside it .*apt install g\\+\\+"):
        nvcc.find_nvcc()


def test_cuda_home_comes_before_what_pypi_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "bin" / "nvcc"
    other.parent.mkdir()
    other.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nvcc" else which(name))
    assert nvcc.find_nvcc() == str(other)
