"""A session's conversation, commands and interruptions, with a scripted model and scripted input."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scripted_model import ScriptedModel

from mlc_dsv3.chat.answer_stream import AnswerStream
from mlc_dsv3.chat.conversation import Conversation
from mlc_dsv3.chat.memory import memory_summary
from mlc_dsv3.chat.oneshot import answer_lines, answer_once
from mlc_dsv3.chat.reply import Usage, stream_reply
from mlc_dsv3.chat.session import COMMANDS, HELP, Session
from mlc_dsv3.chat.terminal import history_path, line_reader
from mlc_dsv3.errors import UserError
from mlc_dsv3.experts.load import ExpertLoad


def hold(text: str, model: ScriptedModel | None = None, **options: object) -> tuple[ScriptedModel, str, str]:
    """A session over lines of input; the model afterwards, the answers and the notes."""
    model, out, notes = model or ScriptedModel(), io.StringIO(), io.StringIO()
    Session(model, line_reader(io.StringIO(text)), out=out, notes=notes, **options).run("header")
    return model, out.getvalue(), notes.getvalue()


def test_answers_go_out_and_everything_else_to_the_notes() -> None:
    _, out, notes = hold("hello\n/stats\n")
    assert out == "You said: hello\n"
    assert notes.startswith("header\n")


def test_each_prompt_holds_the_conversation_so_far() -> None:
    model, _, _ = hold("one\ntwo\nthree\n", system="Be brief.")
    assert model.prompts[2] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "You said: one"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "You said: two"},
        {"role": "user", "content": "three"},
    ]


def test_reset_forgets_turns_and_keeps_the_system_prompt() -> None:
    model, _, _ = hold("one\n/reset\ntwo\n", system="Be brief.")
    assert [message["content"] for message in model.prompts[1]] == ["Be brief.", "two"]


def test_system_sets_the_prompt_and_starts_over() -> None:
    model, _, notes = hold("one\n/system Be kind.\ntwo\n/system\nthree\n")
    assert [message["content"] for message in model.prompts[1]] == ["Be kind.", "two"]
    assert [message["content"] for message in model.prompts[2]] == ["three"]
    assert "system prompt set" in notes
    assert "system prompt removed" in notes


def test_exit_ends_the_session() -> None:
    model, _, _ = hold("/exit\none\n")
    assert model.prompts == []


def test_help_names_every_command() -> None:
    _, _, notes = hold("/help\n")
    assert HELP in notes
    assert all(command in HELP for command in COMMANDS)


def test_unknown_commands_get_a_hint_and_are_not_sent() -> None:
    model, _, notes = hold("/halp me\n /usr is a folder\n")
    assert "unknown command /halp; /help lists them" in notes
    assert [prompt[-1]["content"] for prompt in model.prompts] == ["/usr is a folder"]


def test_stats_tell_speed_reuse_and_memory() -> None:
    _, _, notes = hold("one\ntwo more words\n/stats\n")
    last, session, memory = notes.splitlines()[1:]
    # The second prompt has three messages of ten tokens, of which the last is new.
    assert last == "last answer  prefill 10 tokens (100.0 tok/s), decode 4 tokens (50.0 tok/s), 20 tokens reused"
    assert session == "session      prefill 20 tokens (100.0 tok/s), decode 6 tokens (50.0 tok/s), 20 tokens reused"
    assert memory.startswith("memory       ")


def test_stats_tell_what_became_of_drafts() -> None:
    usage = Usage(decode_tokens=30, decode_steps=20, drafted=(20, 8, 0, 0), accepted=(8, 2, 0, 0), compared_seconds=2.0)
    assert (usage.tokens_per_step, (usage - usage).drafted, Usage().speed_up) == (1.5, (0, 0, 0, 0), None)
    model, notes = ScriptedModel(), io.StringIO()
    session = Session(model, line_reader(io.StringIO("/stats\n")), out=io.StringIO(), notes=notes)
    model.stats = SimpleNamespace(
        **{**asdict(replace(usage, plain_seconds=2.5)), "drafted": [20, 8, 0, 0], "accepted": [8, 2, 0, 0]}
    )
    session.run("header")
    told = "drafts       right 40% of 20, 25% of 8 by place, 1.50 tokens a step, 1.25 times as fast as without"
    assert told in notes.getvalue().splitlines()


def test_stats_tell_how_the_conversation_loads_the_experts() -> None:
    read: list[object] = []

    def load(prompt: object, **options: object) -> tuple[int, ExpertLoad]:
        read.append(prompt)
        return 12, ExpertLoad((1, 2), np.array([[6, 6, 6, 6], [0, 12, 6, 6]]))

    notes = io.StringIO()
    session = Session(
        ScriptedModel(),
        line_reader(io.StringIO("/stats\nhello\n/stats\n/reset\n/stats\n")),
        out=io.StringIO(),
        notes=notes,
        expert_load=load,
    )
    session.run()
    said = "experts      busiest of layers 1 to 2 above the mean by 0%, 100%; 1 of 8 idle, on the last 12 tokens"
    assert notes.getvalue().count(said) == notes.getvalue().count("experts") == 1
    conversation = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "You said: hello"}]
    assert read == [conversation]


@pytest.mark.parametrize(
    ("raised", "said"),
    [(UserError("the template\nwants a question"), "error: the template wants"), (KeyboardInterrupt(), "(stopped)")],
)
def test_a_session_goes_on_where_the_experts_load_is_not_to_be_had(raised: BaseException, said: str) -> None:
    def load(prompt: object, **options: object) -> None:
        raise raised

    _, out, notes = hold("hello\n/stats\nagain\n", expert_load=load)
    assert said in notes
    assert out == "You said: hello\nYou said: again\n"


def test_stats_before_the_first_answer_divide_by_nothing() -> None:
    _, _, notes = hold("/stats\n")
    assert "session      prefill 0 tokens, decode 0 tokens, 0 tokens reused" in notes


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    model, out, notes = hold("please interrupt this\ngo on\n")
    assert out == "You said: please interrupt\nYou said: go on\n"
    assert "(stopped)" in notes
    assert model.closed == 2
    assert model.prompts[1][1] == {"role": "assistant", "content": "You said: please interrupt"}


def test_a_refused_prompt_is_said_in_one_line_and_dropped() -> None:
    model, out, notes = hold("one\nfail\ntwo\n")
    assert "error: the prompt has 9 tokens; the context window of 8 has no room\n" in notes
    assert [message["content"] for message in model.prompts[2]] == ["one", "You said: one", "two"]
    assert out == "You said: one\nYou said: two\n"


def small(window: int) -> ScriptedModel:
    """A model whose context window has room for prompts of fewer than `window` tokens, at ten a message."""
    return ScriptedModel(context_window=window)


def contents(prompt: list[dict]) -> list[str]:
    return [message["content"] for message in prompt]


def test_a_conversation_that_outgrows_the_window_offers_drop_and_reset() -> None:
    # The system prompt, two turns and a question are 60 tokens.
    model, out, notes = hold("one\ntwo\nthree\n/drop\nthree\n", model=small(60), system="Be brief.")
    assert "error: the prompt has 60 tokens\n/drop forgets the oldest turns to make room, /reset all" in notes
    # With 45 tokens at most, one of the two turns goes.
    assert "the oldest turn is forgotten, 1 left\n" in notes
    assert contents(model.prompts[-1]) == ["Be brief.", "two", "You said: two", "three"]
    assert out == "You said: one\nYou said: two\nYou said: three\n"


def test_reset_is_as_good_a_way_on() -> None:
    model, _, _ = hold("one\ntwo\n/reset\ntwo\n", model=small(30), system="Be brief.")
    assert [contents(prompt) for prompt in model.prompts] == [["Be brief.", "one"], ["Be brief.", "two"]]


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_message_that_is_too_long_by_itself_is_said_to_be(system: str | None, drops: bool) -> None:
    model = small(60)
    count = model.prompt_tokens
    model.prompt_tokens = lambda prompt, **_: [0] * (len(count(prompt)) + 90 * (prompt[-1]["content"] == "long"))
    model, _, notes = hold("one\nlong\ntwo\n", model=model, system=system, drops=drops)
    said = "the message and the system prompt alone have 110" if system else "the message alone has 100"
    refusal = f"error: {said} tokens, and the context window of 60 has room for 59; send a shorter one, or start with"
    assert notes == f"header\n{refusal} a larger --context-window\n"
    assert contents(model.prompts[-1])[-3:] == ["one", "You said: one", "two"]


@pytest.mark.parametrize(("window", "dropped"), [(56, True), (57, False), (559, True), (560, False)])
def test_turns_are_dropped_where_there_is_no_room_for_an_answer(window: int, dropped: bool) -> None:
    # Five messages have 50 tokens or 496; an eighth of a small window is 7, and of a large one more than 64.
    conversation, model = Conversation(None), small(window)
    if window > 500:
        model.prompt_tokens = lambda messages, **_: [0] * (446 + 10 * len(messages))
    for name in "ab":
        conversation.add({"role": "user", "content": name}, {"role": "assistant", "content": name})
    question = {"role": "user", "content": "c"}
    reply, forgotten = conversation.ask(model, question, None, lambda text: None, options={}, drops=True)
    assert (forgotten > 0) == dropped
    assert reply.text == "You said: c"


def test_drop_forgets_as_many_turns_as_it_is_told() -> None:
    model, _, notes = hold("one\ntwo\nthree\n/drop 2\nfour\n/drop 9\nfive\n/drop\n/drop\n/drop x\n/drop 0\n")
    assert contents(model.prompts[3]) == ["three", "You said: three", "four"]
    assert contents(model.prompts[4]) == ["five"]
    assert notes.splitlines()[1:] == [
        "the oldest 2 turns are forgotten, 1 left",
        "the oldest 2 turns are forgotten, 0 left",
        "the oldest turn is forgotten, 0 left",
        "there is no turn to forget",
        "/drop takes how many turns to forget, not x",
        "/drop takes how many turns to forget, not 0",
    ]


def test_the_oldest_turns_are_dropped_by_themselves_where_that_is_asked_for() -> None:
    questions = [f"number {i}" for i in range(12)]
    model, _, notes = hold("\n".join(questions), model=small(100), system="Be brief.", drops=True)
    assert [contents(prompt)[-1] for prompt in model.prompts] == questions
    assert all(contents(prompt)[0] == "Be brief." for prompt in model.prompts)
    # A quarter of the window is freed at once: 10 + 20·turns + 10 tokens are at most 75 with two turns.
    assert [len(prompt) for prompt in model.prompts] == [2, 4, 6, 8, 6, 8, 6, 8, 6, 8, 6, 8]
    assert notes.count("(the oldest 2 turns are forgotten: the context window was full)") == 4


def test_no_turn_is_dropped_for_a_message_that_is_too_long_by_itself() -> None:
    conversation, model = Conversation(None), small(100)
    for name in "abc":
        conversation.add({"role": "user", "content": name}, {"role": "assistant", "content": name})
    model.prompt_tokens = lambda messages, **_: [0] * (200 if messages[-1]["content"] == "long" else 10 * len(messages))
    assert conversation.make_room(model, {}, {"role": "user", "content": "long"}) == 0
    assert len(conversation) == 3


def test_an_answer_that_fills_the_window_says_how_to_go_on() -> None:
    class Cut(ScriptedModel):
        def _updates(self, text: str, prompt_tokens: int):
            for update in super()._updates(text, prompt_tokens):
                update.finish_reason = update.finish_reason and "length"
                yield update

    # The prompt has ten tokens, the answer three.
    def said(window: int, **options: bool) -> str:
        return hold("one\n", model=Cut(context_window=window), **options)[2]

    full = "(cut off: the context window of 13 tokens is full; "
    assert f"{full}/drop makes room)" in said(13)
    assert f"{full}the next message drops the oldest turns)" in said(13, drops=True)
    assert f"{full}chat --context-window sets its size)" in said(13, raw=True)
    assert "(cut off by max_tokens)" in said(14)


def test_json_lines_drop_turns_on_request_and_say_so() -> None:
    out = io.StringIO()
    options = {"system": "Be brief.", "raw": False, "about": {}}
    answer_lines(small(50), io.StringIO("one\ntwo\nthree\n"), None, out, drops=True, **options)
    assert [json.loads(line)["dropped_turns"] for line in out.getvalue().splitlines()] == [0, 0, 2]
    out = io.StringIO()
    with pytest.raises(UserError, match="^1 of 3 messages was not answered$"):
        answer_lines(small(50), io.StringIO("one\ntwo\nthree\n"), None, out, **options)
    error = json.loads(out.getvalue().splitlines()[-1])["error"]
    assert error == "the prompt has 60 tokens; --on-overflow drop forgets the oldest turns to make room"


@pytest.mark.parametrize("raw", [False, True])
def test_json_lines_go_on_after_a_message_that_is_refused(raw: bool) -> None:
    model, out = ScriptedModel(), io.StringIO()
    with pytest.raises(UserError, match="^1 of 3 messages was not answered$"):
        lines = io.StringIO("one\nfail\nthree\n")
        answer_lines(model, lines, None, out, system=None, raw=raw, about={"device": "cpu"})
    replies = [json.loads(line) for line in out.getvalue().splitlines()]
    said = "the prompt has 9 tokens; the context window of 8 has no room"
    assert replies[1] == {"error": said, "device": "cpu"}
    assert [replies[0]["text"], replies[2]["text"]] == ["You said: one", "You said: three"]
    if not raw:
        assert contents(model.prompts[-1]) == ["one", "You said: one", "three"]


def test_thinking_is_switched_where_the_template_knows_it() -> None:
    given = {"template_kwargs": {"a": 1, "thinking": None}, "parse_control_tokens": True}
    model, _, notes = hold(
        "one\n/think on\ntwo\n/think off\nthree\n/think\n/think maybe\n", thinking=("thinking",), options=given
    )
    assert [options["template_kwargs"] for options in model.options] == [
        {"a": 1, "thinking": None},
        {"a": 1, "thinking": True},
        {"a": 1, "thinking": False},
    ]
    assert all(options["parse_control_tokens"] for options in model.options)
    assert "thinking is on from the next answer on" in notes
    assert notes.count("/think on lets the model think before it answers") == 2
    _, _, notes = hold("/think on\n")
    assert "the model's chat template has no switch for thinking" in notes


def test_what_the_template_says_for_the_model_is_shown_and_remembered() -> None:
    model, out, _ = hold("one\ntwo\n", model=ScriptedModel(opening="<think>\n"))
    assert out == "<think>\nYou said: one\n<think>\nYou said: two\n"
    assert model.prompts[1][1] == {"role": "assistant", "content": "", "reasoning_content": "You said: one"}
    once, as_json = io.StringIO(), io.StringIO()
    question = [{"role": "user", "content": "hello"}]
    answer_once(model, question, None, once)
    answer_once(model, question, None, as_json, json_about={})
    assert once.getvalue() == "<think>\nYou said: hello\n"
    answer = json.loads(as_json.getvalue())
    assert (answer["text"], answer["token_ids"]) == ("<think>\nYou said: hello", [100, 101, 102])


def test_a_switched_off_thought_is_not_shown_and_a_closed_one_not_part_of_the_content() -> None:
    model, out, _ = hold("one\ntwo\n", model=ScriptedModel(opening="</think>"))
    assert out == "You said: one\nYou said: two\n"
    model, out, _ = hold("a</think>b\ntwo\n", model=ScriptedModel(opening="<think>"))
    assert out.startswith("<think>You said: a</think>b\n")
    assert model.prompts[1][1] == {"role": "assistant", "content": "b", "reasoning_content": "You said: a"}


def test_a_refused_prompt_shows_no_opening() -> None:
    assert hold("fail\n", model=ScriptedModel(opening="<think>"))[1] == ""


def test_a_backslash_joins_lines_and_blank_lines_are_passed_over() -> None:
    model, _, _ = hold("\n  \nfirst\\\nsecond\r\nlast\\\n")
    assert [prompt[-1]["content"] for prompt in model.prompts] == ["first\nsecond", "last"]


def test_raw_messages_stand_alone_and_as_they_are() -> None:
    model, _, _ = hold(" once upon\na time\n", raw=True)
    assert model.prompts == [" once upon", "a time"]


def test_params_reach_the_model() -> None:
    model, _, _ = hold("one\n", params="these")
    assert model.params == ["these"]


def test_ctrl_c_at_the_prompt_says_how_to_leave() -> None:
    inputs = iter([KeyboardInterrupt(), None])

    def read() -> str | None:
        entry = next(inputs)
        if entry is not None:
            raise entry
        return None

    notes = io.StringIO()
    Session(ScriptedModel(), read, notes=notes).run()
    assert notes.getvalue() == "Ctrl-D or /exit leaves\n"


def test_one_answer_prints_only_itself() -> None:
    out = io.StringIO()
    answer_once(ScriptedModel(), [{"role": "user", "content": "hello"}], None, out)
    assert out.getvalue() == "You said: hello\n"


def test_one_answer_in_json_says_what_it_cost() -> None:
    out = io.StringIO()
    answer_once(ScriptedModel(), "größe now", None, out, json_about={"model": "m"})
    assert "größe" in out.getvalue()
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue()) == {
        "text": "You said: größe now",
        "token_ids": [100, 101, 102, 103],
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "reused_tokens": 0,
        "completion_tokens": 4,
        "prefill_seconds": 0.1,
        "prefill_tokens_per_second": 100.0,
        "decode_seconds": 0.06,
        "decode_tokens_per_second": 50.0,
        "tokens_per_step": 1.0,
        "drafted": [0, 0, 0, 0],
        "accepted": [0, 0, 0, 0],
        "speed_up": None,
        "model": "m",
    }


def test_ctrl_c_ends_a_one_shot_answer_and_cancels_it() -> None:
    model = ScriptedModel()
    with pytest.raises(KeyboardInterrupt):
        answer_once(model, "interrupt this", None, io.StringIO())
    assert model.closed == 1


def test_ctrl_c_between_two_pieces_cancels_the_request_at_once() -> None:
    def emit(text: str) -> None:
        raise KeyboardInterrupt

    model = ScriptedModel()
    reply = stream_reply(model, "hello", None, emit, stoppable=True)
    assert (reply.text, reply.finish_reason, model.closed) == ("You", "cancelled", 1)


def test_json_lines_hold_one_conversation() -> None:
    model, out = ScriptedModel(), io.StringIO()
    answer_lines(model, io.StringIO("one\n\ntwo\n"), None, out, system="Be brief.", raw=False, about={"device": "cpu"})
    replies = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [reply["text"] for reply in replies] == ["You said: one", "You said: two"]
    assert [message["role"] for message in model.prompts[1]] == ["system", "user", "assistant", "user"]
    assert replies[1]["reused_tokens"] == 30
    assert replies[1]["device"] == "cpu"


def test_a_terminal_sees_no_control_characters_and_a_pipe_sees_them_all() -> None:
    terminal, pipe = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    for out in (terminal, pipe):
        AnswerStream(out).write("a\x1b[2J\tb\r\n\x9bé")
    assert terminal.getvalue() == "a[2J\tb\né"
    assert pipe.getvalue() == "a\x1b[2J\tb\r\n\x9bé"


def test_memory_tells_own_from_mapped_and_falls_back_to_the_peak(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nRssAnon:\t  2048 kB\nRssFile:\t 3145728 kB\n")
    assert memory_summary(status) == "2 MiB own, 3.00 GiB mapped from files"
    assert memory_summary(tmp_path / "absent").endswith("at its peak")


def test_history_lies_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert history_path() == tmp_path / "mlc_dsv3" / "chat_history"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_path().is_relative_to(tmp_path)
    assert history_path().parent.name == "mlc_dsv3"
