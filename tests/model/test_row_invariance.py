"""A row's logits are the same to the bit whichever rows run beside it, in whatever order, pages and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import checkpoints
from golden.driver import Driver, mixed_schedule
from marks import quick_first

TESTS = Path(__file__).parents[1]
# Read before TVM's thread pool binds this process, and so those that it starts, to one core.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))

# Groups with odd widths, an odd head count, no q_lora: the shapes in which a kernel's tail differs most.
NAMES = ["deepseek_v3", "glm4_moe_lite", "deepseek_v2_lite"]
QUANTIZATIONS = ["q0f32", "q0f16", "q4f16_1", "q8f16_1+vnni16"]
PACKED = "q4f16_1+vnni16"
LENGTH = 48


@pytest.fixture(
    scope="module",
    params=quick_first(
        [(NAMES[0], "q0f32"), *((name, PACKED) for name in NAMES), (NAMES[2], "q0f32")]
        + [(NAMES[0], q) for q in QUANTIZATIONS[1:]]
        + [(NAMES[0], PACKED, "float16"), (NAMES[0], "q0f32", "int8")],
        quick=2,
        whole=True,
    ),
)
def model(request: pytest.FixtureRequest, driver: Callable[..., Driver]) -> Driver:
    return driver(*request.param)


@pytest.fixture(scope="module")
def sequences(model: Driver) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, model.model.config.vocab_size, LENGTH - 3 * index) for index in range(9)]


@pytest.fixture(scope="module")
def alone(model: Driver, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Each sequence's logits from a run by itself, token by token."""
    return [model.prefill(tokens, 1).logits for tokens in sequences]


@pytest.mark.parametrize("chunk", [2, 3, 7, 16, 31, None])
def test_chunk_sizes(chunk: int | None, model: Driver, sequences: list[np.ndarray], alone: list[np.ndarray]) -> None:
    assert np.array_equal(model.prefill(sequences[0], chunk).logits, alone[0])


@pytest.mark.parametrize("count", range(1, 10))
def test_batch_sizes(count: int, model: Driver, sequences: list[np.ndarray], alone: list[np.ndarray]) -> None:
    lengths = [len(tokens) for tokens in sequences[:count]]
    for result, expected in zip(
        model.run(sequences[:count], mixed_schedule(lengths, [1] * count)), alone[:count], strict=True
    ):
        assert np.array_equal(result.logits, expected)


@pytest.mark.parametrize("seed", range(3))
def test_mixtures_in_shuffled_order_on_other_pages(
    seed: int, model: Driver, sequences: list[np.ndarray], alone: list[np.ndarray]
) -> None:
    chunks = np.random.default_rng(seed).integers(1, 9, len(sequences)).tolist()
    schedule = mixed_schedule([len(tokens) for tokens in sequences], chunks)
    for result, expected in zip(model.run(sequences, schedule, pages=seed + 1, order=seed), alone, strict=True):
        assert np.array_equal(result.logits, expected)


_RUN = """
import os
import sys
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, map(int, sys.argv.pop().split(",")))

import numpy as np
from golden import checkpoints
from golden.driver import Driver, mixed_schedule
from mlc_dsv3.runtime.model import CompiledModel
from mlc_dsv3.weights import Artifact

artifact, library, name, threads, output = sys.argv[1:]
driver = Driver(CompiledModel.load(Artifact.open(artifact), Path(library), threads=int(threads)))
prompt = checkpoints.prompt(name)
results = driver.run([prompt, prompt[:23]], mixed_schedule([70, 23], [9, 1]))
np.save(output, np.concatenate([result.logits for result in results]))
"""


@pytest.mark.parametrize("name", NAMES)
def test_thread_counts(name: str, compiled: Callable[..., Any], tmp_path: Path) -> None:
    counts = sorted({1, min(2, len(CORES)), min(3, len(CORES)), len(CORES)})
    if len(counts) == 1:
        pytest.skip("this machine has one core")
    golden = checkpoints.golden(name)["logits"]
    one, *others = [_logits_with_threads(count, name, compiled(name), tmp_path) for count in counts]
    assert np.abs(one[: len(golden)] - golden).max() <= 1e-3 * golden.std()
    for other in others:
        assert np.array_equal(other, one)


def _logits_with_threads(count: int, name: str, made: Any, folder: Path) -> np.ndarray:
    output = folder / f"{count}.npy"
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    cores = [",".join(map(str, CORES))] if hasattr(os, "sched_setaffinity") else []
    subprocess.run(
        [sys.executable, "-c", _RUN, str(made.artifact), str(made.library), name, str(count), str(output), *cores],
        env={**os.environ, "TVM_NUM_THREADS": str(count), "PYTHONPATH": path},
        check=True,
    )
    return np.load(output)
