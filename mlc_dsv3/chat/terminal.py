"""Where messages come from: a line editor at a terminal, plain lines from a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mlc_dsv3.chat.session import COMMANDS, ReadMessage
from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import data_folder

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


def message_reader() -> ReadMessage:
    """The line editor where standard input is a terminal, else `line_reader`."""
    return editor_reader(history_path()) if sys.stdin.isatty() else line_reader(sys.stdin)


def line_reader(lines: TextIO) -> ReadMessage:
    """Messages from plain lines; a backslash at a line's end joins it with the next."""

    def read() -> str | None:
        message: list[str] = []
        while line := lines.readline():
            text = line.rstrip("\r\n")
            if not text.endswith("\\"):
                return "\n".join([*message, text])
            message.append(text[:-1])
        return "\n".join(message) if message else None

    return read


def editor_reader(history: Path | None) -> ReadMessage:
    """Messages from a line editor with history (None: of this session alone), multi-line input, paste and completion of
    commands."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    editor: PromptSession[str] = PromptSession(
        ">>> ",
        multiline=True,
        key_bindings=_key_bindings(),
        prompt_continuation=lambda width, line_number, wrap_count: "... ",
        history=_history(history),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        # With standard output in a file, the editor draws on standard error.
        output=create_output(always_prefer_tty=True),
    )

    def read() -> str | None:
        try:
            return editor.prompt()
        except EOFError:
            return None

    return read


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def history_path() -> Path | None:
    """The file that keeps what was typed, in the user's data folder; None for a user without one."""
    try:
        return data_folder() / "chat_history"
    except UserError:
        return None


def _history(path: Path | None) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What people tell a model is their own business.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
