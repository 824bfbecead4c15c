"""`ParameterCallGrammar`: calls whose arguments are parameters, each written by itself."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from mlc_dsv3.errors import UserError
from mlc_dsv3.serve.formats.call_grammar import CallGrammar
from mlc_dsv3.serve.formats.lark import Lark, json_value, literal, regex
from mlc_dsv3.serve.formats.tools import Tool
from mlc_dsv3.serve.formats.value_types import resolved, types_of

_ANYTHING = "(?s:.*)"
# Of a whole object's schema. Others hang parameters on one another, which a grammar of single ones cannot say.
_KNOWN = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_ANNOTATIONS = {"title", "description", "$schema", "$id", "$comment", "examples", "default", "strict"}
_DEFINITIONS = ("$defs", "definitions")
# How JSON of each type begins; text that begins so would be read as JSON.
_BEGINNINGS = {"array": r"\[", "object": r"\{", "integer": "0-9-", "number": "0-9-"}


class ParameterCallGrammar(CallGrammar):
    """Required parameters and any of the optional ones, in the schema's order."""

    end_of_value: str
    behind_value = ""  # and the marker

    @abstractmethod
    def head(self, key: str, is_string: bool) -> str:
        """What stands before a parameter's value."""

    def parameters(self, lark: Lark, tool: Tool) -> str:
        """An expression for a tool's parameters. UserError for a schema that says more than which there are."""
        try:
            return self._parameters(lark, tool)
        except (TypeError, ValueError, AttributeError, RecursionError):  # as of a pattern that is a number
            raise UserError(f"the parameters of the tool {tool.name} are no valid JSON schema") from None

    def _parameters(self, lark: Lark, tool: Tool) -> str:
        schema = resolved(tool.parameters, tool.parameters)
        unknown = sorted(schema.keys() - _KNOWN - _ANNOTATIONS)
        if unknown:
            raise UserError(
                f"the parameters of the tool {tool.name} have {unknown[0]} in their schema, which calls in this "
                'model\'s format cannot be held to; leave it out, or use tool_choice "auto"'
            )
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        keys = [*properties, *(key for key in required if key not in properties)]
        definitions = {name: tool.parameters[name] for name in _DEFINITIONS if name in tool.parameters}
        parameters = []
        for key in keys:
            own = properties.get(key)
            own = {**definitions, **own} if isinstance(own, Mapping) else definitions
            tail = f" {literal(self.behind_value)}" if self.behind_value else ""
            parameter = lark.rule(f"({self._parameter(lark, key, own)}){tail}")
            parameters.append(parameter if key in required else f"{parameter}?")
        return " ".join(parameters)

    def _parameter(self, lark: Lark, key: str, schema: Mapping[str, Any]) -> str:
        types = types_of(schema, schema)
        forms = []
        if "string" in types:
            body = _not_json(types) if self.reads_json(types) else regex(_ANYTHING)
            if condition := _string_terminal(schema, schema):
                # Text that fits nothing but a longer one may hold the marker. Without a condition it ends there.
                body += f" & ({condition}) & ~{regex(f'{_ANYTHING}{re.escape(self.end_of_value)}{_ANYTHING}')}"
            text = lark.rule(lark.terminal(body), f"suffix={literal(self.end_of_value)}")
            forms.append(f"{literal(self.head(key, True))} {text}")
        if others := sorted(types - {"string"}):
            if "string" in types:
                constrained = {key: value for key, value in schema.items() if key not in _DEFINITIONS}
                definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
                schema = {**definitions, "allOf": [constrained, {"type": others}]}
            forms.append(f"{literal(self.head(key, False))} {json_value(schema)} {literal(self.end_of_value)}")
        return " | ".join(forms)

    @abstractmethod
    def reads_json(self, types: frozenset[str]) -> bool:
        """Whether text that looks like JSON is read as JSON where a parameter may be of these types."""


def _not_json(types: frozenset[str]) -> str:
    """Text that does not begin as JSON of the types does."""
    begins = "".join(sorted({_BEGINNINGS[each] for each in types if each in _BEGINNINGS}))
    return regex(rf"(\s*[^\s{begins}]{_ANYTHING}|\s*)")


def _string_terminal(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str | None:
    """An expression for the strings that `schema` allows; None where that is any."""
    schema = resolved(schema, root)
    conditions = []
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        conditions.append(" | ".join(literal(value) for value in values if isinstance(value, str)))
    if "pattern" in schema:
        conditions.append(regex(_anchored(schema["pattern"])))
    if "minLength" in schema or "maxLength" in schema:
        conditions.append(regex(f"(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})"))
    for union in ("anyOf", "oneOf"):
        branches = [branch for branch in schema.get(union, []) if "string" in types_of(branch, root)]
        alternatives = [_string_terminal(branch, root) for branch in branches]
        if alternatives and None not in alternatives:
            conditions.append(" | ".join(f"({alternative})" for alternative in alternatives))
    conditions += [each for branch in schema.get("allOf", []) if (each := _string_terminal(branch, root))]
    return " & ".join(f"({condition})" for condition in conditions) or None


def _anchored(pattern: str) -> str:
    """A JSON schema's pattern, which is looked for anywhere, as one of the whole text."""
    first, last = pattern.startswith("^"), bool(re.search(r"(?<!\\)(\\\\)*\$\Z", pattern))
    inner = pattern[first : len(pattern) - last]
    return f"{'' if first else _ANYTHING}(?:{inner}){'' if last else _ANYTHING}"
