"""The context window and the size of the latent cache, from what a model needs and what a device has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.available import available_memory
from mlc_dsv3.runtime.capacity import MemoryNeed, Room, memory_need, plan_cache
from relax_model.config import parse_config

NEED = MemoryNeed(0, True, page=1000, page_size=16, cache_dtype="float16", working=lambda window: 0)
ON_GPU = replace(NEED, mapped=False)
LIMITS = {"longest": 100, "max_batch": 4}
GIB = 2**30
CPU, GPU = {"lanes": 16, "split": 240}, {"few": 8, "split": 128, "scratch": 1 << 28}
GLM = Path(__file__).parents[1] / "shapes" / "glm_4_7_flash.json"


@pytest.mark.parametrize(
    ("memory", "pages"),
    [(10**9, 28), (100_000, 25), (20_000, 7), (7_000, 7)],
    ids=["a window for each request", "a quarter of memory", "a window at least", "a window just fits"],
)
def test_the_default_grows_with_memory_between_one_window_and_one_for_each_request(memory: int, pages: int) -> None:
    plan = plan_cache(Room(), NEED, memory, **LIMITS)
    assert (plan.context_window, plan.num_pages, plan.remark) == (100, pages, None)


def test_the_default_window_is_what_fits_and_says_so() -> None:
    plan = plan_cache(Room(), ON_GPU, 6_999, **LIMITS)
    assert (plan.context_window, plan.num_pages) == (96, 6)
    assert "the context window is 96 of the model's 100 tokens" in plan.remark
    assert "--context-window N" in plan.remark
    assert "--cache-dtype int8" in plan.remark
    assert "\n" not in plan.remark


def test_a_window_that_is_asked_for_must_fit_and_the_message_tells_the_one_that_does() -> None:
    assert plan_cache(Room(context_window=96), ON_GPU, 6_999, **LIMITS).context_window == 96
    with pytest.raises(UserError, match=r"cache of 97 tokens takes .* --context-window 96 \(context_window=96 in Py"):
        plan_cache(Room(context_window=97), ON_GPU, 6_999, **LIMITS)


@pytest.mark.parametrize("window", [-1, 0, 1, 101, 2**70])
def test_a_window_beyond_the_model_is_refused(window: int) -> None:
    with pytest.raises(UserError, match=f"context_window is {window}; the model takes 2 to 100 tokens"):
        plan_cache(Room(context_window=window), NEED, 10**9, **LIMITS)


def test_a_smaller_preferred_window_is_the_default_and_nothing_is_said() -> None:
    plan = plan_cache(Room(), ON_GPU, 6_999, **LIMITS, preferred=50)
    assert (plan.context_window, plan.remark) == (50, None)


def test_cache_tokens_are_rounded_up_to_pages_and_hold_a_window() -> None:
    assert plan_cache(Room(cache_tokens=113), NEED, 10**9, **LIMITS).num_pages == 8
    assert plan_cache(Room(cache_tokens=50), NEED, 10**9, **LIMITS).context_window == 50
    with pytest.raises(UserError, match="cache_tokens is 99; the context window of 100 tokens must fit"):
        plan_cache(Room(context_window=100, cache_tokens=99), NEED, 10**9, **LIMITS)
    with pytest.raises(UserError, match="cache of 1000000 tokens"):
        plan_cache(Room(cache_tokens=1_000_000), NEED, 10**6, **LIMITS)


@pytest.mark.parametrize("field", ["context_window", "max_batch", "cache_tokens"])
@pytest.mark.parametrize("value", [2.5, "4096", True, float("nan"), [16]])
def test_what_is_no_whole_number_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{field} is .*; it takes a whole number"):
        Room(**{field: value})


@pytest.mark.parametrize("tokens", [-5, 0, 1])
def test_a_cache_without_room_for_a_token_to_generate_is_refused(tokens: int) -> None:
    with pytest.raises(UserError, match=f"cache_tokens is {tokens}; it must be at least 2"):
        Room(cache_tokens=tokens)


def test_what_a_step_needs_and_the_weights_leave_less_for_the_cache() -> None:
    need = replace(ON_GPU, weights=2_000, working=lambda window: 10 * window)
    assert plan_cache(Room(), need, 10_000, **LIMITS).context_window == 100
    assert plan_cache(Room(), need, 9_000, **LIMITS).context_window == 96
    assert plan_cache(Room(), need, 8_500, **LIMITS).context_window == 80


def test_weights_larger_than_a_gpus_memory_are_refused() -> None:
    with pytest.raises(UserError, match=r"beside 0\.93 GiB of weights, and 0\.50 GiB .* smaller model"):
        plan_cache(Room(), replace(ON_GPU, weights=10**9), GIB // 2, **LIMITS)


def test_mapped_weights_need_not_all_stay_in_memory() -> None:
    need = replace(NEED, weights=10**9)
    assert plan_cache(Room(), need, 28_000, **LIMITS).context_window == 100
    assert plan_cache(Room(), need, 24_000, **LIMITS).context_window == 96
    asked = plan_cache(Room(context_window=100), need, 24_000, **LIMITS)
    assert asked.num_pages == 7
    assert "weights will be read from the disk again and again" in asked.remark
    with pytest.raises(UserError, match="cache of 100 tokens"):
        plan_cache(Room(context_window=100), need, 6_999, **LIMITS)


def glm(mapped: bool, cache_dtype: str, max_batch: int = 32, device: str = "vulkan") -> MemoryNeed:
    return memory_need(
        parse_config(json.loads(GLM.read_text())),
        "q4f16_1+vnni16" if mapped else "q4f16_1",
        device="cpu" if mapped else device,
        attention_tile=CPU if mapped else GPU,
        cache_dtype=cache_dtype,
        page_size=16,
        max_rows=512,
        max_batch=max_batch,
    )


@pytest.mark.parametrize("mapped", [True, False], ids=["cpu", "gpu"])
def test_the_whole_window_of_glm_4_7_flash_starts_in_24_gib(mapped: bool) -> None:
    """17 GB of weights, and an 8-bit cache of 47 layers and the MTP layer's: what a machine of 24 GiB has free."""
    need = glm(mapped, "int8")
    assert need.weights == pytest.approx(17.2e9, rel=0.01)
    assert need.page == 48 * 16 * (576 + 18 * 2)
    plan = plan_cache(Room(context_window=202_752), need, 23 * GIB, longest=202_752, max_batch=32)
    assert (plan.context_window, plan.remark) == (202_752, None)
    assert plan_cache(Room(), need, 23 * GIB, longest=202_752, max_batch=32) == plan
    with pytest.raises(UserError):
        plan_cache(Room(), need, GIB // 16, longest=202_752, max_batch=32)


def test_a_longer_window_leaves_less_for_the_cache_by_what_attention_takes() -> None:
    """Parts of 15 rows by 240 tokens by 20 heads in two vectors of 16 lanes, each a latent of 512; and codes."""
    need = glm(True, "int8")
    parts, codes = 4 * 15 * 845 * 32 * (512 + 4), 202_752 * 16 * (32 + 8)
    assert need.working(202_752) - need.working(2) == pytest.approx(parts + codes, rel=0.01)


def test_cuda_reserves_in_powers_of_two_and_for_the_thread_that_records_graphs() -> None:
    cuda, vulkan = (glm(False, "int8", device=device).working for device in ("cuda", "vulkan"))
    assert cuda(16 * 1025) == cuda(16 * 2048)
    parts = 4 * 8 * (16 * 2048 // 128) * 20 * (512 + 4)
    assert cuda(16 * 2048) == vulkan(16 * 2048) + parts


def test_a_float16_cache_of_glm_4_7_flash_gets_what_fits_in_24_gib() -> None:
    plan = plan_cache(Room(), glm(False, "float16"), 23 * GIB, longest=202_752, max_batch=32)
    assert 100_000 < plan.context_window < 140_000
    assert "of the model's 202752 tokens" in plan.remark


def test_more_sequences_at_once_need_more_for_their_logits() -> None:
    few, many = (glm(False, "int8", batch).working(4096) for batch in (1, 32))
    assert many - few == 31 * 5 * 154_880 * 4


def test_this_machine_has_memory() -> None:
    assert available_memory() > 2**20


def machine(root: Path, groups: str, **files: str) -> Path:
    """A folder that looks like / of a machine with 1000 KiB available; `files` are control groups' by their path."""
    for path, text in {
        "proc/meminfo": "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n",
        "proc/self/cgroup": groups,
        **files,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "folder", "names"),
    [
        ("0::/outer/inner\n", "sys/fs/cgroup/outer/inner", ("memory.max", "memory.current", "inactive_file")),
        ("0::/outer/inner\n", "sys/fs/cgroup/outer", ("memory.max", "memory.current", "inactive_file")),
        ("0::/not/here\n", "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:memory:/job\n0::/\n",
            "sys/fs/cgroup/memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "of a group above", "of a container's mount", "version 1"],
)
def test_a_control_groups_limit_counts(tmp_path: Path, groups: str, folder: str, names: tuple[str, str, str]) -> None:
    limit, usage, reclaimable = names
    files = {
        f"{folder}/{limit}": "500000\n",
        f"{folder}/{usage}": "300000\n",
        f"{folder}/memory.stat": f"anon 7\n{reclaimable} 100000\n",
    }
    assert available_memory(machine(tmp_path, groups, **files)) == 300_000
    (tmp_path / folder / limit).write_text("max\n" if "max" in limit else f"{2**63 - 4096}\n")
    assert available_memory(tmp_path) == 1000 * 1024


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {
        f"sys/fs/cgroup/{name}": text
        for name, text in (("memory.max", "10"), ("memory.current", "20"), ("memory.stat", ""))
    }
    assert available_memory(machine(tmp_path, "0::/\n", **files)) == 0
