"""Whole models on an emulated NVIDIA GPU, against transformers and the CPU's library, and tuning there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from emulation.gpus import cuda, run_tests
from golden import checkpoints

QUANTIZED = "quantized and (q4f16_1 or e4m3f32_1)"
CASES = f"deepseek_v3 and (transformers or graph or launches) or cuda_makes or {QUANTIZED} or drafts or whatever"


def test_models(tmp_path: Path) -> None:
    run_tests(cuda(tmp_path), tmp_path, "vulkan/test_model.py", "-k", CASES)


def test_memory_of_graphs_and_measuring(tmp_path: Path) -> None:
    run_tests(cuda(tmp_path), tmp_path, "cuda/test_graph.py", "vulkan/test_device_bench.py")


def test_tune_times_kernels_in_graphs_and_compile_takes_its_choice(tmp_path: Path) -> None:
    on_gpu = {**cuda(tmp_path / "gpu"), "XDG_DATA_HOME": str(tmp_path / "data")}
    checkpoints.write("deepseek_v3", tmp_path / "model")
    config = tmp_path / "model" / "config.json"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlc_dsv3", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=on_gpu, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    done = run("tune", config, "--device", "cuda", "--quantization", "q4f16_1", "--seconds", "1", "--json")
    record = Path(done.stderr.strip().removeprefix("written to "))
    content = json.loads(record.read_text())
    assert (content["device"], content["processor"]) == ("cuda", "emulated GPU")
    first = content["kernels"][0]
    assert all(seconds > 0 for both in first["seconds"].values() for seconds in both)
    content["kernels"] = [first | {"tile": {"threads": 64}}]
    record.write_text(json.dumps(content))
    run("compile", config, "--device", "cuda", "--quantization", "q4f16_1", "-o", tmp_path / "lib.so")
    assert json.loads(run("inspect", tmp_path / "lib.so", "--json").stdout)["tuned"] == [first["kernel"]]
