"""Answers without a session: one for `--prompt`, and one JSON line for each line of input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

from mlc_dsv3.chat.answer_stream import AnswerStream
from mlc_dsv3.chat.reply import ChatModel, Message, Prompt, stream_reply


def answer_once(
    model: ChatModel, prompt: Prompt, params: Any, out: TextIO, *, json_about: Mapping[str, Any] | None = None
) -> None:
    """Write the answer to `prompt`: as it comes, or with `json_about` as one JSON object that has those fields too."""
    if json_about is not None:
        _write_json(out, {**stream_reply(model, prompt, params, _nowhere).as_json(), **json_about})
        return
    stream = AnswerStream(out)
    reply = stream_reply(model, prompt, params, stream.write)
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
) -> None:
    """One conversation: each line of `lines` is a message, each reply a line of JSON with `about` in it.

    `raw` as for the session.
    """
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            continue
        messages.append({"role": "user", "content": text})
        reply = stream_reply(model, text if raw else list(messages), params, _nowhere)
        messages.append({"role": "assistant", "content": reply.text})
        _write_json(out, {**reply.as_json(), **about})


def _nowhere(text: str) -> None:
    pass


def _write_json(out: TextIO, content: dict[str, Any]) -> None:
    out.write(json.dumps(content, ensure_ascii=False) + "\n")
    out.flush()
