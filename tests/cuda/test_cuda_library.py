"""Libraries for CUDA, compiled on any machine: what they hold, and which GPUs and machines they are refused on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden import checkpoints

from mlc_dsv3.cli.main import main
from mlc_dsv3.compiler import compile_model, devices, resolve_target
from mlc_dsv3.cuda import driver, nvcc
from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.library import Library
from mlc_dsv3.runtime.virtual_machine import load_runtime
from mlc_dsv3.weights import Checkpoint

# Before TVM itself, which would load its CUDA runtime and leave nothing to stand in for it.
load_runtime()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's, with code for two architectures."""
    folder = tmp_path_factory.mktemp("cuda")
    checkpoints.write("deepseek_v3", folder / "model")
    config = Checkpoint.open(folder / "model").model_config
    return compile_model(config, "q4f16_1", "cuda", folder / "model.so", architectures=["sm_80", "sm_90a"])


@pytest.mark.full
def test_inspect_says_what_it_is_for_on_a_machine_without_a_gpu(library: Path, capsys) -> None:
    main(["inspect", str(library), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["level"], found["architectures"]) == ("cuda", "sm_80", ["sm_80", "sm_90a"])


@pytest.mark.full
def test_it_holds_no_source_to_be_compiled_later(library: Path) -> None:
    assert b"__global__" not in library.read_bytes()


@pytest.mark.full
@pytest.mark.skipif(driver.missing() is None, reason="there is a GPU")
def test_it_runs_on_no_machine_without_a_driver(library: Path) -> None:
    with pytest.raises(UserError, match="there is no NVIDIA (driver|GPU) here"):
        Library(library)


@pytest.mark.full
def test_a_gpu_without_matching_code_is_refused_by_name(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = {"name": "NVIDIA A100", "capability": 80, "memory": 80 << 30}
    monkeypatch.setattr(driver, "first_device", lambda: older)
    monkeypatch.setattr(driver, "runs", lambda *_: False)
    with pytest.raises(
        UserError, match=r"has code for sm_80, sm_90a, and NVIDIA A100 is of compute capability 8\.0; .*--arch sm_80"
    ):
        Library(library)
    monkeypatch.setattr(driver, "first_device", lambda: TURING)
    with pytest.raises(UserError, match=TOO_OLD):
        Library(library)


TURING = {"name": "NVIDIA T4", "capability": 75, "memory": 16 << 30}
TOO_OLD = r"^NVIDIA T4 is of compute capability 7\.5, and the kernels need 8\.0; --arch compiles for other GPUs$"


def test_a_gpu_that_is_too_old_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "missing", lambda: None)
    monkeypatch.setattr(driver, "first_device", lambda: TURING)
    with pytest.raises(UserError, match=TOO_OLD):
        resolve_target("cuda")
    assert resolve_target("cuda", architectures=["sm_90a"]).architectures == ("sm_90a",)
    status = next(status for status in devices() if status.name == "cuda")
    assert not status.can_run
    assert "the kernels need 8.0" in status.reason


def test_an_architecture_that_is_too_old_is_refused(tmp_path: Path, capsys) -> None:
    checkpoints.write("deepseek_v3", tmp_path / "model")
    arguments = ["compile", str(tmp_path / "model"), "--quantization", "q4f16_1", "--device", "cuda"]
    assert main([*arguments, "--arch", "sm_90a,sm_75", "-o", str(tmp_path / "model.so")]) == 2
    said = capsys.readouterr().err
    assert said == "mlc_dsv3: error: architecture sm_75 is older than sm_80, the first that the kernels run on\n"
    assert "sm_75" not in nvcc.architectures()


@pytest.mark.parametrize(
    ("architectures", "capability", "does"),
    [
        (["sm_80"], 80, True),
        (["sm_80"], 86, True),  # machine code of the same generation
        (["sm_86"], 80, False),
        (["sm_80"], 90, True),  # by its PTX
        (["sm_80"], 75, False),
        (["sm_90a"], 90, True),
        (["sm_80", "sm_90a"], 89, True),
        (["sm_90a"], 89, False),
    ],
)
def test_which_gpus_have_code(architectures: list[str], capability: int, does: bool) -> None:
    assert driver.runs(architectures, capability) is does


def test_architectures_are_cudas_alone(capsys) -> None:
    with pytest.raises(UserError, match="--arch is for the device cuda, not for cpu"):
        resolve_target("cpu", architectures=["sm_80"])


def test_compile_refuses_an_unknown_architecture_before_anything_else(tmp_path: Path, capsys) -> None:
    checkpoints.write("deepseek_v3", tmp_path / "model")
    output = tmp_path / "model.so"
    arguments = ["compile", str(tmp_path / "model"), "--quantization", "q4f16_1", "--device", "cuda"]
    assert main([*arguments, "--arch", "sm_80,sm_91", "-o", str(output)]) == 2
    assert "knows no architecture sm_91; it has" in capsys.readouterr().err
    assert not output.exists()


def test_without_a_gpu_a_library_is_for_all_that_the_target_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "missing", lambda: "there is no NVIDIA driver here")
    assert resolve_target("cuda").architectures == ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")


@pytest.mark.skipif(driver.missing() is None, reason="there is a GPU")
def test_tune_without_a_gpu(capsys) -> None:
    assert main(["tune", "--device", "cuda", "--seconds", "1"]) == 2
    assert "there is no NVIDIA" in capsys.readouterr().err
