"""Keeps control tokens that a message's text spells out apart from those that the chat template writes.

`Tokenizer.chat_prompt` breaks the ones in messages with a mark before it renders the template. Those that are whole
afterwards are the template's own; `Vocabulary.encode_chat` encodes them as tokens and everything else as text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

# Unicode reserves these code points for use inside a program; in text from outside they become U+FFFD.
BREAK = "\ufdd0"  # behind the first character of a control token in a message
OWN = "\ufdd1"  # before a control token that the template has written
_FOREIGN = {ord(mark): "\ufffd" for mark in (BREAK, OWN)}

THINK, END_OF_THINK = "<think>", "</think>"
# What answers are written with: text shows these even where a tokenizer's file calls them special.
SHOWN = frozenset(
    {
        *(THINK, END_OF_THINK, "｜DSML｜"),
        *(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")),
        *(f"<|tool_calls_section_{name}|>" for name in ("begin", "end")),
        *(f"<|tool_call_{name}|>" for name in ("begin", "argument_begin", "end")),
        *(f"<{slash}{name}>" for slash in ("", "/") for name in ("tool_call", "arg_key", "arg_value")),
    }
)
# Added tokens with one of these look like markup. Others, such as runs of spaces or a fine-tune's words, are text.
_BRACKETS = re.compile(r"[<>\[\]{}|｜◁▷]")
_TAG = re.compile(r"</?[a-z][a-z_]*>")


class ControlTokens:
    """The control tokens of one vocabulary."""

    def __init__(self, added: Mapping[str, bool]) -> None:
        """`added` maps each added token's text to whether the tokenizer's file says that it is special.

        The file's word is not enough: DeepSeek's <｜User｜> and <｜Assistant｜> are not special.
        """
        # A token of one character cannot be broken.
        self.names = frozenset(
            name for name, special in added.items() if len(name) > 1 and (special or _BRACKETS.search(name))
        )
        self._not_special = {name for name in self.names if not added[name]}
        self._breakers: dict[frozenset[str], _Breaker] = {}

    def spoken(self, prompt: str) -> frozenset[str]:
        """Those that an answer may hold: text of answers shows them, and templates look for some of them there.

        `prompt` is what the template makes of a user's message. A token that it has, other than a tag like <think>,
        begins or ends a turn, and no answer may hold it.
        """
        written = {name for name in self._whole.findall(prompt) if not _TAG.fullmatch(name)}
        return frozenset(self._not_special - written | {THINK, END_OF_THINK})

    def break_in(self, value: Any, kept: frozenset[str] = frozenset()) -> Any:
        """`value` (text, or JSON with text in it) with every control token broken but those that are `kept`."""
        if isinstance(value, str):
            if kept not in self._breakers:
                self._breakers[kept] = _Breaker(self.names - kept)
            return self._breakers[kept].broken(value.translate(_FOREIGN))
        if isinstance(value, Mapping):
            return {self.break_in(key): self.break_in(item, kept) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.break_in(item, kept) for item in value]
        return value

    def break_in_message(self, message: Mapping[str, Any], spoken: frozenset[str]) -> dict[str, Any]:
        """A message with the control tokens in all of its text broken; an assistant's words keep those `spoken`."""
        words = ("content", "reasoning_content", "reasoning") if message.get("role") == "assistant" else ()
        return {
            self.break_in(key): self.break_in(value, spoken if key in words else frozenset())
            for key, value in message.items()
        }

    @functools.cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.names, key=len, reverse=True))) or "(?!)")

    def mark_own(self, rendered: str) -> str:
        """Rendered text without breaks, and with OWN before each control token that is whole in it."""
        return self._whole.sub(lambda token: OWN + token[0], rendered).replace(BREAK, "")


class _Breaker:
    """Puts BREAK behind the first character of each of some tokens, wherever one begins in a text."""

    def __init__(self, names: Collection[str]) -> None:
        rests: dict[str, list[str]] = {}
        for name in sorted(names):
            rests.setdefault(name[0], []).append(re.escape(name[1:]))
        # One branch for each first character: Python then skips text that has none of them.
        branches = [f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()]
        self._begun = re.compile("|".join(branches) or "(?!)")
        self._prefixes = {name[:length] for name in names for length in range(1, len(name))}
        self._longest = max(map(len, names), default=0)

    def broken(self, text: str) -> str:
        text = self._begun.sub(lambda first: first[0] + BREAK, text)
        # A token whose beginning ends this text must not become whole with what the template writes next.
        end = len(text.rstrip())
        starts = [at for at in range(max(0, end - self._longest), end) if text[at:end] in self._prefixes]
        for at in reversed(starts):
            text = text[: at + 1] + BREAK + text[at + 1 :]
        return text
