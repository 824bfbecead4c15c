"""The engine on a fake model: what a request gets does not depend on what else happens to be there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_model import BLOCK, FakeMetadata, FakeModel, FakeStream, answer, make_engine, run, text_of, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc_dsv3.errors import NotFiniteError, UserError
from mlc_dsv3.runtime.sampler import TokenHistory, sample
from mlc_dsv3.runtime.sampling import SamplingParams
from mlc_dsv3.runtime.speculation import speculation

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def greedy_reference(tokens: list[int], count: int) -> list[int]:
    model, sequence = FakeModel(), list(tokens)
    for _ in range(count):
        sequence.append(int(np.argmax(model.reference(sequence, len(tokens)))))
    return sequence[len(tokens) :]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 15, 16, 17, 31, 32, 33, 47, 48, 50, 70])
def test_greedy_tokens_are_the_models_own(length: int) -> None:
    engine = make_engine()
    request = engine.submit(prompt(length), GREEDY)
    assert tokens_of(run(engine)[request]) == greedy_reference(prompt(length), 12)


def test_a_batch_gives_what_each_request_gives_alone() -> None:
    lengths = [1, 40, 7, 66, 16, 33, 5, 50, 12]
    engine = make_engine()
    requests = {engine.submit(prompt(length, length), GREEDY): length for length in lengths}
    updates = run(engine)
    for request, length in requests.items():
        assert tokens_of(updates[request]) == greedy_reference(prompt(length, length), 12)


def test_requests_join_and_leave_while_others_run() -> None:
    model = FakeModel()
    engine = make_engine(model)
    long = engine.submit(prompt(5), SamplingParams(temperature=0, max_tokens=40))
    collected: dict[int, list] = {}
    short = []
    for step in range(60):
        if step % 6 == 3:
            short.append(engine.submit(prompt(9 + step, step), SamplingParams(temperature=0, max_tokens=4)))
        for update in engine.step():
            collected.setdefault(update.request_id, []).append(update)
    run(engine, collected)
    assert tokens_of(collected[long]) == greedy_reference(prompt(5), 40)
    for number, request in enumerate(short):
        step = 3 + 6 * number
        assert tokens_of(collected[request]) == greedy_reference(prompt(9 + step, step), 4)
    assert any(len(set(batch.sequences.tolist())) > 1 for batch in model.steps)
    assert any(len(batch.sequences) > len(set(batch.sequences.tolist())) > 1 for batch in model.steps), "never mixed"


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    engine = make_engine()
    early = engine.submit(prompt(3), SamplingParams(temperature=0, max_tokens=60))
    engine.step()
    engine.submit(prompt(80, 1), GREEDY)
    updates = [update for _ in range(8) for update in engine.step()]
    assert sum(update.request_id == early for update in updates) >= 4


@pytest.mark.parametrize("max_rows", [1, 2, 5, 16, 64])
def test_the_size_of_chunks_does_not_matter(max_rows: int) -> None:
    engine = make_engine(FakeModel(FakeMetadata(max_rows=max_rows)), max_batch=1)
    requests = {engine.submit(prompt(length, length), GREEDY): length for length in (2, 21, 55)}
    updates = run(engine)
    for request, length in requests.items():
        assert tokens_of(updates[request]) == greedy_reference(prompt(length, length), 12)


def test_a_model_without_the_expanded_form_is_never_asked_for_it() -> None:
    model = FakeModel(FakeMetadata(prefill_block=0))
    engine = make_engine(model)
    engine.submit(prompt(70), GREEDY)
    run(engine)
    assert not any(batch.expanded for batch in model.steps)


def test_a_chat_turn_reuses_the_turns_before() -> None:
    engine = make_engine()
    history = prompt(17)
    first = tokens_of(answer(engine, history, GREEDY))
    history += [*first, *prompt(2, 1)]  # ends before the second block is whole
    updates = answer(engine, history, GREEDY)
    assert tokens_of(updates) == greedy_reference(history, 12)
    # All but the last answer's last token, which was never fed, and the new turn.
    assert updates[-1].reused_tokens == 17 + 12 - 1
    assert updates[-1].prompt_tokens == len(history)
    assert engine.stats.reused_tokens == 28
    assert engine.stats.prefill_tokens == 17 + len(history) - 28
    assert engine.stats.decode_tokens == 2 * 11


def test_reuse_ends_where_a_fresh_run_takes_the_other_form() -> None:
    engine = make_engine()
    history = prompt(20)
    # Positions from 16 on are absorbed: the block is not whole in this prompt.
    first = tokens_of(answer(engine, history, GREEDY))
    history = [*history, *first, *prompt(8, 1)]
    updates = answer(engine, history, GREEDY)
    assert len(history) == 40
    assert updates[-1].reused_tokens == BLOCK
    assert tokens_of(updates) == greedy_reference(history, 12)


def test_the_same_prompt_again_computes_at_least_its_last_token() -> None:
    for length in (1, 4, 8, 10, 16, 32, 48):
        engine = make_engine()
        first = answer(engine, prompt(length), GREEDY)
        again = answer(engine, prompt(length), GREEDY)
        assert tokens_of(first) == tokens_of(again) == greedy_reference(prompt(length), 12)
        assert again[-1].reused_tokens < length
        # A prompt's last token is computed together with the whole of its expanded block.
        assert length < 8 or length == BLOCK or again[-1].reused_tokens > 0


def test_running_requests_share_a_prompts_pages() -> None:
    engine = make_engine()
    shared = prompt(14)
    first = engine.submit([*shared, 1], GREEDY)
    collected: dict[int, list] = {}
    while not (updates := engine.step()):
        pass
    collected[first] = updates
    second = engine.submit([*shared, 2], GREEDY)
    run(engine, collected)
    assert collected[second][-1].reused_tokens == 12
    assert tokens_of(collected[first]) == greedy_reference([*shared, 1], 12)
    assert tokens_of(collected[second]) == greedy_reference([*shared, 2], 12)


def test_old_prefixes_make_room_the_oldest_use_first() -> None:
    engine = make_engine(num_pages=24)
    for seed in range(6):
        answer(engine, prompt(24, seed), GREEDY)
        answer(engine, prompt(24, 0), GREEDY)
    recent = answer(engine, prompt(24, 0), GREEDY)
    old = answer(engine, prompt(24, 1), GREEDY)
    assert recent[-1].reused_tokens == 20  # the last page also holds the answer's beginning
    assert old[-1].reused_tokens == 0
    assert tokens_of(old) == greedy_reference(prompt(24, 1), 12)


def test_when_pages_run_out_the_youngest_waits_and_no_text_changes() -> None:
    engine = make_engine(num_pages=26)
    params = SamplingParams(temperature=0, max_tokens=50)
    requests = {engine.submit(prompt(20 + seed, seed), params): seed for seed in range(4)}
    updates = run(engine)
    assert engine.stats.preemptions > 0
    for request, seed in requests.items():
        assert tokens_of(updates[request]) == greedy_reference(prompt(20 + seed, seed), 50)


def test_what_came_first_ends_first_though_pages_run_out() -> None:
    engine = make_engine(num_pages=26)
    params = SamplingParams(temperature=0, max_tokens=40)
    requests = [engine.submit(prompt(20, seed), params) for seed in range(6)]
    finished = []
    while engine.has_work:
        finished += [update.request_id for update in engine.step() if update.finish_reason]
    assert engine.stats.preemptions > 0
    assert finished == requests


def test_a_prompt_that_does_not_fit_is_looked_up_again_only_when_something_changed() -> None:
    engine = make_engine(num_pages=26)
    prefix = engine._scheduler.prefix
    searched, find = [], prefix.find
    prefix.find = lambda tokens, length: searched.append(length) or find(tokens, length)
    running = engine.submit(prompt(40), SamplingParams(temperature=0, max_tokens=50))
    waiting = engine.submit(prompt(90, 1), SamplingParams(temperature=0, max_tokens=3))
    updates = run(engine)
    assert tokens_of(updates[running]) == greedy_reference(prompt(40), 50)
    assert tokens_of(updates[waiting]) == greedy_reference(prompt(90, 1), 3)
    assert searched.count(90) <= 3, "before the other's prompt is read, after it, and at its end"


def test_generation_ends_at_max_tokens_and_at_the_context_window() -> None:
    engine = make_engine()
    short = engine.submit(prompt(5), SamplingParams(temperature=0, max_tokens=1))
    long = engine.submit(prompt(5), SamplingParams(temperature=0))
    full = engine.submit(prompt(95), SamplingParams(temperature=0))
    updates = run(engine)
    assert [len(tokens_of(updates[request])) for request in (short, long, full)] == [1, 91, 1]
    assert {updates[request][-1].finish_reason for request in (short, long, full)} == {"length"}


def test_the_models_own_stop_token_ends_a_request_unless_ignored() -> None:
    expected = greedy_reference(prompt(6), 12)
    engine = make_engine(eos_token_ids=[expected[4]], detokenizer=FakeStream)
    stopped = engine.submit(prompt(6), GREEDY)
    ignoring = engine.submit(prompt(6), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    asked = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[expected[2]])
    own = engine.submit(prompt(6), asked)
    updates = run(engine)
    assert tokens_of(updates[stopped]) == expected[:5]
    assert text_of(updates[stopped]) == bytes(expected[:4]).decode(errors="replace")
    assert tokens_of(updates[ignoring]) == expected
    assert tokens_of(updates[own]) == expected[:3]
    assert [updates[request][-1].finish_reason for request in (stopped, ignoring, own)] == ["stop", "length", "stop"]


def ascii_engine():
    """An engine whose model speaks plain letters, so that stop strings can be picked from its text."""
    return make_engine(FakeModel(vocab_size=127), detokenizer=FakeStream)


def test_a_stop_string_across_tokens_is_cut_from_the_text() -> None:
    engine = ascii_engine()
    ids = [65, 66, 67]
    whole = text_of(answer(engine, ids, SamplingParams(temperature=0, max_tokens=20)))
    stop = whole[7:10]
    updates = answer(engine, ids, SamplingParams(temperature=0, max_tokens=20, stop=[stop, "never there"]))
    assert text_of(updates) == whole[: whole.index(stop)]
    assert len(tokens_of(updates)) == whole.index(stop) + 3
    assert updates[-1].finish_reason == "stop"


def test_text_held_back_comes_when_the_stop_string_does_not() -> None:
    engine = ascii_engine()
    ids = [65, 66, 67]
    whole = text_of(answer(engine, ids, SamplingParams(temperature=0, max_tokens=20)))
    stop = whole[17:] + "and more"
    updates = answer(engine, ids, SamplingParams(temperature=0, max_tokens=20, stop=stop))
    assert text_of(updates[:-1]) == whole[:17]
    assert text_of(updates) == whole
    assert updates[-1].finish_reason == "length"


def test_a_cancelled_request_ends_at_once_and_others_go_on() -> None:
    engine = make_engine(max_batch=2, detokenizer=FakeStream)
    running = engine.submit(prompt(20), GREEDY)
    other = engine.submit(prompt(21, 1), GREEDY)
    waiting = engine.submit(prompt(22, 2), SamplingParams(logprobs=2))
    collected: dict[int, list] = {}
    for _ in range(6):
        for update in engine.step():
            collected.setdefault(update.request_id, []).append(update)
    last = [engine.cancel(request) for request in (running, waiting)]
    assert [update.finish_reason for update in last] == ["cancelled", "cancelled"]
    assert last[1].logprobs == []
    assert engine.cancel(running) is None
    before = len(collected[running])
    run(engine, collected)
    assert len(collected[running]) == before
    assert waiting not in collected
    assert tokens_of(collected[other]) == greedy_reference(prompt(21, 1), 12)


def test_a_seed_gives_the_same_text_alone_and_in_a_batch() -> None:
    params = SamplingParams(temperature=1.3, top_p=0.95, seed=11, max_tokens=12)
    engine = make_engine()
    alone = tokens_of(answer(engine, prompt(18), params))
    others = [engine.submit(prompt(9, seed), SamplingParams(seed=seed, max_tokens=20)) for seed in range(3)]
    engine.step()
    batched = engine.submit(prompt(18), params)
    updates = run(engine)
    assert tokens_of(updates[batched]) == alone
    assert len({tuple(tokens_of(updates[request])) for request in others}) == 3
    changed = SamplingParams(temperature=1.3, top_p=0.95, seed=12, max_tokens=12)
    assert tokens_of(answer(engine, prompt(18), changed)) != alone


def test_without_a_seed_every_request_draws_anew() -> None:
    engine = make_engine()
    requests = [engine.submit(prompt(6), SamplingParams(max_tokens=12)) for _ in range(2)]
    updates = run(engine)
    assert tokens_of(updates[requests[0]]) != tokens_of(updates[requests[1]])


def test_penalties_follow_the_request_through_preemption() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=3.0, frequency_penalty=1.5, max_tokens=50)
    engine = make_engine(num_pages=26)
    requests = [engine.submit(prompt(20, seed), params) for seed in range(4)]
    updates = run(engine)
    assert engine.stats.preemptions > 0
    for seed, request in enumerate(requests):
        model, tokens, history = FakeModel(), prompt(20, seed), TokenHistory(prompt(20, seed))
        for position in range(20, 70):
            tokens.append(sample(model.reference(tokens, 20), params, history, 0, position))
            history.append(tokens[-1])
        assert tokens_of(updates[request]) == tokens[20:]


def test_logprobs_come_with_every_token() -> None:
    engine = make_engine()
    updates = answer(engine, prompt(6), SamplingParams(temperature=0, max_tokens=3, logprobs=2))
    model, sequence = FakeModel(), prompt(6)
    for update in updates:
        (entry,) = update.logprobs
        logits = model.reference(sequence, 6).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert entry.token_id == update.token_ids[0] == entry.top[0][0]
        assert len(entry.top) == 2
        assert entry.logprob == pytest.approx(expected.max(), abs=1e-5)
        sequence.append(update.token_ids[0])


@pytest.mark.parametrize("length", [1, 16, 33, 50, 96])
def test_logits_are_the_models_own_beside_running_requests(length: int) -> None:
    engine = make_engine(num_pages=30)
    running = [engine.submit(prompt(20, seed), SamplingParams(temperature=0, max_tokens=30)) for seed in range(3)]
    collected: dict[int, list] = {}
    for _ in range(12):
        for update in engine.step():
            collected.setdefault(update.request_id, []).append(update)
    tokens = prompt(length, 9)
    rows = engine.logits(tokens)
    expected = [FakeModel().reference(tokens[: end + 1], length) for end in range(length)]
    np.testing.assert_array_equal(rows, np.stack(expected))
    run(engine, collected)
    for seed, request in enumerate(running):
        assert tokens_of(collected[request]) == greedy_reference(prompt(20, seed), 30)


@pytest.mark.parametrize(
    ("tokens", "params", "words"),
    [
        ([], GREEDY, "the prompt is empty"),
        ([1, 256], GREEDY, "token id 256; the vocabulary has ids from 0 to 255"),
        ([1, -1], GREEDY, "token id -1"),
        ([1] * 96, GREEDY, "the prompt has 96 tokens; the context window of 96"),
        ([1], SamplingParams(logit_bias={300: 1.0}), "logit_bias has token id 300"),
        ([1], SamplingParams(stop_token_ids=[300]), "stop_token_ids has token id 300"),
        ([1], SamplingParams(stop="x"), "stop strings need a tokenizer"),
    ],
)
def test_what_the_model_cannot_take_is_refused(tokens: list[int], params: SamplingParams, words: str) -> None:
    engine = make_engine()
    with pytest.raises(UserError) as error:
        engine.submit(tokens, params)
    assert words in str(error.value)
    assert not engine.has_work


def test_logits_of_too_many_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="97 tokens; the context window is 96"):
        make_engine().logits([1] * 97)


@pytest.mark.parametrize("speculative", ["off", 3])
def test_a_request_whose_logits_are_not_finite_ends_alone(speculative: str | int) -> None:
    model = FakeModel()
    model.breaks_on = 250
    engine = make_engine(model, speculation=speculation(speculative, has_mtp=True))
    sound = engine.submit(prompt(3), replace(GREEDY, max_tokens=12))
    broken = engine.submit([*prompt(8), 250], replace(GREEDY, logprobs=1))
    updates = run(engine)
    assert tokens_of(updates[sound]) == greedy_reference(prompt(3), 12), "the other is as it was"
    (last,) = updates[broken]
    assert (last.finish_reason, last.token_ids, last.logprobs) == ("error", [], [])
    assert isinstance(last.error, NotFiniteError) and "position 8" in str(last.error)
    engine.clear_cache()
    assert engine.free_pages == 64


def test_what_a_failed_request_computed_is_not_reused() -> None:
    model = FakeModel()
    model.breaks_on = 250
    engine = make_engine(model)
    tokens = [*prompt(40), 250]
    answer(engine, tokens, GREEDY)
    (last,) = answer(engine, tokens, GREEDY)
    assert last.reused_tokens == 0


requests_of_a_schedule = st.lists(
    st.tuples(
        st.integers(0, 8),  # steps before it arrives
        st.integers(0, 2),  # which text its prompt is the beginning of
        st.integers(1, 60),  # length of the prompt
        st.integers(1, 30),  # tokens to generate
        st.none() | st.integers(0, 15),  # steps before it is cancelled
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    requests=requests_of_a_schedule,
    num_pages=st.integers(24, 60),
    max_batch=st.integers(1, 6),
    speculative=st.sampled_from(["off", "auto", 1, 2, 3, 4]),
)
def test_any_schedule_gives_the_references_tokens_and_returns_all_pages(
    requests: list[tuple], num_pages: int, max_batch: int, speculative: str | int
) -> None:
    chosen = speculation(speculative, has_mtp=True)
    engine = make_engine(num_pages=num_pages, max_batch=max_batch, eos_token_ids=[7], speculation=chosen)
    collected: dict[int, list] = {}
    cancels: dict[int, int] = {}
    expected = {}
    steps = 0

    def step() -> None:
        nonlocal steps
        for request in [request for request, at in cancels.items() if at <= steps]:
            update = engine.cancel(request)
            if update is not None:
                collected.setdefault(request, []).append(update)
            del cancels[request]
        for update in engine.step():
            collected.setdefault(update.request_id, []).append(update)
        steps += 1

    for pause, text, length, count, cancel_after in requests:
        for _ in range(pause):
            step()
        tokens = prompt(length, text)
        request = engine.submit(tokens, SamplingParams(temperature=0, max_tokens=count))
        whole = greedy_reference(tokens, min(count, 96 - length))
        expected[request] = whole[: whole.index(7) + 1] if 7 in whole else whole
        if cancel_after is not None:
            cancels[request] = steps + cancel_after
    while engine.has_work:
        step()
        assert steps < 3000, "no progress"
    for request, whole in expected.items():
        got = tokens_of(collected[request])
        finished = collected[request][-1].finish_reason
        assert got == (whole if finished != "cancelled" else whole[: len(got)])
        assert sum(update.finish_reason is not None for update in collected[request]) == 1
    engine.clear_cache()
    assert engine.free_pages == num_pages


@pytest.mark.parametrize("steps_before", [0, 2])
def test_requests_wait_for_the_pages_that_reading_a_prompt_has_borrowed(steps_before: int) -> None:
    engine = make_engine(num_pages=24)  # of 4 tokens
    tokens = [place % 7 for place in range(92)]
    request = engine.submit(tokens[:15], SamplingParams(temperature=0, max_tokens=9))
    for _ in range(steps_before):
        engine.step()
    reading = engine.prompt_logprobs(tokens, 0)
    next(reading)
    for _ in range(10):
        assert engine.step() == [], "one page is left"
    for _ in reading:
        pass
    assert run(engine)[request][-1].finish_reason == "length"
