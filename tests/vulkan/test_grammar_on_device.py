"""Grammars on a device: the mask goes there, and answers are valid and the same with and without drafts."""

from __future__ import annotations

import pytest
from json_schemas import answers_are_valid
from on_device import needs_vulkan

from mlc_dsv3 import LLM

pytestmark = needs_vulkan


@pytest.mark.full
def test_answers_are_valid_by_any_schema() -> None:
    with (
        LLM(device="vulkan", speculative="off", context_window=2048) as plain,
        LLM(device="vulkan", speculative="3", context_window=2048) as drafting,
    ):
        answers_are_valid([plain, drafting], examples=20)
