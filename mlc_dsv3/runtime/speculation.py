"""How many tokens to draft: a fixed number, or what pays, by the acceptance and the times measured while it runs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from mlc_dsv3.errors import UserError

MOST_DRAFTS = 4
# Steps of a number of drafts before it is judged; the first one still verifies what was drafted for another number.
_TRIAL = 4
_ENOUGH = 3
# Steps between trials of another number: the longer nothing changes, the rarer, and so many that the trial itself costs
# no more than this share of the time.
_FIRST_PAUSE, _LONGEST_PAUSE = 32, 1024
_TRIALS_SHARE = 0.01
_CLEARLY = 1.01  # a gain below is noise
# Drafts that are right before any was made, and how many times that counts.
_FIRST_SHARE, _GUESS = 0.7, 3.0
_REMEMBERED = 5  # times of a number of drafts: hardly more than those of its latest trial


class Speculation(Protocol):
    """Decides on the number of drafts, and is told what became of them."""

    most: int  # drafts at most

    def drafts(self, sequences: int) -> int:
        """How many tokens to draft for each of so many sequences."""

    def accepted(self, drafts: int, right: int) -> None:
        """Of so many drafts of a sequence, `right` were the model's own tokens."""

    def took(self, sequences: int, drafts: int, seconds: float) -> None:
        """A step that verified and made so many drafts for each of so many sequences, and nothing else, took this."""

    def plain_seconds(self, sequences: int) -> float | None:
        """What a step without drafts takes, where it is known."""


def speculation(wanted: str | int, *, has_mtp: bool) -> Speculation | None:
    """By its name: "auto", "off" or a number of drafts; None where nothing is drafted.

    UserError for another name, and for a number where the model has no MTP layer.
    """
    text = str(wanted)
    if text not in ("auto", "off", *map(str, range(1, MOST_DRAFTS + 1))):
        raise UserError(f"speculative is {wanted!r}; it is auto, off, or 1 to {MOST_DRAFTS} drafted tokens")
    if text == "off" or (text == "auto" and not has_mtp):
        return None
    if not has_mtp:
        raise UserError("this model has no multi-token prediction layer to draft with; leave speculative out")
    return Auto() if text == "auto" else Fixed(int(text))


class Fixed:
    """The same number always."""

    def __init__(self, drafts: int) -> None:
        self.most = drafts

    def drafts(self, sequences: int) -> int:
        """See `Speculation`."""
        return self.most

    def accepted(self, drafts: int, right: int) -> None:
        """See `Speculation`."""

    def took(self, sequences: int, drafts: int, seconds: float) -> None:
        """See `Speculation`."""

    def plain_seconds(self, sequences: int) -> float | None:
        """See `Speculation`; there is never such a step."""
        return None


class Auto:
    """The number that gives the most tokens a second: expected tokens of a step over its time, for each number of
    sequences. Where none pays nothing is drafted, but for a trial now and then."""

    def __init__(self) -> None:
        self.most = MOST_DRAFTS
        self._acceptance = [_Share() for _ in range(MOST_DRAFTS)]
        self._regimes: dict[int, _Regime] = {}

    def drafts(self, sequences: int) -> int:
        """See `Speculation`."""
        return self._regime(sequences).next(self.expected_tokens)

    def accepted(self, drafts: int, right: int) -> None:
        """See `Speculation`."""
        for place in range(min(drafts, right + 1)):
            self._acceptance[place].add(place < right)

    def took(self, sequences: int, drafts: int, seconds: float) -> None:
        """See `Speculation`."""
        self._regime(sequences).times[drafts].append(seconds)

    def plain_seconds(self, sequences: int) -> float | None:
        """See `Speculation`."""
        seconds = self._regime(sequences).seconds(0)
        return seconds if seconds < math.inf else None

    def expected_tokens(self) -> list[float]:
        """Of a step, by the number of drafts: one, and each draft that is right along with all before it."""
        tokens, chance, share = [1.0], 1.0, _FIRST_SHARE
        for acceptance in self._acceptance:
            # A later draft, where little is known of it, is right as often as the one before.
            share = acceptance.value(share)
            chance *= share
            tokens.append(tokens[-1] + chance)
        return tokens

    def _regime(self, sequences: int) -> _Regime:
        # Times grow smoothly with the number of sequences, so that powers of two are told apart.
        power = (sequences - 1).bit_length()
        if power not in self._regimes:
            self._regimes[power] = _Regime()
        return self._regimes[power]


class _Share:
    """How often something was so, the last hundred times counting most."""

    def __init__(self) -> None:
        self._right, self._weight = 0.0, 0.0

    def value(self, guess: float) -> float:
        """The share, for which `guess` counts as much as a few times."""
        return (self._right + _GUESS * guess) / (self._weight + _GUESS)

    def add(self, right: bool) -> None:
        kept = 0.99
        self._right, self._weight = kept * self._right + right, kept * self._weight + 1


class _Regime:
    """The choice for one number of sequences."""

    def __init__(self) -> None:
        self.times: list[deque[float]] = [deque(maxlen=_REMEMBERED) for _ in range(MOST_DRAFTS + 1)]
        self._best = self._now = 1
        self._left, self._pause = _TRIAL, _FIRST_PAUSE
        self._tried = 0

    def next(self, expected_tokens: Callable[[], Sequence[float]]) -> int:
        """The number of drafts for the next step."""
        if self._left > 0:
            self._left -= 1
            return self._now
        expected = expected_tokens()
        unknown = self._worth_a_trial(expected)
        if unknown is not None:
            self._now, self._left = unknown, _TRIAL
            return self._now
        speeds = [tokens / self.seconds(drafts) for drafts, tokens in enumerate(expected)]
        before, fastest = self._best, max(range(len(speeds)), key=speeds.__getitem__)
        if speeds[fastest] > _CLEARLY * speeds[before]:
            self._best = fastest
        if self._best != before:
            self._pause = _FIRST_PAUSE
        if self._now == self._best and self._best == before:
            # Long enough: another one's turn, whose time or acceptance may have changed.
            self._now, self._left = self._another(), _TRIAL
            self._tried += 1
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            lost = 1 - speeds[self._another()] / speeds[self._best]
            affordable = int(_TRIAL * lost / _TRIALS_SHARE)
            self._now, self._left = self._best, min(max(self._pause, affordable), _LONGEST_PAUSE)
        return self._now

    def seconds(self, drafts: int) -> float:
        """The median of a step's times; infinite where there is none."""
        times = sorted(self.times[drafts])
        return times[len(times) // 2] if times else math.inf

    def _worth_a_trial(self, expected: Sequence[float]) -> int | None:
        """A number without times of its own: one and none, then more, while it might be the fastest."""
        for drafts in (1, 0):
            if len(self.times[drafts]) < _ENOUGH:
                return drafts
        fastest = max(tokens / self.seconds(drafts) for drafts, tokens in enumerate(expected))
        for drafts in range(2, MOST_DRAFTS + 1):
            if len(self.times[drafts]) < _ENOUGH:
                # At best it takes no longer than one draft fewer.
                return drafts if expected[drafts] / self.seconds(drafts - 1) > fastest else None
        return None

    def _another(self) -> int:
        """One more, one fewer or none, in turns."""
        near = [self._best + 1, self._best - 1, 0]
        possible = [drafts for drafts in near if 0 <= drafts <= MOST_DRAFTS and drafts != self._best]
        return possible[self._tried % len(possible)]
