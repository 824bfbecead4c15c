"""How a chat template reads the tool calls in messages, found out by rendering one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlc_dsv3.errors import UserError

_NAME, _ARGUMENTS = "a_function", '{"an_argument": "its value"}'
_ID = f"functions.{_NAME}:0"


@dataclass(frozen=True)
class CallForm:
    """What calls have to be for a template.

    objects: arguments as an object, which the template writes parameter by parameter or as JSON, or as JSON text. None
    where the template shows no calls.
    empty_content: the content of a message that has calls alone; some templates tell such messages by None.
    """

    objects: bool | None = None
    empty_content: str | None = ""


def call_form(render: Callable[[Sequence[Mapping[str, Any]]], str]) -> CallForm:
    """The form that `render`, which raises UserError for what the template refuses, shows a call in."""

    def rendered(arguments: object, content: str | None) -> str:
        call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": arguments}}
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "content": "y", "name": _NAME, "tool_call_id": _ID},
        ]
        try:
            return render(messages).partition("y")[0]
        except UserError:
            return ""

    for content in ("", None):
        as_text, as_object = rendered(_ARGUMENTS, content), rendered(json.loads(_ARGUMENTS), content)
        if _NAME in as_text or _NAME in as_object:
            # Where the template takes both, text is what the model wrote; unless the template escapes it as a string,
            # or takes an object apart.
            whole = _ARGUMENTS in as_object or str(json.loads(_ARGUMENTS)) in as_object
            return CallForm(_NAME in as_object and not (_ARGUMENTS in as_text and whole), content)
    return CallForm()
