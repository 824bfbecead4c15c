"""Answers without a session: one for `--prompt`, and one JSON line for each line of input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

from mlc_dsv3.chat.answer_stream import AnswerStream
from mlc_dsv3.chat.conversation import Conversation
from mlc_dsv3.chat.reply import ChatModel, Prompt, stream_reply
from mlc_dsv3.encodings import takes_everything
from mlc_dsv3.errors import USER_ERRORS, ContextWindowError, MessageTooLongError, UserError, one_line
from mlc_dsv3.runtime.messages import ChatOptions, Message


def answer_once(
    model: ChatModel,
    prompt: Prompt,
    params: Any,
    out: TextIO,
    *,
    options: ChatOptions | None = None,
    json_about: Mapping[str, Any] | None = None,
) -> None:
    """Write the answer to `prompt`: as it comes, or with `json_about` as one JSON object that has those fields too."""
    if json_about is not None:
        reply = stream_reply(model, prompt, params, _nowhere, options=options)
        _write_json(out, {**reply.as_json(), **json_about})
        return
    stream = AnswerStream(out)
    reply = stream_reply(model, prompt, params, stream.write, options=options)
    if not reply.text.endswith("\n"):
        stream.write("\n")


def answer_lines(
    model: ChatModel,
    lines: TextIO,
    params: Any,
    out: TextIO,
    *,
    system: str | None,
    raw: bool,
    about: Mapping[str, Any],
    options: ChatOptions | None = None,
    drops: bool = False,
) -> None:
    """One conversation: each line of `lines` is a message, each reply a line of JSON with `about` in it.

    `raw` and `drops` as for the session; a reply then tells of `dropped_turns`. A message that is refused has an
    `error` instead of a reply and is not remembered; UserError, after the last line, where there was one.
    """
    conversation = Conversation(system)

    def answer(text: str) -> dict[str, Any]:
        if raw:
            return stream_reply(model, text, params, _nowhere, options=options).as_json()
        question: Message = {"role": "user", "content": text}
        reply, dropped = conversation.ask(model, question, params, _nowhere, options=options or {}, drops=drops)
        conversation.add(question, reply.message)
        return {**reply.as_json(), **({"dropped_turns": dropped} if drops else {})}

    messages = unanswered = 0
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            continue
        messages += 1
        try:
            found = answer(text)
        except USER_ERRORS as error:
            unanswered += 1
            found = {"error": one_line(error)}
            if (
                len(conversation)
                and isinstance(error, ContextWindowError)
                and not isinstance(error, MessageTooLongError)
            ):
                found["error"] += "; --on-overflow drop forgets the oldest turns to make room"
        _write_json(out, {**found, **about})
    refuse_unanswered(unanswered, messages)


def refuse_unanswered(count: int, messages: int) -> None:
    """UserError where `count` of a pipe's messages had an error for an answer."""
    if count:
        raise UserError(f"{count} of {messages} messages {'was' if count == 1 else 'were'} not answered")


def _nowhere(text: str) -> None:
    pass


def _write_json(out: TextIO, content: dict[str, Any]) -> None:
    out.write(json.dumps(content, ensure_ascii=not takes_everything(out)) + "\n")
    out.flush()
