"""`Grammar`: what an answer must match, as a JSON schema, a regular expression or a Lark grammar.

Only the text is checked here. `grammar_compiler` compiles it for a model's vocabulary when a request is prepared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlc_dsv3.errors import UserError

Reasoning = Literal["none", "begun", "own"]
Kind = Literal["JSON schema", "regular expression", "Lark grammar"]
# Where JSON allows white space: a model that likes it must not go on with it for ever.
JSON_WHITE_SPACE = r"[ ]|\n[ \t]{0,40}"
_MOST_CHARACTERS = 1 << 20
_MOST_NESTED = 100  # levels of a schema; llguidance's JSON parser stops at 128, and wraps the schema in a few


@dataclass(frozen=True)
class Grammar:
    """What a whole answer must match. Made by the functions below, which raise UserError for what is no such text.

    reasoning: what stands before: nothing; reasoning that the prompt has begun, up to </think>; or perhaps reasoning
    between tags of its own.
    other: a Lark grammar that the answer may match instead.
    The first compilation of a grammar finds what else is wrong with it: see `Engine.prepare`.
    """

    kind: Kind
    text: str
    reasoning: Reasoning = "none"
    other: str | None = None

    def behind_reasoning(self, *, begun: bool) -> Grammar:
        """The same for an answer whose reasoning is free. `begun`: the prompt ends with <think>."""
        return replace(self, reasoning="begun" if begun else "own")

    def or_lark(self, text: str) -> Grammar:
        """The same, or text that matches the rule `start` of a Lark grammar: calls of tools in place of an answer."""
        return replace(self, other=_checked("Lark grammar", text))

    @staticmethod
    def json_object() -> Grammar:
        """Any JSON object."""
        return Grammar.json_schema({"type": "object"})

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | str) -> Grammar:
        """A JSON value that is valid by `schema`, an object or its JSON text. Properties come in the schema's order."""
        try:
            value = json.loads(_short("JSON schema", schema)) if isinstance(schema, str) else dict(schema)
            text = _short("JSON schema", json.dumps(value, allow_nan=False))
        except RecursionError:
            raise UserError(f"the JSON schema nests deeper than {_MOST_NESTED} levels") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"the JSON schema is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f'the JSON schema is {text[:60]}; it must be a JSON object, such as {{"type": "object"}}')
        if _depth(value) > _MOST_NESTED:
            raise UserError(f"the JSON schema nests deeper than {_MOST_NESTED} levels")
        return Grammar("JSON schema", text)

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Text that matches all of `pattern`, in the syntax of Rust's regex crate: no look-around, no references."""
        return Grammar("regular expression", _checked("regular expression", pattern))

    @staticmethod
    def lark(text: str) -> Grammar:
        """Text that matches the rule `start` of a Lark grammar, in llguidance's variant.

        `<name>` in a rule is a token that answers do not show; tokens that they show are written as strings.
        """
        return Grammar("Lark grammar", _checked("Lark grammar", text))


def _checked(kind: Kind, text: object) -> str:
    if not isinstance(text, str) or not text:
        raise UserError(f"the {kind} is {text!r}; it must be text of at least one character")
    try:
        _short(kind, text).encode()
    except UnicodeEncodeError:
        raise UserError(f"the {kind} has half of a surrogate pair, which is no character") from None
    return text


def _short(kind: Kind, text: str) -> str:
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"the {kind} has {len(text)} characters; at most {_MOST_CHARACTERS} are accepted")
    return text


def _depth(value: object) -> int:
    """Levels of objects and lists; without recursion, as the value may nest deeper than Python's stack."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        depth += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth
