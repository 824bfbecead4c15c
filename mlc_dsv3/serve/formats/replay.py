"""`CallStore`: the exact text of the calls that a model has made, for the prompts in which clients send them back."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mlc_dsv3.runtime.control_tokens import SHOWN
from mlc_dsv3.runtime.messages import argument_object
from mlc_dsv3.serve.formats.events import Event, Reader, ToolCallArguments, ToolCallEnd, ToolCallStart

_MOST_CHARACTERS = 1 << 24
_Key = tuple[str, str, str]


class CallStore:
    """Calls by id, name and arguments; the one unused for longest is forgotten first. Any thread may use it.

    A call that a client has changed is another one. Ids need not be unique: Kimi's are not.
    """

    def __init__(
        self, section_begin: str | None, call_begin: str, call_end: str, most_characters: int = _MOST_CHARACTERS
    ) -> None:
        """The markers are the format's: of all calls of an answer, where it has one, and of each call."""
        self.section_begin, self.call_begin, self.call_end = section_begin, call_begin, call_end
        self._most = most_characters
        self._texts: OrderedDict[_Key, str] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def add(self, identity: str, name: str, arguments: str, text: str) -> None:
        """Remember a call; not one that was cut off, or whose arguments spell out markers."""
        # In a prompt, markers in the text of an argument would act as markers.
        if not text or any(marker in arguments for marker in SHOWN) or len(text) > self._most:
            return
        key = _key(identity, name, argument_object(arguments))
        if key is None:
            return
        with self._lock:
            self._characters += len(text) - len(self._texts.pop(key, ""))
            self._texts[key] = text
            while self._characters > self._most:
                _, forgotten = self._texts.popitem(last=False)
                self._characters -= len(forgotten)

    def text_of(self, identity: str, name: str, arguments: Mapping[str, Any], *, is_first: bool) -> str | None:
        """The text of a call; None where it is not known, or stood elsewhere among its message's calls."""
        key = _key(identity, name, arguments)
        with self._lock:
            text = self._texts.get(key) if key else None
            if text is None:
                return None
            self._texts.move_to_end(key)
        begins = self.section_begin is None or text.lstrip().startswith(self.section_begin) == is_first
        return text if begins else None

    def place_of(self, rendered: str, start: int, end: int) -> tuple[int, int] | None:
        """Where the call is written that has the characters from `start` to `end` in its arguments, with the white
        space and the section's beginning in front of it."""
        begin, behind = rendered.rfind(self.call_begin, 0, start), rendered.find(self.call_end, end)
        if begin < 0 or behind < 0:
            return None
        before = rendered[:begin].rstrip()
        if self.section_begin and before.endswith(self.section_begin):
            before = before.removesuffix(self.section_begin).rstrip()
        return len(before), behind + len(self.call_end)

    def remembering(self, reader: Reader) -> Reader:
        """`reader`, whose calls come into the store."""
        return _Remembering(reader, self)


class _Remembering:
    def __init__(self, reader: Reader, store: CallStore) -> None:
        self._reader, self._store = reader, store
        self._call: ToolCallStart | None = None
        self._arguments: list[str] = []

    def feed(self, text: str) -> list[Event]:
        return self._remembered(self._reader.feed(text))

    def finish(self) -> list[Event]:
        return self._remembered(self._reader.finish())

    def _remembered(self, events: list[Event]) -> list[Event]:
        for event in events:
            match event:
                case ToolCallStart():
                    self._call, self._arguments = event, []
                case ToolCallArguments(_, text):
                    self._arguments.append(text)
                case ToolCallEnd(_, raw):
                    self._store.add(self._call.id, self._call.name, "".join(self._arguments), raw)
        return events


def _key(identity: str, name: str, arguments: Mapping[str, Any]) -> _Key | None:
    """None for arguments that nest too deep."""
    try:
        # JavaScript writes 1.0 as 1.
        value = json.loads(json.dumps(arguments), parse_float=_number)
        return identity, name, json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):
        return None


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() else value
