"""Answers without a session: one for `--prompt`, and one JSON line for each line of input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

from mlc_dsv3.chat.answer_stream import AnswerStream
from mlc_dsv3.chat.conversation import Conversation
from mlc_dsv3.chat.reply import ChatModel, Prompt, stream_reply
from mlc_dsv3.encodings import takes_everything
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

    `raw` and `drops` as for the session; a reply then tells of `dropped_turns`.
    """
    conversation = Conversation(system)
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            continue
        if raw:
            _write_json(out, {**stream_reply(model, text, params, _nowhere, options=options).as_json(), **about})
            continue
        question: Message = {"role": "user", "content": text}
        reply, dropped = conversation.ask(model, question, params, _nowhere, options=options or {}, drops=drops)
        conversation.add(question, reply.text)
        _write_json(out, {**reply.as_json(), **({"dropped_turns": dropped} if drops else {}), **about})


def _nowhere(text: str) -> None:
    pass


def _write_json(out: TextIO, content: dict[str, Any]) -> None:
    out.write(json.dumps(content, ensure_ascii=not takes_everything(out)) + "\n")
    out.flush()
