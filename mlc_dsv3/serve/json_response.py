"""JSON as bytes, cheaply and without failing on what a client may have sent."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_bytes(value: Any) -> bytes:
    """`value` as compact JSON in UTF-8; a lone surrogate, which UTF-8 cannot express, is written as JSON's escape."""
    return _encode(value).encode("utf-8", "backslashreplace")


class JsonResponse(Response):
    """A response whose content is JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json_bytes(content)
