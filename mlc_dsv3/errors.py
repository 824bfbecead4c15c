"""What a user or a machine can cause: one line that says what, where and what to do, and the exit code 2."""

import copy
import re
import sys
from pathlib import Path

from relax_model.errors import ConfigError


class UserError(Exception):
    """A user's mistake or a broken file; its text is shown as it is, without a traceback."""


class NotFiniteError(UserError):
    """A model's logits are NaN or infinite, so that no token can be chosen; the request can only end."""


class ContextWindowError(UserError):
    """A prompt that does not fit in the context window; a shorter conversation may."""


class MessageTooLongError(ContextWindowError):
    """A message that does not fit in the context window by itself, so that a shorter conversation is no help."""


class ModelFileError(UserError):
    """What a model's `part` in the file or folder `origin` does not do for a request; `what` begins with a verb.

    `without_origin` is the text for a server's clients, whom the server's paths do not concern.
    """

    def __init__(self, part: str, origin: Path, what: str) -> None:
        super().__init__(f"{part} in {origin} {what}")
        self.without_origin = f"{part} {what}"


class ForkError(UserError):
    """A model is used, or is to be loaded, in a process forked from one that had loaded a model."""


class DeviceError(RuntimeError):
    """A device that was lost, or whose driver refuses what it is asked; its text names the device and what was done."""


USER_ERRORS = (UserError, ConfigError)
# No other input would help: what was loaded is of no use any more, or does not fit.
MACHINE_ERRORS = (DeviceError, MemoryError)
_MOST_SAID = 500  # characters
# C0 and C1, and what turns the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def to_raise(error: Exception) -> Exception:
    """A copy of an error that several requests end with. Raising adds to an error's traceback, and a device that failed
    ends every later request, too."""
    try:
        own = copy.copy(error)
    except TypeError:  # its class takes other arguments than those that it keeps
        return error
    return own.with_traceback(error.__traceback__)


def reason(error: Exception) -> str:
    """What an error of TVM's comes to: its text's last line, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def said(error: Exception) -> str:
    """What an error of another program's says, in one line that is not long; its type where it says nothing."""
    line = one_line(error)
    return f"{line[:_MOST_SAID]}…" if len(line) > _MOST_SAID else line or type(error).__name__


def one_line(text: object) -> str:
    """A text for people, in one line without control characters."""
    return escaped(" ".join(str(text).split()))


def escaped(text: str) -> str:
    """`text` with control characters but line ends and tabs written out: files of others must not rule the terminal."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def note(text: str) -> None:
    """Tell the user, in one line on standard error, what was chosen for him."""
    _say(f"mlc_dsv3: {one_line(text)}")


_said: set[str] = set()


def warn_once(text: str) -> None:
    """`warn`, unless this process has said the same before: a model may be opened several times in a run."""
    if text not in _said:
        _said.add(text)
        warn(text)


def warn(text: str) -> None:
    """Tell the user, in one line on standard error, of something that does not stop the work."""
    _say(f"mlc_dsv3: warning: {one_line(text)}")


def _say(line: str) -> None:
    # Without a standard error, `print` would take standard output.
    if sys.stderr is not None:
        print(line, file=sys.stderr)
