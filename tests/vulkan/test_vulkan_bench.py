"""What `bench` measures on a Vulkan device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from on_device import needs_vulkan

from mlc_dsv3.bench.device_bandwidth import DeviceBandwidthMeter
from mlc_dsv3.bench.launch_cost import Launches
from mlc_dsv3.bench.speed import SpeedBench, StepShape
from mlc_dsv3.compiler.targets import resolve_target
from mlc_dsv3.runtime.memory import memory_of
from mlc_dsv3.vulkan import native

pytestmark = needs_vulkan


@pytest.mark.full
def test_the_limit_is_the_devices() -> None:
    meter = DeviceBandwidthMeter(resolve_target("vulkan"), 1 << 24)
    first = meter.measure(1)
    assert 0.01 < first < 10_000
    assert meter.measure(1) >= first


def test_what_a_launch_costs_the_host_is_its_recording_alone() -> None:
    launches = Launches(resolve_target("vulkan"), batches=3)
    memory_of("vulkan").wait()  # for what other tests recorded
    before = native.statistics()
    assert 1e-7 < launches.seconds() < 1e-4
    after = native.statistics()
    assert after["launches"] - before["launches"] > 3000
    # One to wake the device, and one for all that was timed, when the next batch waits for it.
    assert after["submissions"] - before["submissions"] == 2 * 4 - 1


def test_prompts_steps_and_a_profile_with_launches(compiled: Callable[..., Any]) -> None:
    made = compiled("deepseek_v3", "q0f32", device="vulkan")
    bench = SpeedBench(made.artifact, made.library, 1, 1, 64)
    bench.fill()
    assert bench.prefill(3, 20) > 0
    assert bench.memory().cache_bytes > 0
    ((kernels),) = bench.profile_steps(30, [StepShape(1, 1)])
    assert sum(kernel.share for kernel in kernels) > 0.999
    by_operator = {kernel.operator: kernel for kernel in kernels}
    assert by_operator["absorbed_values"].launches == 2 * by_operator["absorbed_values"].calls
    assert all(kernel.launches >= kernel.calls for kernel in kernels)
