"""`LLM` with a model and a tokenizer that are no files: what users call, and what they are told when it is wrong."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from fake_model import FakeModel, FakeStream, text_of, tokens_of

import mlc_dsv3
from mlc_dsv3 import LLM, Completion, SamplingParams
from mlc_dsv3.errors import DeviceError, ForkError, NotFiniteError, UserError
from mlc_dsv3.runtime.async_llm import AsyncLLM
from mlc_dsv3.runtime.hub import model_folder
from mlc_dsv3.runtime.template import ChatTemplate

GREEDY = SamplingParams(temperature=0, max_tokens=8)


class FakeTokenizer:
    """Bytes are tokens; a conversation is its contents, one line each."""

    eos_token_ids = frozenset({10})
    hidden_tokens: ClassVar[dict[int, str]] = {}
    chat_template = ChatTemplate("{{ messages }}{{ tools }}{{ thinking }}", Path("chat_template.jinja"))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return [1, *text.encode()] if add_special_tokens else list(text.encode())

    def answer_opening(self, messages: list[dict], **options: object) -> str:
        self.options = options
        return "<think>"

    def chat_prompt(self, messages: list[dict], **options: object) -> list[int]:
        self.options = options
        return list("".join(f"{message['role'][0]}{message['content']}\n" for message in messages).encode())


class Parts:
    """What `LLM` finds in place of the compiler, the weights and the tokenizer."""

    def __init__(self) -> None:
        self.model = FakeModel(vocab_size=127)
        self.chat_config: dict = {}
        self.tokenizer: FakeTokenizer | UserError = FakeTokenizer()
        self.asked: tuple = ()
        self.made = 0

    def prepare(
        self,
        *asked: object,
        cache_dtype: str | None,
        ignore_config_fields: Collection[str],
        room: object,
        without_mtp: bool,
        before_making: Callable[[Path], None],
    ) -> SimpleNamespace:
        self.asked = (*asked, cache_dtype, ignore_config_fields, without_mtp)
        before_making(Path("folder"))
        self.made += 1
        artifact = SimpleNamespace(path=Path("artifact"), chat_config=self.chat_config)
        return SimpleNamespace(artifact=artifact, library=Path("library"), device="cpu")

    def load_tokenizer(self, folder: Path) -> FakeTokenizer:
        if isinstance(self.tokenizer, UserError):
            raise self.tokenizer
        return self.tokenizer


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    parts = Parts()
    modules = {
        "model": {"CompiledModel": SimpleNamespace(load=lambda artifact, library, *, threads: parts.model)},
        "prepare": {"prepare": parts.prepare},
        "tokenizer": {"Tokenizer": SimpleNamespace(load=parts.load_tokenizer)},
        "detokenizer": {"Detokenizer": lambda tokenizer: FakeStream()},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"mlc_dsv3.runtime.{name}", SimpleNamespace(**content))
    return parts


def test_completions_come_in_the_prompts_order_each_with_its_params(parts: Parts) -> None:
    llm = LLM(max_batch=2)
    params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (20, 1, 5)]
    together = llm.generate(["first", "second", [3, 4]], params)
    assert [len(completion.token_ids) for completion in together] == [20, 1, 5]
    alone = [LLM().generate(prompt, own)[0] for prompt, own in zip(["first", "second", [3, 4]], params, strict=True)]
    assert together == alone
    first = together[0]
    assert isinstance(first, Completion)
    assert first.text == bytes(first.token_ids).decode()
    assert (first.finish_reason, first.prompt_tokens, first.reused_tokens, first.logprobs) == ("length", 6, 0, None)
    assert llm.generate([]) == []


def test_chat_takes_one_conversation_or_several(parts: Parts) -> None:
    llm = LLM()
    one = [{"role": "user", "content": "hello"}]
    two = [*one, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "nothing"}]
    (single,) = llm.chat(one, GREEDY)
    several = llm.chat([one, two], GREEDY)
    assert single.token_ids == several[0].token_ids == llm.generate([list(b"uhello\n")], GREEDY)[0].token_ids
    assert several[1].prompt_tokens == len("uhello\nayes?\nunothing\n")


def test_logprobs_are_joined(parts: Parts) -> None:
    (completion,) = LLM().generate("x", SamplingParams(max_tokens=5, logprobs=3, ignore_eos=True))
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
    assert all(len(entry.top) == 3 for entry in completion.logprobs)


def test_a_stream_gives_the_completion_in_pieces(parts: Parts) -> None:
    llm = LLM()
    (completion,) = llm.generate("some words", GREEDY)
    updates = list(llm.stream("some words", GREEDY))
    assert 1 < len(updates) <= len(completion.token_ids)
    assert (text_of(updates), tokens_of(updates)) == (completion.text, completion.token_ids)
    message = [{"role": "user", "content": "hello"}]
    assert text_of(list(llm.stream(message, GREEDY))) == llm.chat(message, GREEDY)[0].text


def test_streams_may_be_read_in_turns(parts: Parts) -> None:
    llm = LLM()
    texts = [llm.generate(prompt, GREEDY)[0].text for prompt in ("one", "two")]
    both = itertools.zip_longest(llm.stream("one", GREEDY), llm.stream("two", GREEDY))
    pieces = [[update.text if update else "" for update in pair] for pair in both]
    assert ["".join(column) for column in zip(*pieces, strict=True)] == texts


def test_closing_a_stream_cancels_its_request(parts: Parts) -> None:
    llm = LLM()
    stream = llm.stream("some words", SamplingParams(ignore_eos=True))
    next(stream)
    stream.close()
    steps = len(parts.model.steps)
    llm.generate("x", SamplingParams(max_tokens=3, ignore_eos=True))
    assert {len(set(batch.sequences.tolist())) for batch in parts.model.steps[steps:]} == {1}
    llm.stream("never read", GREEDY)
    assert not llm._loop.run(lambda: llm._engine.has_work)


def test_threads_may_share_a_model(parts: Parts) -> None:
    llm = LLM()
    prompts = [f"prompt {number}" for number in range(6)]
    expected = [completion.text for completion in llm.generate(prompts, GREEDY)]
    got: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda own=prompt: got.update({own: llm.generate(own, GREEDY)[0].text}))
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [got[prompt] for prompt in prompts] == expected


def test_an_interrupt_ends_the_requests_and_the_model_stays_usable(parts: Parts) -> None:
    llm = LLM()
    (expected,) = llm.generate("some words", GREEDY)
    step, started = parts.model.step, []

    def interrupted(batch: object) -> object:
        started.append(batch)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(batch)

    parts.model.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["some words", "others"], SamplingParams(ignore_eos=True))
    assert not llm._loop.run(lambda: llm._engine.has_work)
    assert llm.generate("some words", GREEDY)[0].token_ids == expected.token_ids


def test_a_request_that_fails_leaves_the_others_their_answers(parts: Parts) -> None:
    llm = LLM()
    (expected,) = llm.generate("some words", GREEDY)
    parts.model.breaks_on = ord("!")
    words, broken = llm.generate(["some words", "no!"], GREEDY)
    assert words.token_ids == expected.token_ids
    assert (broken.finish_reason, broken.token_ids, broken.text) == ("error", [], "")
    assert "not finite" in str(broken.error)
    with pytest.raises(NotFiniteError):
        llm.generate("no!", GREEDY)
    with pytest.raises(NotFiniteError):
        list(llm.stream("no!", GREEDY))


def test_a_step_that_fails_ends_every_request_with_its_error(parts: Parts) -> None:
    llm = LLM()
    step = parts.model.step

    def fail(batch: object) -> None:
        raise MemoryError("the device has no memory left")

    parts.model.step = fail
    with pytest.raises(MemoryError, match="no memory left"):
        llm.generate(["one", "two"], GREEDY)
    parts.model.step = step
    assert llm.generate("one", GREEDY)[0].finish_reason == "length", "the next requests are served"


def test_a_device_that_was_lost_stays_lost(parts: Parts) -> None:
    llm = LLM()
    step = parts.model.step

    def fail(batch: object) -> None:
        raise DeviceError("the device was lost")

    parts.model.step = fail
    with pytest.raises(DeviceError):
        llm.generate("one", GREEDY)
    parts.model.step = step
    for ask in (lambda: llm.generate("one", GREEDY), lambda: list(llm.stream("one", GREEDY))):
        depths = []
        for _ in range(3):
            with pytest.raises(DeviceError, match="the device was lost") as raised:
                ask()
            depths.append(len(raised.traceback))
        assert len(set(depths)) == 1, "its traceback grows with each request"


def test_an_async_client_reads_several_streams_at_once(parts: Parts) -> None:
    async def answers() -> list[Completion]:
        async with AsyncLLM() as llm:
            return await asyncio.gather(*(llm.complete(prompt, GREEDY) for prompt in ("one", "two", "three")))

    expected = [LLM().generate(prompt, GREEDY)[0] for prompt in ("one", "two", "three")]
    assert asyncio.run(answers()) == expected


def test_an_async_client_may_go_on_in_another_event_loop(parts: Parts) -> None:
    llm = AsyncLLM()
    first, second = (asyncio.run(asyncio.wait_for(llm.complete("one", GREEDY), 20)) for _ in range(2))
    assert first.token_ids == second.token_ids
    llm.llm.close()


def test_an_async_stream_that_is_left_is_cancelled(parts: Parts) -> None:
    async def leave() -> bool:
        async with AsyncLLM() as llm:
            stream = llm.stream("some words", SamplingParams(ignore_eos=True, max_tokens=60))
            assert (await anext(stream)).finish_reason is None
            await stream.aclose()
            return llm.llm._loop.run(lambda: llm.llm._engine.has_work)

    assert asyncio.run(leave()) is False


def test_an_async_request_that_fails_raises_its_error(parts: Parts) -> None:
    async def fail() -> None:
        async with AsyncLLM() as llm:
            with pytest.raises(NotFiniteError):
                await llm.complete("no!", GREEDY)
            with pytest.raises(UserError, match="the prompt is empty"):
                await llm.complete("", GREEDY)
            assert (await llm.complete("yes", GREEDY)).finish_reason == "length"

    parts.model.breaks_on = ord("!")
    asyncio.run(fail())


def test_closing_ends_open_streams_as_cancelled(parts: Parts) -> None:
    llm = LLM()
    release = threading.Event()
    step = parts.model.step

    def slow(batch: object) -> object:
        release.wait(0.01)
        return step(batch)

    parts.model.step = slow
    stream = llm.stream("some words", SamplingParams(ignore_eos=True))
    next(stream)
    llm.close()
    assert list(stream)[-1].finish_reason == "cancelled"


def test_logits_have_a_row_for_each_token(parts: Parts) -> None:
    rows = LLM().logits([5, 6, 7])
    assert (rows.shape, rows.dtype) == ((3, 127), np.float32)
    np.testing.assert_array_equal(rows[1], parts.model.reference([5, 6], 3))


def test_the_checkpoints_own_parameters_are_the_default(parts: Parts) -> None:
    stated = {"temperature": 0.6, "top_p": 0.95, "top_k": 40, "min_p": 0.05}
    parts.chat_config = {**stated, "presence_penalty": None, "context_window_size": 50}
    llm = LLM()
    assert llm.default_params == SamplingParams(**stated)
    assert llm.context_window == 50
    parts.chat_config = {"context_window_size": 100_000}
    assert LLM().context_window == 96


def test_what_was_asked_for_reaches_the_preparation(parts: Parts) -> None:
    options = {"model_lib": "lib.so", "cache_dtype": "int8", "ignore_config_fields": ["odd"], "without_mtp": True}
    LLM("folder", quantization="q0f32", device="cpu", **options)
    assert parts.asked == ("folder", "q0f32", "cpu", Path("lib.so"), "int8", ["odd"], True)


def test_how_conversations_are_rendered_reaches_the_tokenizer(parts: Parts) -> None:
    llm, message = LLM(), [{"role": "user", "content": "hello"}]
    options = {"tools": [{"name": "f"}], "template_kwargs": {"thinking": True}, "parse_control_tokens": True}
    for call in (llm.chat, llm.stream, llm.prompt_tokens, llm.answer_opening):
        parts.tokenizer.options = None
        call(message, **options)
        assert parts.tokenizer.options == options
    assert llm.answer_opening(message) == "<think>"
    assert llm.answer_opening("hello") == ""
    for call in (llm.stream, llm.prompt_tokens):
        with pytest.raises(UserError, match="template_kwargs are for conversations"):
            call("hello", template_kwargs={"thinking": True})


def test_what_the_chat_template_does_not_read_is_refused(parts: Parts) -> None:
    parts.tokenizer.chat_template = ChatTemplate("{{ messages }}{{ thinking }}", Path("chat_template.jinja"))
    llm, message = LLM(), [{"role": "user", "content": "hello"}]
    for call in (llm.chat, llm.stream, llm.prompt_tokens):
        with pytest.raises(UserError, match="the chat template in chat_template.jinja does not read tools"):
            call(message, tools=[{"name": "f"}])
        with pytest.raises(UserError, match=r"has no variable x \(template_kwargs\)"):
            call(message, template_kwargs={"x": 1, "thinking": True})
        call(message, tools=[], template_kwargs={})


def test_an_empty_name_is_no_model() -> None:
    with pytest.raises(UserError, match="the model's name is empty"):
        model_folder("")


def test_the_tokenizer_is_checked_before_anything_is_made(parts: Parts) -> None:
    seen = []
    LLM(check_tokenizer=seen.append)
    assert (seen, parts.made) == ([parts.tokenizer], 1)
    parts.tokenizer = UserError("folder has no tokenizer")
    with pytest.raises(UserError, match="folder has no tokenizer"):
        LLM(check_tokenizer=seen.append)
    assert (len(seen), parts.made) == (1, 1)


def test_without_a_tokenizer_token_ids_still_work(parts: Parts) -> None:
    parts.tokenizer = UserError("artifact has no tokenizer")
    llm = LLM()
    (completion,) = llm.generate([[3, 4]], GREEDY)
    assert (len(completion.token_ids), completion.text) == (8, "")
    for call in (lambda: llm.generate("text"), lambda: llm.chat([{"role": "user", "content": "x"}])):
        with pytest.raises(UserError, match="artifact has no tokenizer"):
            call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda llm: llm.generate(""), "the prompt is empty"),
        (lambda llm: llm.generate(["fine", []]), "the prompt is empty"),
        (lambda llm: llm.chat([]), "at least one message"),
        (lambda llm: llm.chat([[]]), "the conversation is empty"),
        (lambda llm: llm.generate([[5, 127]]), "token id 127; the vocabulary has ids from 0 to 126"),
        (lambda llm: llm.generate("x" * 200), "the prompt has 201 tokens; the context window of 96"),
        (lambda llm: llm.stream("x" * 200), "the prompt has 201 tokens"),
        (lambda llm: llm.generate(["a", "b"], [GREEDY]), "2 prompts came with 1 sampling parameters"),
        (lambda llm: llm.logits([]), "token_ids is empty"),
        (lambda llm: LLM(context_window=97), "context_window is 97; the model takes 2 to 96 tokens"),
        (lambda llm: LLM(max_batch=17), "max_batch is 17; the library runs 1 to 16 requests at once"),
        (lambda llm: LLM(cache_tokens=95, context_window=96), "cache_tokens is 95; the context window of 96"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing_behind(parts: Parts, call: object, words: str) -> None:
    llm = LLM()
    with pytest.raises(UserError) as error:
        call(llm)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not llm._loop.run(lambda: llm._engine.has_work)


def test_a_closed_model_says_so(parts: Parts) -> None:
    with LLM() as llm:
        pass
    with pytest.raises(UserError, match="closed"):
        llm.generate("x")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mlc_dsv3; print([name for name in ('numpy', 'tvm', 'tokenizers') if name in sys.modules])"
    folder = Path(mlc_dsv3.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    names = ["Completion", "ForkError", "Grammar", "LLM", "SamplingParams", "UserError", "__version__"]
    assert sorted(mlc_dsv3.__all__) == names
    assert (mlc_dsv3.ForkError, mlc_dsv3.UserError) == (ForkError, UserError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mlc_dsv3.nothing


@pytest.mark.usefixtures("demo_is_made")
def test_prompts_whose_logprobs_are_wanted_at_once_share_the_cache() -> None:
    prompts = [[10 + (place * 7 + number) % 400 for place in range(1900)] for number in range(3)]
    with LLM(context_window=2048, cache_tokens=2048) as llm, ThreadPoolExecutor(3) as pool:
        assert [len(entries) for entries in pool.map(llm.prompt_logprobs, prompts)] == [1899] * 3
