"""A model after a fork: the child is told so at once, and the parent's goes on."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

from mlc_dsv3 import LLM, SamplingParams

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

QUESTION = [{"role": "user", "content": "What is 34 + 57?"}]
GREEDY = SamplingParams(temperature=0)
PATIENCE = 5.0  # seconds, of which a busy machine may take some


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as model:
        model.chat(QUESTION, GREEDY)
        yield model


def said_by(call: Callable[[], object], tell: Connection) -> None:
    try:
        tell.send(("returned", repr(call())))
    except Exception as error:
        tell.send((type(error).__name__, str(error)))


def in_a_child(call: Callable[[], object]) -> tuple[str, str]:
    """What becomes of `call` in a forked process."""
    hear, tell = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        said_by(call, tell)
        os._exit(0)
    try:
        assert hear.poll(PATIENCE), "the child hangs"
        return hear.recv()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


USES = {
    "chat": lambda model: model.chat(QUESTION, GREEDY),
    "generate": lambda model: model.generate([[1, 2, 3]], GREEDY),
    "stream": lambda model: list(model.stream(QUESTION, GREEDY)),
    "logits": lambda model: model.logits([1, 2, 3]),
    "another model": lambda model: LLM(),
    "the engine's thread": lambda model: model._loop.run(lambda: None),
}


@pytest.mark.parametrize("use", USES)
def test_a_model_used_in_a_child_is_an_error_by_name(llm: LLM, use: str) -> None:
    name, text = in_a_child(lambda: USES[use](llm))
    assert name == "ForkError"
    assert str(os.getpid()) in text
    assert "load it in the child" in text
    assert 'get_context("spawn")' in text
    assert "91" in llm.chat(QUESTION, GREEDY)[0].text, "the parent's model goes on"


def test_a_fork_while_another_thread_uses_the_model_does_not_wait_for_it(llm: LLM) -> None:
    release = threading.Event()
    busy = threading.Thread(target=lambda: llm._loop.run(release.wait))
    busy.start()
    with llm._loop._posting:
        assert in_a_child(lambda: llm.chat(QUESTION, GREEDY))[0] == "ForkError"
        assert in_a_child(llm.close) == ("returned", "None")
    release.set()
    busy.join()


def test_multiprocessings_fork_is_a_fork(llm: LLM) -> None:
    context = multiprocessing.get_context("fork")
    hear, tell = context.Pipe(duplex=False)
    process = context.Process(target=said_by, args=(lambda: llm.chat(QUESTION, GREEDY), tell))
    process.start()
    try:
        assert hear.poll(PATIENCE), "the child hangs"
        assert hear.recv()[0] == "ForkError"
    finally:
        process.kill()
        process.join()


def test_an_open_stream_of_the_parent_is_left_alone(llm: LLM) -> None:
    stream = llm.stream(QUESTION, GREEDY)
    first = next(stream)
    assert in_a_child(lambda: next(stream))[0] == "ForkError"
    assert in_a_child(stream.close) == ("returned", "None")
    assert "91" in first.text + "".join(update.text for update in stream)


def test_a_model_may_be_loaded_in_a_child_of_a_process_without_one() -> None:
    import subprocess

    script = (
        "import os, mlc_dsv3.runtime.llm\n"
        "if os.fork() == 0:\n"
        "    from mlc_dsv3 import LLM, SamplingParams\n"
        f"    print(LLM().chat({QUESTION}, SamplingParams(temperature=0))[0].text, flush=True)\n"
        "    os._exit(0)\n"
        "print(os.wait()[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout.splitlines()[-1], "91" in done.stdout) == ("0", True), done.stderr
