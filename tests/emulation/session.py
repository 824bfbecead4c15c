"""`pytest --emulate DEVICE`: the GPU's tests on an emulated GPU, each a test of its own, on all of pytest's workers.

Everything but the GPU is what people run. NVIDIA's: our library with nvcc's code in it, and TVM's CUDA runtime, below
which `tests/cuda/emulator` stands in for NVIDIA's two libraries and runs the code's PTX. Apple's: our library, for this
kind of machine in place of a Mac; `tests/metal/emulator` stands in for TVM's Metal runtime, and compiles their source.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DEVICES = ("cuda", "metal")
# Set in the processes that run on an emulated GPU, by name of the device.
FOLDERS = {"cuda": "EMULATED_GPU_FOLDER", "metal": "EMULATED_METAL_FOLDER"}
FILES = (
    "cuda/test_graph.py",
    "emulation/test_verbs.py",
    "vulkan/test_device_bench.py",
    "vulkan/test_gpu_kernels.py",
    "vulkan/test_gpu_sampling.py",
    "vulkan/test_model.py",
)
# Emulation is slow: of each kernel the formats that no other device's tests take, of models one of each kind.
_OTHERS = "test_graph.py or test_verbs.py or test_device_bench.py"
_SAMPLING = "equal_logits or more_tokens or finite"
_CUDA_FORMATS = "not q0f32 and not q0f16 and not q8f16_1"
_CUDA_KERNELS = f"{_CUDA_FORMATS} and (test_gpu_kernels.py or test_gpu_sampling.py and ({_SAMPLING}))"
_CUDA_QUANTIZED = "quantized and (q4f16_1 or e4m3f32_1)"
_CUDA_MODELS = (
    f"deepseek_v3 and (transformers or graph or launches) or cuda_makes or {_CUDA_QUANTIZED} or drafts or whatever"
)
_METAL_FORMATS = "not q0f32 and not q0f16 and not e4m3"
_METAL_KERNELS = f"{_METAL_FORMATS} and (test_gpu_kernels.py or test_gpu_sampling.py)"
_METAL_MODELS = "deepseek_v3 and (transformers or launches or draft or expanded) or quantized and q4f16_1 or same_bits"
CASES = {
    "cuda": f"{_OTHERS} or {_CUDA_KERNELS} or test_model.py and ({_CUDA_MODELS})",
    "metal": f"{_OTHERS} or {_METAL_KERNELS} or test_model.py and ({_METAL_MODELS})",
}


def add_option(parser: pytest.Parser) -> None:
    """--emulate."""
    parser.addoption(
        "--emulate", choices=DEVICES, help="run the GPU's tests on an emulated GPU of this kind (without files: all)"
    )


def configure(config: pytest.Config) -> None:
    """Build the emulator and choose its tests, once; in each worker, put the emulated GPU in its place."""
    device = config.getoption("emulate")
    if device is None:
        return
    if FOLDERS[device] not in os.environ:
        os.environ.update(_environment(device, _session_folder(config)))
        if not config.getoption("numprocesses", None):
            # Only a new process looks for libraries in other folders.
            config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
            os.execv(sys.executable, [sys.executable, "-m", "pytest", *config.invocation_params.args])
    _choose_tests(config, device)
    if device == "metal" and (hasattr(config, "workerinput") or not config.getoption("numprocesses", None)):
        # A worker of xdist has its parent's sys.path, whatever PYTHONPATH says.
        sys.path.insert(0, str(TESTS / device / "emulator"))
        import emulated_metal  # noqa: F401  importing it installs it


def _choose_tests(config: pytest.Config, device: str) -> None:
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(TESTS / file) for file in FILES]
    config.option.keyword = config.option.keyword or CASES[device]
    config.option.markexpr = ""
    # A file's cases share nothing that takes long: the emulator keeps what it compiled for all workers.
    config.option.dist = "worksteal"


def _session_folder(config: pytest.Config) -> Path:
    return config._tmp_path_factory.getbasetemp() / "emulator"


def _environment(device: str, folder: Path) -> dict[str, str]:
    """What a process must have in its environment to find the emulated GPU, which is built into `folder`."""
    emulator = TESTS / device / "emulator"
    done = subprocess.run([sys.executable, emulator / "build.py", folder], capture_output=True, text=True)
    if done.returncode:
        raise pytest.UsageError(f"the emulated GPU cannot be built:\n{done.stdout}{done.stderr}")
    common = {FOLDERS[device]: str(folder), "MLC_DSV3_TEST_GPU": device}
    if device == "cuda":
        translator = f"{sys.executable} {emulator / 'build.py'} translate"
        libraries = _before("LD_LIBRARY_PATH", folder)
        return {**common, "LD_LIBRARY_PATH": libraries, "EMULATED_GPU_TRANSLATOR": translator}
    return {**common, "PYTHONPATH": _before("PYTHONPATH", emulator)}


def _before(variable: str, folder: Path) -> str:
    return ":".join(filter(None, (str(folder), os.environ.get(variable))))
