"""Values that JSON allows and no configuration has, and every place of a JSON document that they may stand in."""

from __future__ import annotations

import copy
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mlc_dsv3.errors import USER_ERRORS

EXAMPLES = settings(
    max_examples=100,
    deadline=timedelta(seconds=15),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
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


def draw_change(document: Any, data: st.DataObject) -> str:
    """The document as JSON with something hostile in some place."""
    path = data.draw(st.sampled_from(list(places(document))), label="place")
    return changed(document, path, data.draw(values, label="value"))


@contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """The file with other contents for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def check(read: Callable[[Path], object], folder: Path) -> str | None:
    """Reading `folder` works, or ends in one line, which is returned; it takes no gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = _refusal(read, folder)
    assert message is None or ("\n" not in message and len(message) < 5000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "memory grew by more than 1 GiB"
    return message


def _refusal(read: Callable[[Path], object], folder: Path) -> str | None:
    try:
        read(folder)
    except USER_ERRORS as error:
        return str(error)
    return None
