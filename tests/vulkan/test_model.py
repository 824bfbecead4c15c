"""Whole models on a GPU: logits against transformers' and the CPU's library, and the verbs."""

from __future__ import annotations

import dataclasses
import json
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
from golden.families import CHECKPOINTS
from marks import quick_first
from on_device import DEVICE, needs_gpu, needs_vulkan

from mlc_dsv3 import LLM, SamplingParams, native_parts
from mlc_dsv3.compiler import compile_model
from mlc_dsv3.compiler.note import read_note
from mlc_dsv3.cuda import graph
from mlc_dsv3.errors import UserError
from mlc_dsv3.experts.reading import Reader, Stretch
from mlc_dsv3.runtime.batch import Batch, StepOutput
from mlc_dsv3.runtime.memory import driver_of
from mlc_dsv3.runtime.model import CompiledModel
from mlc_dsv3.vulkan import native
from mlc_dsv3.weights import Artifact
from relax_model.config import parse_config

pytestmark = needs_gpu
# In standard deviations of the golden logits.
TOLERANCE = 1e-3
COMMAND = Path(sys.executable).parent / "mlc_dsv3"
# Routers with groups and without, queries with q_a_proj and without, an MTP layer.
NAMES = ["deepseek_v3", "deepseek_v2_lite", "youtu"]


@pytest.fixture(scope="module", params=quick_first(NAMES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def on_gpu(driver: Callable[..., Driver]) -> Callable[..., Driver]:
    return lambda name, *options: driver(name, *options, device=DEVICE)


def error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(logits - expected).max() / expected.std())


def test_logits_are_transformers(name: str, on_gpu: Callable[..., Driver]) -> None:
    golden, prompt = checkpoints.golden(name), checkpoints.prompt(name)
    chosen = on_gpu(name)
    for chunk in (None, 7):
        assert error(chosen.prefill(prompt, chunk).logits, golden["logits"]) <= TOLERANCE, chunk
    lengths = [len(prompt), 41, 8, 1]
    results = chosen.run([prompt[:length] for length in lengths], mixed_schedule(lengths, [9, 1, 5, 1]))
    for result, length in zip(results, lengths, strict=True):
        assert np.abs(result.logits - golden["logits"][:length]).max() <= TOLERANCE * golden["logits"].std()


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if CHECKPOINTS[name].long][:1])
def test_a_long_prompt_goes_in_expanded_blocks(name: str, on_gpu: Callable[..., Driver]) -> None:
    """3,000 tokens, past the original context; the step behind them reads what they left in the cache."""
    prompt = checkpoints.prompt(name, checkpoints.LONG_LENGTH)
    result, blocks = on_gpu(name).prefill_as_the_engine(prompt)
    assert blocks >= 3
    assert error(result.logits[-checkpoints.LONG_KEPT :], checkpoints.golden(name)["long_logits"]) <= TOLERANCE


@needs_vulkan
def test_decoding_gives_the_greedy_tokens_in_two_submissions_each(name: str, on_gpu: Callable[..., Driver]) -> None:
    prompt, greedy = checkpoints.prompt(name), checkpoints.golden(name)["greedy"]
    tokens = np.concatenate([prompt, greedy[:-1]])
    chosen, steps = on_gpu(name), [(0, at, at + 1) for at in range(len(prompt), len(tokens))]
    before = native.statistics()["submissions"]
    logits = chosen.run([tokens], [[(0, 0, len(prompt))], *([step] for step in steps)])[0].logits
    assert np.array_equal(logits[len(prompt) - 1 :].argmax(axis=1), greedy)
    assert native.statistics()["submissions"] - before <= 2 * (1 + len(steps))


@pytest.mark.parametrize("rows", [1, 8])
def test_launches_of_a_decode_step(name: str, on_gpu: Callable[..., Driver], rows: int) -> None:
    """At most nine a layer with experts: as the device counts them, a kernel of two launches twice."""
    prompt, chosen = checkpoints.prompt(name)[:rows], on_gpu(name)
    count = driver_of(DEVICE).launches
    before = count()
    chosen.prefill(prompt)
    launched = count() - before
    config = parse_config(CHECKPOINTS[name].config)
    around = 5  # rotary table, embedding, last norm, choice of rows, head
    of_layer = 8 if config.q_lora_rank is None else 9
    dense = config.moe_layers[: config.num_hidden_layers].count(False)  # they have one less
    assert launched == around + of_layer * config.num_hidden_layers - dense


@pytest.mark.skipif(DEVICE != "cuda", reason="other devices have no graphs")
def test_a_step_that_comes_again_is_one_graph(
    name: str, on_gpu: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, greedy = checkpoints.prompt(name), checkpoints.golden(name)["greedy"]
    tokens, started = np.concatenate([prompt, greedy[:-1]]), []
    count, chosen = driver_of(DEVICE).launches, on_gpu(name)
    step = chosen.model.step

    def counted(batch: Batch) -> StepOutput:
        before = count()
        output = step(batch)
        started.append(count() - before)
        return output

    monkeypatch.setattr(chosen.model, "step", counted)
    schedule = [[(0, 0, len(prompt))], *([(0, at, at + 1)] for at in range(len(prompt), len(tokens)))]
    logits = chosen.run([tokens], schedule)[0].logits
    assert np.array_equal(logits[len(prompt) - 1 :].argmax(axis=1), greedy)
    # The first two of a shape are kernels.
    assert started[1] == started[2] > 9
    assert len(started) > 4 and set(started[3:]) == {1}
    *_, last = chosen.model.library.calls._graphs.values()
    assert last.graph.kernels == started[1]


@pytest.mark.skipif(DEVICE != "cuda", reason="other devices have no graphs")
def test_where_cuda_makes_no_graph_it_says_so_and_goes_on(
    on_gpu: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def refused(name: str, *arguments: object) -> object:
        if name == "end_graph" and arguments[0]:
            native(name, False)
            raise RuntimeError("recording a CUDA graph: out of luck")
        return native(name, *arguments)

    native, chosen = graph.call, on_gpu("deepseek_v3")
    prompt = checkpoints.prompt("deepseek_v3")[:2]
    calls = chosen.model.library.calls
    calls.forget()
    expected = chosen.prefill(prompt).logits
    monkeypatch.setattr(graph, "call", refused)
    try:
        assert all(np.array_equal(chosen.prefill(prompt).logits, expected) for _ in range(5))
        assert (
            capsys.readouterr().err.count("kernel by kernel, which is slower: CUDA makes no graph of them (recor") == 1
        )
    finally:
        calls.prefers_few_shapes = True


@pytest.mark.parametrize("name", quick_first(name for name in NAMES if CHECKPOINTS[name].mtp_layers))
def test_draft_logits(name: str, on_gpu: Callable[..., Driver]) -> None:
    golden, prompt, chosen = checkpoints.golden(name), checkpoints.prompt(name), on_gpu(name)
    next_tokens = np.append(prompt[1:], golden["greedy"][0])
    logits = chosen.draft(next_tokens, chosen.prefill(prompt).hidden).logits
    assert error(logits, golden["draft_logits"]) <= TOLERANCE
    follow = len(prompt) - 3
    logits = chosen.draft(next_tokens, chosen.prefill(prompt).hidden, follow=follow).logits
    assert error(logits[follow:], golden["draft_logits"][follow:]) <= TOLERANCE


@pytest.mark.parametrize("rows", quick_first([3, 24]))
def test_routers_are_watched_as_on_the_cpu(rows: int, compiled: Callable[..., Any]) -> None:
    """Few rows, and many."""
    tokens = checkpoints.prompt("deepseek_v3")[:rows]
    made = (compiled("deepseek_v3", device=device) for device in ("cpu", DEVICE))
    models = (CompiledModel.load(Artifact.open(each.artifact), each.library) for each in made)
    cpus, gpus = (Reader(model).read(Stretch(tokens)).routed for model in models)
    assert len(cpus) == len(gpus) > 0
    for (logits, ids), (found, chosen) in zip(cpus, gpus, strict=True):
        assert error(found, logits) <= TOLERANCE
        assert np.array_equal(np.sort(chosen, axis=1), np.sort(ids, axis=1))


@pytest.mark.parametrize(
    ("quantization", "cache"),
    quick_first([("q4f16_1", "int8"), ("q0bf16", None), ("e4m3f32_1", None)], 0),
)
def test_quantized_logits_are_the_cpus(
    quantization: str, cache: str | None, driver: Callable[..., Driver], on_gpu: Callable[..., Driver]
) -> None:
    prompt = checkpoints.prompt("deepseek_v2_lite")
    made = (make("deepseek_v2_lite", quantization, cache) for make in (on_gpu, driver))
    found, expected = (each.prefill(prompt).logits for each in made)
    of_tokens = np.abs(found - expected).max(axis=-1) / expected.std()
    # Tensor cores round what they multiply to eleven bits, which chooses the other one of two experts nearly as good.
    # The cache's rounding to 8 bits, another one where a value differs by a little, moves logits by 0.44 itself.
    rounded = DEVICE == "cuda"
    assert np.quantile(of_tokens, 0.9) <= (0.1 if rounded and cache else 3e-2 if rounded or cache else 5e-3)
    assert rounded or of_tokens.max() <= 3e-2


@pytest.mark.full
def test_a_row_has_the_same_bits_whatever_runs_beside_it(on_gpu: Callable[..., Driver]) -> None:
    """Within the kernels of few rows."""
    prompt, chosen = checkpoints.prompt("deepseek_v2_lite")[:24], on_gpu("deepseek_v2_lite")
    by_chunks = {chunk: chosen.prefill(prompt, chunk).logits for chunk in (1, 3, 8)}
    assert np.array_equal(by_chunks[1], by_chunks[3]) and np.array_equal(by_chunks[1], by_chunks[8])


@pytest.mark.full
@needs_vulkan
def test_a_library_for_another_kind_of_device_runs_here(compiled: Callable[..., Any], tmp_path: Path) -> None:
    made, library = compiled("deepseek_v2_lite", device="vulkan"), tmp_path / "model.so"
    compile_model(Artifact.open(made.artifact).model_config, "q0f32", "vulkan", library, level="discrete-64")
    assert read_note(library)["metadata"]["level"] == "discrete-64"
    prompt, golden = checkpoints.prompt("deepseek_v2_lite"), checkpoints.golden("deepseek_v2_lite")
    chosen = dataclasses.replace(made, library=library).driver()
    for chunk in (None, 3):
        assert error(chosen.prefill(prompt, chunk).logits, golden["logits"]) <= TOLERANCE, chunk


def test_pages_may_lie_anywhere(on_gpu: Callable[..., Driver]) -> None:
    prompt, chosen = checkpoints.prompt("deepseek_v3"), on_gpu("deepseek_v3")
    schedule = [[(0, 0, len(prompt))]]
    first, second = (chosen.run([prompt], schedule, pages=seed)[0].logits for seed in (1, 2))
    assert np.array_equal(first, second)


@pytest.mark.full
def test_drafts_change_no_token() -> None:
    """Of the demo, one request after the other, and two whose rows together keep their bits."""
    prompts = ["Anna is in the kitchen. Anna goes to the park. Where is Anna?", "What is 34 + 57?"]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    found = []
    for speculative in ("off", 3):
        with LLM(device=DEVICE, speculative=speculative) as model:
            alone = [model.generate(prompt, params)[0].token_ids for prompt in prompts]
            together = [completion.token_ids for completion in model.generate(prompts, params)]
            found.append((alone, together))
            verified = sum(model.stats.drafted)
    assert verified > 20
    assert found[0] == found[1]


@pytest.mark.full
def test_weights_that_do_not_fit_are_refused_with_the_numbers(
    compiled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compiled("deepseek_v3", device=DEVICE)
    monkeypatch.setattr(driver_of(DEVICE), "free_memory", lambda: 1000)
    with pytest.raises(
        UserError, match=r"the model's weights take \d+\.\d\d GiB, and 0\.00 GiB of \w+'s memory are free"
    ):
        made.driver()


@needs_vulkan
@pytest.mark.full
def test_the_verbs(tmp_path: Path, compiled: Callable[..., Any]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stderr
        return done

    assert "vulkan" in run("devices").stdout
    told = next(device for device in json.loads(run("devices", "--json").stdout) if device["name"] == "vulkan")
    assert told["can_compile"] and told["can_run"]
    question = ("chat", "--prompt", "What is 3 + 4?", "--temperature", "0", "--max-tokens", "64", "--json")
    here = json.loads(run(*question, "--device", "vulkan").stdout)
    there = json.loads(run(*question, "--quantization", "q4f16_1+mlc").stdout)
    assert here["token_ids"] == there["token_ids"]
    made = compiled("deepseek_v2_lite", "q4f16_1")
    library = tmp_path / "model.so"
    run("compile", made.artifact, "--device", "vulkan", "-o", library)
    assert json.loads(run("inspect", library, "--json").stdout)["device"] == "vulkan"
    answer = run(
        "chat", made.artifact, "--model-lib", library, "--raw", "--prompt", "ab", "--max-tokens", "4", "--json"
    )
    assert len(json.loads(answer.stdout)["token_ids"]) <= 4
    for arguments, text in (
        (("--cache-dtype", "int4"), "cache dtype 'int4' is unknown; known: float32, float16, int8"),
        (("--quantization", "q4f16_1+vnni16"), "kernels of device vulkan read no weights stored as q4f16_1+vnni16"),
    ):
        refused = run("chat", "--device", "vulkan", "--prompt", "hi", *arguments, code=2)
        assert refused.stdout == "" and len(refused.stderr.strip().splitlines()) == 1
        assert text in refused.stderr


@needs_vulkan
def test_without_a_device_or_the_native_part_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlc_dsv3.compiler import devices
    from mlc_dsv3.runtime.memory import memory_of

    monkeypatch.setattr(native, "devices", list)
    with pytest.raises(UserError, match="there is no Vulkan device"):
        memory_of("vulkan")
    status = next(device for device in devices() if device.name == "vulkan")
    assert status.can_compile and not status.can_run and "apt install mesa-vulkan-drivers" in status.reason
    record = tmp_path / "native.json"
    record.write_text(json.dumps({"vulkan": ["vulkan_headers"]}))
    monkeypatch.setattr(native_parts, "_RECORD", record)
    monkeypatch.setattr(native, "_LIBRARY", Path("/nowhere"))
    with pytest.raises(UserError, match="install the Vulkan headers"):
        memory_of("vulkan")
    status = next(device for device in devices() if device.name == "vulkan")
    assert dataclasses.astuple(status)[1:3] == (False, False)
