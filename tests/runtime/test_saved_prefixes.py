"""Prefixes that leave the cache for the disk and come back: what a request gets is the same."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_model import PAGE, FakeMetadata, FakeModel, answer, make_engine, run, tokens_of

from mlc_dsv3 import LLM, SamplingParams
from mlc_dsv3.runtime.page_store import PageStore
from mlc_dsv3.runtime.saved_prefixes import LEAST, SEGMENT

GREEDY = SamplingParams(temperature=0, max_tokens=3)
WINDOW = 2048


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


class Server:
    """An engine over a folder, as one process after the other has it."""

    def __init__(self, folder: Path, *, num_pages: int = WINDOW // PAGE, block: int = 16) -> None:
        self.model = FakeModel(FakeMetadata(context_window=WINDOW, prefill_block=block, max_rows=64))
        self.store = PageStore(folder, "model", most_bytes=1 << 30)
        self.engine = make_engine(self.model, num_pages=num_pages, store=self.store)

    def ask(self, tokens: list[int]) -> int:
        """Check the answer; returns how many tokens of the prompt were reused."""
        updates = answer(self.engine, tokens, GREEDY)
        expected = list(tokens)
        for _ in range(3):
            expected.append(int(np.argmax(self.model.reference(expected, len(tokens)))))
        assert tokens_of(updates) == expected[len(tokens) :]
        return updates[-1].reused_tokens

    def stop(self) -> None:
        self.engine.save_prefixes()


def test_a_prefix_comes_back_after_a_restart(tmp_path: Path) -> None:
    first = Server(tmp_path)
    assert first.ask(prompt(1500)) == 0
    first.stop()
    second = Server(tmp_path)
    assert second.ask([*prompt(1500)[:1400], *prompt(80, 1)]) == 1400 // SEGMENT * SEGMENT
    assert second.ask([*prompt(1500)[:1400], *prompt(80, 2)]) == 1400 // 16 * 16, "now it is in memory"


def test_what_is_evicted_comes_back(tmp_path: Path) -> None:
    server = Server(tmp_path)
    assert server.ask(prompt(1500)) == 0
    assert server.ask(prompt(1900, 1)) == 0  # the cache holds 2,048 tokens
    assert server.ask(prompt(1500)) == (1500 - 1) // SEGMENT * SEGMENT
    assert server.ask(prompt(1900, 1)) == (1900 - 1) // SEGMENT * SEGMENT


def test_a_prefix_that_is_partly_in_memory_is_completed_from_disk(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.ask(prompt(1500))
    server.ask(prompt(900, 1))  # evicts the end of the first, and no more
    assert server.ask(prompt(1500)) == (1500 - 1) // SEGMENT * SEGMENT


def test_short_prefixes_are_not_saved(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.ask(prompt(LEAST - 10))
    server.stop()
    assert server.store.stored_bytes == 0


def test_a_cut_inside_an_expanded_block_falls_back_to_its_beginning(tmp_path: Path) -> None:
    server = Server(tmp_path, block=512)
    server.ask(prompt(1500))
    server.stop()
    # The prompt's last whole block ends at 1,536: a fresh run computes none of it in the absorbed form.
    assert Server(tmp_path, block=512).ask([*prompt(1500)[:1400], *prompt(200, 1)]) == 1024


def test_a_damaged_segment_ends_the_reuse_and_changes_no_answer(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.ask(prompt(1500))
    server.stop()
    path = next(path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(b"x" * path.stat().st_size)
    again = Server(tmp_path)
    assert again.ask(prompt(1500)) < (1500 - 1) // SEGMENT * SEGMENT
    again.stop()
    assert Server(tmp_path).ask(prompt(1500)) == (1500 - 1) // SEGMENT * SEGMENT, "it is saved anew"


@pytest.mark.parametrize(("loaded", "reused"), [(0, 0), (3, 0), (8, 512), (9, 512), (20, 1280)])
def test_a_segment_that_is_gone_inside_an_expanded_block_falls_back_to_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: int, reused: int
) -> None:
    first = Server(tmp_path, block=512)
    first.ask(prompt(1500))
    first.stop()
    second = Server(tmp_path, block=512)
    load, calls = second.store.load, itertools.count()
    monkeypatch.setattr(second.store, "load", lambda *run: load(*run) if next(calls) < loaded else None)
    assert second.ask(prompt(1500)) == reused


def test_others_decode_while_a_prefix_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlc_dsv3.runtime.scheduler._MOST_LOADED", 1)  # a segment between two steps
    first = Server(tmp_path)
    first.ask(prompt(1500))
    first.stop()
    server = Server(tmp_path, num_pages=2 * WINDOW // PAGE)
    early = server.engine.submit(prompt(5, 1), SamplingParams(temperature=0, max_tokens=60))
    server.engine.step()
    late = server.engine.submit(prompt(1500), GREEDY)
    before = [update.request_id for _ in range(20) for update in server.engine.step()]
    assert before == [early] * 20
    updates = run(server.engine)
    assert updates[late][-1].reused_tokens == (1500 - 1) // SEGMENT * SEGMENT


def test_requests_that_begin_alike_read_the_beginning_once(tmp_path: Path) -> None:
    model = FakeModel(FakeMetadata(context_window=WINDOW, max_rows=64))
    engine = make_engine(model, num_pages=4 * WINDOW // PAGE)
    common = prompt(1001)
    requests = [engine.submit([*common, *prompt(9, 1 + number)], GREEDY) for number in range(6)]
    updates = run(engine)
    rows = sum(len(batch.tokens) for batch in model.steps)
    assert [updates[request][-1].reused_tokens for request in requests] == [0] + [992] * 5
    assert rows == 1010 + 5 * (1010 - 992) + 6 * 2


def test_a_request_that_waits_for_another_s_prefix_goes_on_when_that_is_cancelled() -> None:
    engine = make_engine(FakeModel(FakeMetadata(context_window=WINDOW, max_rows=64)), num_pages=4 * WINDOW // PAGE)
    first, second = (engine.submit([*prompt(1001), number], GREEDY) for number in range(2))
    engine.step()
    engine.cancel(first)
    assert run(engine)[second][-1].finish_reason == "length"


@pytest.mark.usefixtures("demo_is_made")
def test_the_demos_answer_is_the_same_bits_after_a_restart(tmp_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=2)
    tokens = np.random.default_rng(0).integers(10, 400, 1300).tolist()
    with LLM(context_window=2048) as llm:
        alone = llm.generate([tokens], params)[0]
    for reused in (0, 1300 // SEGMENT * SEGMENT):
        with LLM(context_window=2048, cache_dir=tmp_path) as llm:
            again = llm.generate([tokens], params)[0]
        assert again.reused_tokens == reused
        assert (again.token_ids, again.logprobs) == (alone.token_ids, alone.logprobs)


_KILLED = """
import os, signal, sys
from mlc_dsv3 import LLM, SamplingParams
llm = LLM(context_window=2048, cache_tokens=2048, cache_dir=sys.argv[1])
for seed in range(6):  # each evicts the one before, which is then being written
    llm.generate([[10 + (seed * 31 + place * 7) % 400 for place in range(1900)]], SamplingParams(max_tokens=1))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("demo_is_made")
def test_a_killed_process_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, tmp_path], env=os.environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tokens = [10 + place * 7 % 400 for place in range(1900)]
    with LLM(context_window=2048, cache_dir=tmp_path) as llm:
        reused = llm.generate([tokens], SamplingParams(temperature=0, max_tokens=4))[0]
    with LLM(context_window=2048) as llm:
        fresh = llm.generate([tokens], SamplingParams(temperature=0, max_tokens=4))[0]
    assert reused.token_ids == fresh.token_ids
    assert reused.reused_tokens >= LEAST
    assert not list(tmp_path.rglob("*.unfinished"))
