"""Values that JSON allows and no configuration has, and every place of a JSON document that they may stand in."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ABSENT = object()
# As text, since some of it cannot be made by Python's own writer.
_HOSTILE = (
    *("Infinity", "-Infinity", "NaN", "1e999", "1e30", "-1e30", "0.5", "1e-30", "-0.0"),
    *("0", "-1", "1", "2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775809"),
    *("1" + "0" * 400, "null", "true", "false", '""', '"x"', '"1"', r'"\u0000"', r'"\ud800"', '"../x"', '"/"'),
    *("[]", "{}", "[[]]", "[{}]", "[null]", "[1, 0.5]", '["x"]', '{"a": 1}', '{"": []}', "[" * 90 + "]" * 90),
)
_LONG = 50  # a configuration has fewer fields, and a checkpoint more tensors
_MARK = "a hostile value stands here"

values = st.one_of(
    st.sampled_from([*_HOSTILE, ABSENT]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ).map(json.dumps),
)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field and element of a document, of whole objects and lists too.

    Of long ones only the first few elements, which are like the others.
    """
    if isinstance(document, (dict, list)):
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        for key in keys[: 3 if len(keys) > _LONG else None]:
            yield (*path, key)
            yield from places(document[key], (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> str:
    """The document as JSON, with `value` (JSON, or ABSENT) at `path`."""
    document = copy.deepcopy(document)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if value is ABSENT:
        del holder[path[-1]]
        return json.dumps(document)
    holder[path[-1]] = _MARK
    return json.dumps(document).replace(f'"{_MARK}"', value)
