"""The validation layers watch everything that these tests do, where they are installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlc_dsv3.runtime.virtual_machine import load_runtime

# Before TVM itself, which would load its CUDA runtime and leave nothing to be counted.
load_runtime()
LAYER = "VK_LAYER_KHRONOS_validation"
_MANIFESTS = (Path("/usr/share/vulkan/explicit_layer.d"), Path("/etc/vulkan/explicit_layer.d"))
if any("khronos_validation" in path.name.lower() for folder in _MANIFESTS for path in folder.glob("*.json")):
    os.environ.setdefault("VK_INSTANCE_LAYERS", LAYER)


@pytest.fixture(scope="session", autouse=True)
def _validation_layers_say_nothing() -> Iterator[None]:
    yield
    from mlc_dsv3.vulkan import native

    if native.missing() is None:
        assert native.validation_messages() == ""
