"""What an answer must match, as requests state it: OpenAI's `response_format`, and vLLM's `guided_…` fields."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import ConfigDict, Field

from mlc_dsv3.runtime.grammar import Grammar
from mlc_dsv3.serve.errors import ApiError
from mlc_dsv3.serve.request import Items, Strict

_GUIDES = ("guided_json", "guided_regex", "guided_grammar", "guided_choice")


class JsonSchema(Strict):
    """A JSON schema and what it is called. Answers are always valid, whether or not `strict` asks for it."""

    model_config = ConfigDict(protected_namespaces=())

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


FormType = Literal["text", "json_object", "json_schema"]


def form_grammar(form: FormType, schema: dict[str, Any] | None, missing: ApiError) -> Grammar | None:
    """The grammar of a form; None for text. Raises `missing` for a form that needs a schema and has none."""
    if form == "text":
        return None
    if form == "json_object":
        return Grammar.json_object()
    if schema is None:
        raise missing
    return Grammar.json_schema(schema)


class ResponseFormat(Strict):
    """The form of the answer."""

    type: FormType
    json_schema: JsonSchema | None = None

    def grammar(self) -> Grammar | None:
        """The grammar that it comes to; None for text."""
        missing = ApiError(400, "response_format of the type json_schema needs json_schema", param="response_format")
        return form_grammar(self.type, self.json_schema and self.json_schema.json_schema, missing)


class AnswerForm(Strict):
    """The fields of a request that say what its answer must match. One of them may be given."""

    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | str | None = Field(None, description="A JSON schema.")
    guided_regex: str | None = Field(None, description="A regular expression in the syntax of Rust's regex crate.")
    guided_grammar: str | None = Field(None, description="A Lark grammar, in llguidance's variant.")
    guided_choice: Items[str] | None = Field(None, min_length=1, description="Texts, of which the answer is one.")

    def grammar(self) -> Grammar | None:
        """The grammar that they come to; None where none is given. UserError for one that is invalid."""
        given = [name for name in _GUIDES if getattr(self, name) is not None]
        wanted = None if self.response_format is None else self.response_format.grammar()
        names = given if wanted is None else ["response_format", *given]
        if len(names) > 1:
            raise ApiError(400, f"{names[0]} and {names[1]} are both given; leave one out", param=names[1])
        if self.guided_json is not None:
            return Grammar.json_schema(self.guided_json)
        if self.guided_regex is not None:
            return Grammar.regex(self.guided_regex)
        if self.guided_grammar is not None:
            return Grammar.lark(self.guided_grammar)
        if self.guided_choice is not None:
            return Grammar.lark("start: " + " | ".join(json.dumps(text) for text in self.guided_choice))
        return wanted
