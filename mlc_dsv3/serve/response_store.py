"""Responses that later requests may go on from. They are in memory, and the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from mlc_dsv3.serve.errors import ApiError

Item = dict[str, Any]
_MOST_BYTES = 64 * 2**20
_MOST_RESPONSES = 10_000


@dataclass(frozen=True)
class StoredResponse:
    """A response, and what it was an answer to: the items of `previous` responses, and `input` behind them."""

    response: dict[str, Any]
    input: list[Item]
    previous: str | None
    size: int  # bytes, about


class ResponseStore:
    """For one thread."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._bytes = 0

    def put(self, stored: StoredResponse) -> None:
        """Keep a response; others go where there are too many."""
        self._stored[stored.response["id"]] = stored
        self._bytes += stored.size
        while self._bytes > _MOST_BYTES or len(self._stored) > _MOST_RESPONSES:
            self._bytes -= self._stored.popitem(last=False)[1].size

    def get(self, identity: str) -> StoredResponse:
        """One response. ApiError where it is not there, or not any more."""
        stored = self._stored.get(identity)
        if stored is None:
            raise ApiError(
                404,
                f"there is no response {identity[:100]!r}; responses are kept in memory, and the oldest are forgotten",
                code="response_not_found",
            )
        self._stored.move_to_end(identity)
        return stored

    def delete(self, identity: str) -> None:
        """Forget a response. ApiError as `get`."""
        self._bytes -= self.get(identity).size
        del self._stored[identity]

    def history(self, identity: str | None) -> list[Item]:
        """All items up to and with a response's output, the oldest first. ApiError where one of them is gone."""
        turns: list[list[Item]] = []
        while identity is not None:
            stored = self.get(identity)
            turns.append([*stored.input, *stored.response["output"]])
            identity = stored.previous
        return [item for turn in reversed(turns) for item in turn]
