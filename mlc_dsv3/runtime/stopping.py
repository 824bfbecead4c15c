"""Stop strings in streamed text: cut at the first, and hold back what might become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Passes text through up to the first stop string that is completed, however the text is cut into pieces.

    `found` is that string, once there is one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self.found is not None

    def push(self, text: str) -> str:
        """What of the text so far can be shown now. After a stop string, nothing."""
        if self.stopped:
            return ""
        self._held += text
        # The stop string that is complete first, and the longest of several that end together.
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            shown, self._held = self._held[:at], ""
            return shown
        keep = undecided(self._held, self._stops)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        shown, self._held = self._held, ""
        return shown


def undecided(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of the markers and is not yet all of it."""
    longest = min(max(map(len, markers), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
