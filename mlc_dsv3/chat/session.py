"""The terminal session: messages and /commands in, streamed answers out, one conversation with a model.

Answers go to `out`; the header, the commands' replies and errors go to `notes`, so that a pipe gets answers alone.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TextIO

from mlc_dsv3.chat.answer_stream import AnswerStream
from mlc_dsv3.chat.conversation import Conversation
from mlc_dsv3.chat.memory import memory_summary
from mlc_dsv3.chat.reply import ChatModel, Prompt, Reply, Usage, stream_reply
from mlc_dsv3.errors import USER_ERRORS, ContextWindowError, MessageTooLongError, escaped, one_line
from mlc_dsv3.runtime.messages import ChatOptions, Message

if TYPE_CHECKING:
    from mlc_dsv3.experts.load import ExpertLoad

# Returns the next message, None at the end of input; raises KeyboardInterrupt for Ctrl-C on it.
ReadMessage = Callable[[], str | None]

HELP = """\
/help         this list
/stats        speed, tokens reused, memory, and how evenly the last 512 tokens load the experts
/reset        forget the conversation; the system prompt stays
/drop [N]     forget the N oldest turns (without N: as many as free a quarter of the context window, at least one)
/think on|off let the model think before it answers, or not, where its chat template has a switch for it
/system TEXT  set the system prompt (without TEXT: remove it) and start over
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer; what was said of it stays in the conversation.
Alt-Enter, or a backslash at a line's end, begins a new line.
A space in front sends a message that begins with a slash."""
COMMANDS = ("/help", "/stats", "/reset", "/drop", "/think", "/system", "/exit")


class Session:
    """A conversation at the terminal; `run` holds it until the input ends."""

    def __init__(
        self,
        model: ChatModel,
        read: ReadMessage,
        *,
        params: Any = None,
        system: str | None = None,
        raw: bool = False,
        options: ChatOptions | None = None,
        thinking: Collection[str] = (),
        drops: bool = False,
        out: TextIO | None = None,
        notes: TextIO | None = None,
        expert_load: Callable[..., tuple[int, ExpertLoad] | None] | None = None,
    ) -> None:
        """`raw` sends each message by itself and as it is, without a chat template. `thinking` are the template's
        variables that switch thinking. With `drops` the oldest turns are forgotten where the context window has no room
        for an answer. `expert_load(prompt, **options)` tells of how many tokens at a prompt's end, and how they load
        the experts, if there are any."""
        self._model = model
        self._read = read
        self._params = params
        self._conversation = Conversation(system)
        self._raw = raw
        self._options: ChatOptions = options or {}
        self._thinking = tuple(thinking)
        self._drops = drops
        self.messages = self.unanswered = 0  # since the start, commands left out
        self._refused: Message | None = None  # the last question, where it did not fit in the context window
        self._out = AnswerStream(out or sys.stdout)
        self._notes = notes or sys.stderr
        self._last: Usage | None = None
        self._expert_load = expert_load
        self._read_last: Prompt | None = None  # what the model has read and said last
        self._start = Usage.of(model.stats)

    def run(self, *header: str) -> None:
        """Show the header's lines, then answer until the input ends or /exit."""
        for line in header:
            wrapped = self._notes.isatty()
            self._note(textwrap.fill(line, shutil.get_terminal_size().columns) if wrapped else line)
        going_on = True
        while going_on:
            try:
                text = self._read()
            except KeyboardInterrupt:
                self._note("Ctrl-D or /exit leaves")
                continue
            if text is None:
                return
            if text.startswith("/"):
                going_on = self._command(text)
            elif text.strip():
                self._answer(text.strip() if not self._raw else text)

    def _answer(self, text: str) -> None:
        question = {"role": "user", "content": text}
        self._refused = None
        self.messages += 1
        try:
            reply, dropped = self._reply(question)
        except ContextWindowError as error:
            self.unanswered += 1
            self._note_error(error)
            if len(self._conversation) and not isinstance(error, MessageTooLongError):
                self._refused = question
                self._note("/drop forgets the oldest turns to make room, /reset all of them; then ask again")
                self._note("(--on-overflow drop forgets them by itself)")
            return
        except USER_ERRORS as error:
            self.unanswered += 1
            # The question is dropped: with it in the conversation every later prompt would fail too.
            self._note_error(error)
            return
        except KeyboardInterrupt:  # before the answer began
            self._note("(stopped)")
            return
        self._out.write("" if reply.text.endswith("\n") else "\n")
        self._remember(question, reply)
        if dropped:
            self._note(f"({_forgotten(dropped)}: the context window was full)")

    def _reply(self, question: Message) -> tuple[Reply, int]:
        """The answer, and how many turns were forgotten for it."""
        if self._raw:
            return stream_reply(self._model, question["content"], self._params, self._out.write, stoppable=True), 0
        return self._conversation.ask(
            self._model,
            question,
            self._params,
            self._out.write,
            options=self._options,
            drops=self._drops,
            stoppable=True,
        )

    def _remember(self, question: Message, reply: Reply) -> None:
        self._last = reply.usage
        if reply.finish_reason == "cancelled":
            self._note("(stopped)")
        elif reply.finish_reason == "length" and self._is_full(reply):
            window = f"the context window of {self._model.context_window} tokens is full"
            self._note(f"(cut off: {window}; {self._way_on()})")
        elif reply.finish_reason == "length":
            self._note("(cut off by max_tokens)")
        if self._raw:
            self._read_last = question["content"] + reply.text
        elif reply.text:
            self._conversation.add(question, reply.message)
            self._read_last = self._conversation.messages

    def _way_on(self) -> str:
        """What makes room after an answer that filled the context window."""
        if self._raw:
            return "chat --context-window sets its size"
        return "the next message drops the oldest turns" if self._drops else "/drop makes room"

    def _is_full(self, reply: Reply) -> bool:
        return reply.prompt_tokens + len(reply.token_ids) >= self._model.context_window

    def _command(self, line: str) -> bool:
        """Obey one /command; False ends the session."""
        name, _, argument = line.strip().partition(" ")
        argument = argument.strip()
        if name == "/help":
            self._note(HELP)
        elif name == "/stats":
            self._note(self._stats())
            self._note_experts()
        elif name == "/reset":
            self._start_over()
            self._note("the conversation starts over")
        elif name == "/drop":
            self._drop(argument)
        elif name == "/think":
            self._think(argument)
        elif name == "/system":
            self._conversation.system = argument or None
            self._start_over()
            self._note(f"system prompt {'set' if argument else 'removed'}; the conversation starts over")
        elif name == "/exit":
            return False
        else:
            self._note(f"unknown command {name}; /help lists them")
        return True

    def _start_over(self) -> None:
        self._conversation.clear()
        self._read_last = self._refused = None

    def _drop(self, argument: str) -> None:
        if argument and not (argument.isdecimal() and int(argument)):
            self._note(f"/drop takes how many turns to forget, not {argument}")
            return
        if argument:
            dropped = self._conversation.drop(int(argument))
        else:
            dropped = self._conversation.make_room(self._model, self._options, self._refused)
            dropped = dropped or self._conversation.drop(1)
        self._read_last = None
        left = len(self._conversation)
        self._note(f"{_forgotten(dropped)}, {left} left" if dropped else "there is no turn to forget")

    def _think(self, argument: str) -> None:
        if not self._thinking:
            self._note("the model's chat template has no switch for thinking")
        elif argument not in ("on", "off"):
            self._note("/think on lets the model think before it answers, /think off does not")
        else:
            switched = dict.fromkeys(self._thinking, argument == "on")
            variables = self._options.get("template_kwargs") or {}
            self._options = {**self._options, "template_kwargs": {**variables, **switched}}
            self._note(f"thinking is {argument} from the next answer on")

    def _stats(self) -> str:
        lines = [] if self._last is None else [f"last answer  {_describe(self._last)}"]
        session = Usage.of(self._model.stats) - self._start
        lines.append(f"session      {_describe(session)}")
        if any(session.drafted):
            lines.append(f"drafts       {_describe_drafts(session)}")
        return "\n".join([*lines, f"memory       {memory_summary()}"])

    def _note_experts(self) -> None:
        if self._expert_load is None or self._read_last is None:
            return
        try:
            found = self._expert_load(self._read_last, **self._options)
        except USER_ERRORS as error:
            self._note_error(error)
            return
        except KeyboardInterrupt:
            self._note("(stopped)")
            return
        if found is not None:
            self._note(f"experts      {_describe_load(*found)}")

    def _note_error(self, error: Exception) -> None:
        self._note(f"error: {one_line(error)}")

    def _note(self, text: str) -> None:
        print(escaped(text), file=self._notes, flush=True)


def _forgotten(turns: int) -> str:
    return f"the oldest {'turn is' if turns == 1 else f'{turns} turns are'} forgotten"


def _describe(usage: Usage) -> str:
    return (
        f"prefill {usage.prefill_tokens} tokens{_speed(usage.prefill_tokens_per_second)}, "
        f"decode {usage.decode_tokens} tokens{_speed(usage.decode_tokens_per_second)}, "
        f"{usage.reused_tokens} tokens reused"
    )


def _describe_load(tokens: int, load: ExpertLoad) -> str:
    shares = ", ".join(f"{share:.0%}" for share in load.violation)
    idle, all_ = int((load.counts == 0).sum()), load.counts.size
    return (
        f"busiest of layers {load.layers[0]} to {load.layers[-1]} above the mean by {shares}; "
        f"{idle} of {all_} idle, on the last {tokens} tokens"
    )


def _describe_drafts(usage: Usage) -> str:
    both = zip(usage.accepted, usage.drafted, strict=True)
    shares = [f"{right / made:.0%} of {made}" for right, made in both if made]
    gain = "" if usage.speed_up is None else f", {usage.speed_up:.2f} times as fast as without"
    return f"right {', '.join(shares)} by place, {usage.tokens_per_step:.2f} tokens a step{gain}"


def _speed(tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f" ({tokens_per_second:.1f} tok/s)"
