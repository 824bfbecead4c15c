"""The engine on a device that samples by itself: what requests get, and what comes back to the host for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden import checkpoints
from on_device import needs_vulkan

from mlc_dsv3.errors import NotFiniteError
from mlc_dsv3.runtime.batch import Batch
from mlc_dsv3.runtime.engine import Engine
from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.runtime.grammar_compiler import GrammarCompiler
from mlc_dsv3.runtime.model import CompiledModel
from mlc_dsv3.runtime.sampler import Draw
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.speculation import Fixed, Speculation
from mlc_dsv3.runtime.tokenizer import Tokenizer
from mlc_dsv3.vulkan import native
from mlc_dsv3.weights import Artifact

pytestmark = needs_vulkan
NAME = "deepseek_v3"
LENGTH = 12
MIXED = [
    SamplingParams(temperature=0, max_tokens=LENGTH),
    SamplingParams(temperature=1.3, seed=7, max_tokens=LENGTH),
    SamplingParams(temperature=0.9, top_p=0.8, top_k=20, seed=8, max_tokens=LENGTH),
    SamplingParams(seed=9, logprobs=2, max_tokens=LENGTH),
    SamplingParams(min_p=0.2, seed=10, repetition_penalty=1.2, max_tokens=LENGTH),
    SamplingParams(seed=11, logit_bias={3: 4.0}, max_tokens=LENGTH),
]


class HostSampled(CompiledModel):
    """The same model with the host's sampler."""

    def sample(self, output: Any, draws: Sequence[Draw]) -> list[int]:
        return [draw.from_logits(output.logits) for draw in draws]


@pytest.fixture(scope="module")
def grammars(compiled: Callable[..., Any]) -> GrammarCompiler:
    pytest.importorskip("llguidance", reason="llguidance is missing: pip install llguidance")
    made = compiled(NAME, device="vulkan")
    return GrammarCompiler(Tokenizer.load(made.artifact), Artifact.open(made.artifact).model_config.vocab_size)


@pytest.fixture(scope="module")
def model(compiled: Callable[..., Any]) -> CompiledModel:
    made = compiled(NAME, device="vulkan")
    return CompiledModel.load(Artifact.open(made.artifact), made.library)


def texts(
    model: CompiledModel,
    wanted: Sequence[SamplingParams],
    grammars: GrammarCompiler | None = None,
    speculation: Speculation | None = None,
) -> list[tuple[list[int], list | None]]:
    """Ids and logprobs of requests that run together, each on a prompt of another length."""
    engine = Engine(model, num_pages=512, max_batch=8, context_window=256, grammars=grammars, speculation=speculation)
    prompt = checkpoints.prompt(NAME).tolist()
    requests = [engine.submit(prompt[: 5 + 3 * number], params) for number, params in enumerate(wanted)]
    tokens: dict[int, list] = {request: [] for request in requests}
    logprobs: dict[int, list] = {request: [] for request in requests}
    while engine.has_work:
        for update in engine.step():
            tokens[update.request_id] += update.token_ids
            logprobs[update.request_id] += [entry.token_id for entry in update.logprobs or []]
    return [(tokens[request], logprobs[request]) for request in requests]


def host_sampled(model: CompiledModel) -> CompiledModel:
    return HostSampled(model.library, model.config, model._parameters)


def test_the_library_has_the_function(model: CompiledModel) -> None:
    assert "sample" in model.metadata.functions


def test_requests_get_what_the_host_would_choose(model: CompiledModel) -> None:
    found = texts(model, MIXED)
    assert found == texts(host_sampled(model), MIXED)
    assert all(len(tokens) == LENGTH for tokens, _ in found)
    assert [bool(logprobs) for _, logprobs in found] == [params.logprobs is not None for params in MIXED]
    assert found[3][0] == found[3][1]


def test_a_request_does_not_notice_a_neighbour_that_wants_the_logits(model: CompiledModel) -> None:
    together = texts(model, MIXED[:4])
    assert together[:3] == texts(model, MIXED[:3])


def test_grammars_beside_requests_without_one(model: CompiledModel, grammars: GrammarCompiler) -> None:
    held = [replace(params, grammar=Grammar.regex("([a-f]|[0-9]{3})*")) for params in MIXED]
    wanted = [*MIXED[1:3], *held]
    found = texts(model, wanted, grammars)
    assert found == texts(host_sampled(model), wanted, grammars)
    assert found[:2] == texts(model, wanted[:2])
    assert found == texts(model, wanted, grammars, Fixed(2))


def moved(
    model: CompiledModel, params: Sequence[SamplingParams], grammars: GrammarCompiler | None = None
) -> tuple[int, int]:
    """Bytes that one decoding step brings to the host, and its submissions."""
    engine = Engine(model, num_pages=512, max_batch=8, context_window=256, grammars=grammars)
    for each in params:
        engine.submit(checkpoints.prompt(NAME)[:9].tolist(), each)
    engine.step()
    before = native.statistics()
    assert len(engine.step()) == len(params)
    after = native.statistics()
    return after["downloaded"] - before["downloaded"], after["submissions"] - before["submissions"]


def test_only_ids_come_back(model: CompiledModel) -> None:
    drawn = SamplingParams(temperature=0.8, top_p=0.9, top_k=30, min_p=0.01, max_tokens=9)
    assert moved(model, [SamplingParams(temperature=0, max_tokens=9)]) == (4, 2)
    assert moved(model, [drawn]) == (4, 2)
    assert moved(model, [drawn] * 3) == (12, 2)
    row = 4 * model.config.vocab_size
    told = SamplingParams(max_tokens=9, logprobs=1)
    assert moved(model, [told])[0] == row
    assert moved(model, [drawn, told])[0] == 4 + 2 * row


def test_of_a_grammar_only_ids_come_back(model: CompiledModel, grammars: GrammarCompiler) -> None:
    drawn = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=9)
    held = replace(drawn, grammar=Grammar.regex("[a-z]*"))
    assert moved(model, [held], grammars) == (4, 2)
    assert moved(model, [held, drawn, held], grammars)[0] == 12


def test_an_output_comes_to_the_host_when_it_is_read(model: CompiledModel) -> None:
    model.allocate_cache(8)
    batch = Batch(
        tokens=np.array([5, 6], np.int32),
        positions=np.array([0, 1], np.int32),
        sequences=np.zeros(2, np.int32),
        page_table=np.array([[3]], np.int32),
        wanted=np.array([1], np.int32),
    )
    before = native.statistics()["downloaded"]
    output = model.step(batch)
    assert model.sample(output, []) == []
    assert native.statistics()["downloaded"] == before
    assert output.logits.shape == (1, model.config.vocab_size)
    assert output.logits is output.logits
    assert native.statistics()["downloaded"] == before + 4 * model.config.vocab_size
    assert output.hidden.shape == (2, model.config.hidden_size)


def test_a_model_gone_wrong_is_an_error(model: CompiledModel) -> None:
    engine = Engine(model, num_pages=512, max_batch=8, context_window=256)
    engine.submit(checkpoints.prompt(NAME)[:9].tolist(), SamplingParams(temperature=0))
    engine.step()
    model.fill_caches(lambda shape: np.full(shape, np.nan, np.float32))
    (update,) = engine.step()
    assert isinstance(update.error, NotFiniteError) and "logits at position 9 are not finite" in str(update.error)
