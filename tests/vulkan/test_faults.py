"""What a driver seldom does: it loses the device, refuses memory, or refuses a kernel.

A layer between loader and driver lets it happen (`fault_layer.c`), in processes of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from on_device import needs_vulkan

pytestmark = needs_vulkan
_LAYER = "VK_LAYER_MLC_fault"
_SOURCE = Path(__file__).with_name("fault_layer.c")
# VkResult's.
OUT_OF_DEVICE_MEMORY, DEVICE_LOST, UNKNOWN = -2, -4, -13

Child = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Child:
    """`child(program, *arguments)` runs Python text below the layer, with `fail(function, result)` in reach."""
    compiler = next((path for name in ("cc", "gcc", "g++") if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler for the layer")
    folder = tmp_path_factory.mktemp("layer")
    library = folder / "libfault_layer.so"
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-fvisibility=hidden", str(_SOURCE), "-o", str(library)]
    compiled = subprocess.run(command, capture_output=True, text=True)
    if "vulkan/" in compiled.stderr and "No such file" in compiled.stderr:
        pytest.skip("no Vulkan headers for the layer")
    assert compiled.returncode == 0, compiled.stderr
    manifest = {
        "file_format_version": "1.2.0",
        "layer": {
            "name": _LAYER,
            "type": "GLOBAL",
            "library_path": str(library),
            "api_version": "1.3.0",
            "implementation_version": "1",
            "description": "lets functions fail",
        },
    }
    (folder / "fault_layer.json").write_text(json.dumps(manifest))
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        # In place of the system's: the validation layers would only report what was asked for.
        "VK_LAYER_PATH": str(folder),
        "VK_INSTANCE_LAYERS": _LAYER,
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    prelude = f"""
import ctypes
_layer = ctypes.CDLL({str(library)!r})
def fail(function, result): _layer.fail(function.encode(), result)
"""

    def run(program: str, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", prelude + program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, input=stdin, timeout=300)

    return run


PRELUDE = """
import numpy as np, tvm
import on_device, test_runtime
from mlc_dsv3.errors import DeviceError
def tensor(values): return tvm.runtime.tensor(np.asarray(values, np.float32), on_device.device())
def raised(kind, call, *arguments):
    try:
        call(*arguments)
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")
increment = on_device.build(test_runtime.increment)["main"]
x = tensor(np.zeros(8))
increment(x, 8)
assert x.numpy().sum() == 8
"""


def quiet(done: subprocess.CompletedProcess[str]) -> None:
    """The process came to its end, and nothing was written on the way."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("function", "doing"), [("vkQueueSubmit", "submitting a batch"), ("vkWaitSemaphores", "running kernels")]
)
def test_a_lost_device_is_lost_for_good_and_the_process_lives(child: Child, function: str, doing: str) -> None:
    program = f"""
increment(x, 8)
fail("{function}", {DEVICE_LOST})
said = raised(DeviceError, x.numpy)
assert said.startswith("Vulkan device 0 (") and "was lost while {doing} (VK_ERROR_DEVICE_LOST)" in said, said
assert "a new process is needed" in said
fail("", 0)
for call in (x.numpy, lambda: increment(x, 8), lambda: tensor(np.ones(4)), on_device.device().sync):
    assert raised(DeviceError, call) == said
del x
"""
    quiet(child(PRELUDE + program))


def test_commands_that_a_driver_refuses_leave_no_tensor_that_looks_well(child: Child) -> None:
    program = f"""
increment(x, 8)
fail("vkQueueSubmit", {OUT_OF_DEVICE_MEMORY})
said = raised(DeviceError, x.numpy)
assert "was lost while submitting a batch (VK_ERROR_OUT_OF_DEVICE_MEMORY)" in said, said
fail("", 0)
assert raised(DeviceError, x.numpy) == said
"""
    quiet(child(PRELUDE + program))


def test_memory_that_a_driver_refuses_leaves_other_tensors_alone(child: Child) -> None:
    program = f"""
fail("vkAllocateMemory", {OUT_OF_DEVICE_MEMORY})
large = 1 << 28
said = raised(MemoryError, tvm.runtime.empty, (large,), "uint8", on_device.device())
assert f"has no memory left: allocating {{large}} bytes, with " in said, said
increment(x, 8)
assert np.array_equal(x.numpy(), np.full(8, 2))
assert tensor(np.ones(4)).numpy().sum() == 4
fail("", 0)
assert tvm.runtime.empty((large,), "uint8", on_device.device()).shape == (large,)
"""
    quiet(child(PRELUDE + program))


def test_a_kernel_that_a_driver_refuses_leaves_other_kernels_alone(child: Child) -> None:
    program = f"""
fail("vkCreateComputePipelines", {UNKNOWN})
other = on_device.build(test_runtime.increment)["main"]
for _ in range(2):
    said = raised(DeviceError, other, x, 8)
    assert "compiling kernel main_kernel failed with VK_ERROR_UNKNOWN; another version of its driver" in said, said
increment(x, 8)
assert np.array_equal(x.numpy(), np.full(8, 2))
fail("", 0)
other(x, 8)
assert np.array_equal(x.numpy(), np.full(8, 3))
"""
    quiet(child(PRELUDE + program))


CHAT = """
import sys
from mlc_dsv3.cli.main import main
function, result, *arguments = sys.argv[1:]
fail(function, int(result))
sys.exit(main(["chat", *arguments]))
"""


@pytest.mark.parametrize(
    ("function", "result", "text"),
    [
        ("vkQueueSubmit", DEVICE_LOST, "was lost while submitting a batch"),
        ("vkAllocateMemory", OUT_OF_DEVICE_MEMORY, "has no memory left: allocating"),
        ("vkCreateComputePipelines", UNKNOWN, "failed with VK_ERROR_UNKNOWN"),
    ],
)
@pytest.mark.full
def test_chat_says_it_in_one_line(
    child: Child, compiled: Callable[..., Any], function: str, result: int, text: str
) -> None:
    made = compiled("deepseek_v3", "q0f32", device="vulkan")
    options = ("--model-lib", made.library, "--raw", "--temperature", 0, "--max-tokens", 2)
    done = child(CHAT, function, result, made.artifact, *options, stdin="Once upon a time\n")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mlc_dsv3: error: Vulkan device 0 (") and text in last
    assert "Traceback" not in done.stderr
