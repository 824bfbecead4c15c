"""The standard streams as the command finds them: closed ones are replaced.

A file that is opened while standard output is closed would get its number, and whatever a program prints would end up
in that file.
"""

from __future__ import annotations

import io
import os
import sys

from mlc_dsv3.encodings import is_ascii
from mlc_dsv3.errors import UserError

_INPUT, _OUTPUT, _ERROR = 0, 1, 2


def prepare_streams() -> None:
    """Make standard input, output and error usable.

    A closed input has nothing to read, and messages to a closed standard error are dropped. UserError where standard
    output is closed or cannot be written to: what was asked for would be lost.
    """
    sys.stdin = sys.stdin if _is_usable(sys.stdin, _INPUT) else _nowhere(_INPUT)
    sys.stderr = sys.stderr if _is_usable(sys.stderr, _ERROR) else _nowhere(_ERROR)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # Neither bytes that are no text nor a terminal of another encoding should end a conversation.
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper) and is_ascii(sys.stdin):
        sys.stdin.reconfigure(encoding="utf-8")  # which reads ASCII alike, and names typed in other letters too
    if not _is_usable(sys.stdout, _OUTPUT):
        sys.stdout = _nowhere(_OUTPUT)
        raise UserError("standard output is closed or cannot be written to; send it to a file, a pipe or /dev/null")


def output_fails() -> bool:
    """Whether what is still to be written to standard output cannot be; it is discarded then."""
    try:
        if getattr(sys.stdout, "write_through", False):
            sys.stdout.write("\n")  # unbuffered, it holds nothing that failed
        sys.stdout.flush()
    except OSError:
        discard_output()
        return True
    return False


def discard_output() -> None:
    """Send what is still to be written to standard output nowhere; without this, Python complains when it closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_usable(stream: io.TextIOBase | None, number: int) -> bool:
    """False for a stream that was closed when the process started, or whose file is open for the other direction."""
    if stream is None:
        return False
    try:
        if stream.fileno() != number:
            return True
    except (OSError, ValueError):  # no file, as in tests and notebooks
        return not stream.closed
    return _allows(number, os.O_RDONLY if number == _INPUT else os.O_WRONLY)


def _allows(number: int, wanted: int) -> bool:
    try:
        import fcntl

        return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE in (wanted, os.O_RDWR)
    except ImportError:  # Windows
        return True
    except OSError:
        return False


def _nowhere(number: int) -> io.TextIOWrapper:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    return open(number, "r" if number == _INPUT else "w", encoding="utf-8", errors="replace", closefd=False)
