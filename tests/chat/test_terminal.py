"""The session at a pseudo-terminal: typing, Ctrl-C, several lines, paste, history; and with input from a pipe."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")

PROGRAM = [sys.executable, str(Path(__file__).parent / "scripted_model.py")]
PATIENCE = 15


class Terminal:
    """A session's process behind a pseudo-terminal, with everything that it has shown."""

    def __init__(self, data: Path) -> None:
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            os.environ.update({"TERM": "xterm", "XDG_DATA_HOME": str(data), "PROMPT_TOOLKIT_NO_CPR": "1"})
            os.execv(PROGRAM[0], PROGRAM)
        self._shown = b""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def expect(self, pattern: str) -> str:
        """Wait until `pattern` has come, and take what came up to its end."""
        deadline = time.monotonic() + PATIENCE
        while True:
            plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self._shown).decode(errors="replace")
            match = re.search(pattern, plain)
            if match:
                self._shown = plain[match.end() :].encode()
                return plain[: match.end()]
            ready, _, _ = select.select([self._descriptor], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come; shown: {plain!r}"
            try:
                self._shown += os.read(self._descriptor, 65536)
            except OSError as error:
                raise AssertionError(f"the session ended before {pattern!r}; shown: {plain!r}") from error

    def exit_code(self) -> int:
        """Wait for the process to end."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            # A process cannot end before its last words are read.
            if select.select([self._descriptor], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    os.read(self._descriptor, 65536)
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("the session did not end")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._descriptor)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Terminal]]:
    started: list[Terminal] = []

    def start_one() -> Terminal:
        started.append(Terminal(tmp_path))
        started[-1].expect("scripted · q0f32 · cpu")
        started[-1].expect(">>>")
        return started[-1]

    yield start_one
    for terminal in started:
        terminal.kill()


def test_typing_answering_and_leaving(start: Callable[[], Terminal]) -> None:
    terminal = start()
    terminal.type("hello\r")
    terminal.expect("You said: hello\r\n")
    terminal.expect(">>>")
    terminal.type("/exit\r")
    terminal.expect("1 prompts")
    assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_not_the_session(start: Callable[[], Terminal]) -> None:
    terminal = start()
    terminal.type("slowly " + "word " * 200 + "\r")
    terminal.expect("You said: slowly word")
    terminal.type("\x03")
    terminal.expect(r"\(stopped\)")
    terminal.expect(">>>")
    terminal.type("still there?\r")
    terminal.expect(r"You said: still there\?\r\n")


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves(start: Callable[[], Terminal]) -> None:
    terminal = start()
    terminal.type("unwanted")
    terminal.expect("unwanted")
    terminal.type("\x03")
    terminal.expect("Ctrl-D or /exit leaves")
    terminal.expect(">>>")
    terminal.type("\x04")
    terminal.expect("0 prompts")
    assert terminal.exit_code() == 0


def test_several_lines_by_alt_enter_backslash_and_paste(start: Callable[[], Terminal]) -> None:
    terminal = start()
    terminal.type("one\x1b\rtwo\\\rthree\r")
    terminal.expect("You said: one\r\ntwo\r\nthree\r\n")
    terminal.expect(">>>")
    terminal.type("\x1b[200~four\nfive\n\x1b[201~six\r")
    terminal.expect("You said: four\r\nfive\r\nsix\r\n")


def test_history_outlives_the_session_and_is_private(start: Callable[[], Terminal], tmp_path: Path) -> None:
    first = start()
    first.type("remember me\r")
    first.expect("You said: remember me")
    first.expect(">>>")
    first.type("\x04")
    assert first.exit_code() == 0
    history = tmp_path / "mlc_dsv3" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    second = start()
    second.type("\x1b[A")
    second.expect("remember me")
    second.type("\r")
    second.expect("You said: remember me")


def test_input_from_a_pipe_is_read_by_lines(tmp_path: Path) -> None:
    finished = subprocess.run(
        PROGRAM, input="one\\\ntwo\n/stats\n", capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert finished.stdout == "You said: one\ntwo\n"
    assert "tok/s" in finished.stderr
    assert ">>>" not in finished.stderr
