"""Reading transcripts: all events of an answer, joined, however its text is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mlc_dsv3.serve.formats import (
    Content,
    Event,
    OutputFormat,
    Reasoning,
    Tool,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "where": {"type": "object"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = Tool("get_time", {"type": "object", "properties": {}, "additionalProperties": False})


def read(
    format: OutputFormat, pieces: Sequence[str], *, opening: str = "", tools: Sequence[Tool] = (WEATHER, TIME)
) -> list[Event]:
    """The joined events of an answer that comes in `pieces`. Ids that the reader made up are "made"."""
    reader = format.reader(opening=opening, tools=tools)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return _joined([*events, *reader.finish()])


def read_every_way(format: OutputFormat, text: str, **options: object) -> list[Event]:
    """The events of `text`, which have to be the same in single characters, and cut in two anywhere."""
    whole = read(format, [text], **options)
    assert read(format, list(text), **options) == whole
    for at in range(1, len(text)):
        assert read(format, [text[:at], text[at:]], **options) == whole, f"cut behind {text[:at][-20:]!r}"
    return whole


def _joined(events: Sequence[Event]) -> list[Event]:
    joined: list[Event] = []
    for event in events:
        match joined[-1] if joined else None, event:
            case (Reasoning(before), Reasoning(text)) | (Content(before), Content(text)):
                joined[-1] = type(event)(before + text)
            case ToolCallArguments(index, before), ToolCallArguments(same, text) if index == same:
                joined[-1] = ToolCallArguments(index, before + text)
            case _, ToolCallStart(_, identity, _) if identity.startswith("call_"):
                joined.append(dataclasses.replace(event, id="made"))
            case _:
                joined.append(event)
    return joined


def call(index: int, name: str, arguments: str, raw: str, identity: str = "made") -> list[Event]:
    """The events of one call."""
    pieces = [ToolCallArguments(index, arguments)] if arguments else []
    return [ToolCallStart(index, identity, name), *pieces, ToolCallEnd(index, raw)]
