"""Which JSON types a tool's schema allows a parameter to have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_MOST_REFERENCES = 16  # one behind the other; a schema may refer to itself


def value_types(schema: Mapping[str, Any], parameter: str) -> frozenset[str]:
    """The types that `schema`, an object's, allows for one of its parameters; all where it does not say."""
    properties = schema.get("properties")
    own = properties.get(parameter) if isinstance(properties, Mapping) else None
    return types_of(own, schema)


def types_of(schema: object, root: Mapping[str, Any]) -> frozenset[str]:
    """The types that `schema` allows, all where it does not say; references lead into `root`."""
    return _types(schema, root, _MOST_REFERENCES)


def resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that `schema` refers to, if it does, with its own fields over that one's."""
    for _ in range(_MOST_REFERENCES):
        if "$ref" not in schema:
            break
        referred = _referred(schema["$ref"], root)
        own = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**referred, **own} if isinstance(referred, Mapping) else own
    return schema


def json_type(value: object) -> str:
    """The narrowest name that JSON Schema has for a value's type."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    return {int: "integer", str: "string", dict: "object", list: "array"}[type(value)]


def _types(schema: object, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or depth == 0:
        return ALL_TYPES
    allowed = ALL_TYPES
    if "$ref" in schema:
        allowed &= _types(_referred(schema["$ref"], root), root, depth - 1)
    if "type" in schema:
        named = schema["type"]
        allowed &= _widened([named] if isinstance(named, str) else named if isinstance(named, list) else ALL_TYPES)
    if isinstance(schema.get("enum"), list):
        allowed &= _widened(map(json_type, schema["enum"]))
    if "const" in schema:
        allowed &= _widened([json_type(schema["const"])])
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list):
            allowed &= frozenset().union(*(_types(each, root, depth - 1) for each in schema[union]))
    for each in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        allowed &= _types(each, root, depth - 1)
    return allowed or ALL_TYPES


def _widened(types: Iterable[object]) -> frozenset[str]:
    """Known types, and with numbers the whole ones among them."""
    known = ALL_TYPES & {each for each in types if isinstance(each, str)}
    return known | {"integer"} if "number" in known else known


def _referred(reference: object, root: Mapping[str, Any]) -> object:
    found: object = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    for step in reference.removeprefix("#").removeprefix("/").split("/"):
        if step:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
