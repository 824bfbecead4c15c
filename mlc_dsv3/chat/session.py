"""The terminal session: messages and /commands in, streamed answers out, one conversation with a model.

Answers go to `out`; the header, the commands' replies and errors go to `notes`, so that a pipe gets answers alone.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from mlc_dsv3.chat.answer_stream import AnswerStream
from mlc_dsv3.chat.memory import memory_summary
from mlc_dsv3.chat.reply import ChatModel, Message, Prompt, Reply, Usage, stream_reply
from mlc_dsv3.errors import USER_ERRORS

if TYPE_CHECKING:
    from mlc_dsv3.experts.load import ExpertLoad

# Returns the next message, None at the end of input; raises KeyboardInterrupt for Ctrl-C on it.
ReadMessage = Callable[[], str | None]

HELP = """\
/help         this list
/stats        speed, tokens reused, memory, and how evenly the last 512 tokens load the experts
/reset        forget the conversation; the system prompt stays
/system TEXT  set the system prompt (without TEXT: remove it) and start over
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer; what was said of it stays in the conversation.
Alt-Enter, or a backslash at a line's end, begins a new line.
A space in front sends a message that begins with a slash."""
COMMANDS = ("/help", "/stats", "/reset", "/system", "/exit")


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
        out: TextIO | None = None,
        notes: TextIO | None = None,
        expert_load: Callable[[Prompt], tuple[int, ExpertLoad] | None] | None = None,
    ) -> None:
        """`raw` sends each message by itself and as it is, without a chat template. `expert_load` tells of how many
        tokens at a prompt's end, and how they load the experts, if there are any."""
        self._model = model
        self._read = read
        self._params = params
        self._system = system
        self._raw = raw
        self._out = AnswerStream(out or sys.stdout)
        self._notes = notes or sys.stderr
        self._turns: list[Message] = []
        self._last: Usage | None = None
        self._expert_load = expert_load
        self._read_last: Prompt | None = None  # what the model has read and said last
        self._start = Usage.of(model.stats)

    @property
    def messages(self) -> list[Message]:
        """The conversation as the next prompt begins."""
        return ([{"role": "system", "content": self._system}] if self._system else []) + self._turns

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
        prompt: Prompt = text if self._raw else [*self.messages, question]
        try:
            reply = stream_reply(self._model, prompt, self._params, self._out.write, stoppable=True)
        except USER_ERRORS as error:
            # The question is dropped: with it in the conversation every later prompt would fail too.
            self._note(f"error: {' '.join(str(error).split())}")
            return
        self._out.write("" if reply.text.endswith("\n") else "\n")
        self._remember(question, reply)

    def _remember(self, question: Message, reply: Reply) -> None:
        self._last = reply.usage
        if reply.finish_reason == "cancelled":
            self._note("(stopped)")
        elif reply.finish_reason == "length":
            self._note("(cut off by max_tokens or the context window)")
        if self._raw:
            self._read_last = question["content"] + reply.text
        elif reply.text:
            self._turns += [question, {"role": "assistant", "content": reply.text}]
            self._read_last = self.messages

    def _command(self, line: str) -> bool:
        """Obey one /command; False ends the session."""
        name, _, argument = line.strip().partition(" ")
        if name == "/help":
            self._note(HELP)
        elif name == "/stats":
            self._note(self._stats())
            self._note_experts()
        elif name == "/reset":
            self._start_over()
            self._note("the conversation starts over")
        elif name == "/system":
            self._system = argument.strip() or None
            self._start_over()
            self._note(f"system prompt {'set' if self._system else 'removed'}; the conversation starts over")
        elif name == "/exit":
            return False
        else:
            self._note(f"unknown command {name}; /help lists them")
        return True

    def _start_over(self) -> None:
        self._turns.clear()
        self._read_last = None

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
            found = self._expert_load(self._read_last)
        except USER_ERRORS as error:
            self._note(f"error: {' '.join(str(error).split())}")
            return
        except KeyboardInterrupt:
            self._note("(stopped)")
            return
        if found is not None:
            self._note(f"experts      {_describe_load(*found)}")

    def _note(self, text: str) -> None:
        print(text, file=self._notes, flush=True)


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
