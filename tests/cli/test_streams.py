"""The command where its standard streams are closed, full or of another encoding."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from marks import quick_first

from mlc_dsv3.cli.main import VERBS
from mlc_dsv3.cli.output import print_json

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="the shell's redirections"),
    pytest.mark.usefixtures("demo_is_made"),
]

QUESTION = ["--prompt", "What is 34 + 57?", "--temperature", "0"]
NO_OUTPUT = (
    "mlc_dsv3: error: standard output is closed or cannot be written to; send it to a file, a pipe or /dev/null\n"
)


def command(*arguments: str, redirected: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run of the command with the shell's redirections; what these leave open is caught."""
    shell = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "mlc_dsv3", *arguments]
    return subprocess.run(
        shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )


@pytest.mark.parametrize("redirected", [">&-", "1</dev/null"], ids=["closed", "read-only"])
@pytest.mark.parametrize("verb", quick_first(VERBS))
def test_every_verb_refuses_a_closed_output_in_one_line(verb: str, redirected: str) -> None:
    done = command(verb, "--help", redirected=redirected)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", NO_OUTPUT)


@pytest.mark.parametrize(
    "verb", quick_first([[], *(verb.split() for verb in VERBS)], 2), ids=lambda verb: " ".join(verb)
)
def test_no_message_goes_to_the_output_where_standard_error_is_closed(verb: list[str]) -> None:
    done = command(*verb, "--nope", redirected="2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_full_disk_behind_the_streams() -> None:
    done = command("inspect", "--json", str(Path(__file__).parent), redirected="2>/dev/full")
    assert (done.returncode, done.stdout) == (2, "")
    done = command("devices", redirected=">/dev/full")
    assert (done.returncode, done.stderr) == (2, "mlc_dsv3: error: No space left on device: standard output\n")


@pytest.mark.parametrize("redirected", quick_first(["<&- 2>&-", "<&-", "2>&-", "2>/dev/full"]))
def test_an_answer_needs_the_output_alone(redirected: str) -> None:
    done = command("chat", *QUESTION, redirected=redirected)
    assert (done.returncode, done.stderr) == (0, "")
    assert "91" in done.stdout


@pytest.mark.parametrize("redirected", quick_first(["<&-", "0>/dev/null"]), ids=["closed", "write-only"])
def test_a_closed_input_has_nothing_to_read(redirected: str) -> None:
    session = command("chat", redirected=redirected)
    assert (session.returncode, session.stdout) == (0, "")
    assert session.stderr.startswith("demo")
    lines = command("chat", "--json", redirected=redirected)
    assert (lines.returncode, lines.stdout, lines.stderr) == (0, "", "")
    for arguments, said in (
        (["chat", "--prompt", "-"], "standard input has no prompt"),
        (["rebalance", "--text", "-"], "which is empty"),
        (["bench", "--experts", "-"], "which is empty"),
        (["bench", "--speculative", "1", "--prompts", "-"], "which is empty"),
    ):
        done = command(*arguments, redirected=redirected)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert said in done.stderr


def test_files_do_not_take_the_place_of_closed_streams(tmp_path: Path) -> None:
    """Without standard error, the first file that is opened would be it, and get what is meant for people."""
    script = "from mlc_dsv3.cli.main import main; import sys, os; main(['nope']); f = open(sys.argv[1], 'w'); "
    script += "assert f.fileno() > 2; os.write(2, b'words')"
    shell = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", script, str(tmp_path / "file")]
    assert subprocess.run(shell, capture_output=True).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_holds_every_character_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlc_dsv3.chat.oneshot import _write_json

    content = {"text": "Größe 的 😀"}
    for write in (print_json, lambda content: _write_json(sys.stdout, content)):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
        write(content)
        sys.stdout.flush()
        assert json.loads(written.getvalue().decode(encoding)) == content


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}], ids=["LC_ALL", "Python"])
def test_a_prompt_in_other_letters_is_read_in_an_ascii_locale(environment: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import sys; from mlc_dsv3.cli.streams import prepare_streams; prepare_streams(); "
        "sys.exit(sys.stdin.read() != 'Gr\\xf6\\xdfe \\u7684')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="Größe 的".encode(),
        env={**os.environ, "LC_ALL": "C", **environment},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def test_without_a_standard_error_warnings_go_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlc_dsv3.errors import note, warn
    from mlc_dsv3.progress import progress

    monkeypatch.setattr("sys.stderr", None)
    note("a note")
    warn("a warning")
    with progress("Working", 1) as advance:
        advance(1)
    assert capsys.readouterr().out == ""
