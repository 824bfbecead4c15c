"""The command as a whole: help, versions, exit codes, and how what went wrong is said."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlc_dsv3 import __version__
from mlc_dsv3.cli.main import VERBS, main, module_of
from mlc_dsv3.cli.output import print_table
from mlc_dsv3.errors import UserError, note, warn
from mlc_dsv3.folders import cache_folder, data_folder
from mlc_dsv3.weights.lock import make_once
from relax_model.errors import ConfigError

COMMAND = [sys.executable, "-m", "mlc_dsv3"]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A verb `test` that takes nothing and does nothing."""
    module = ModuleType("mlc_dsv3.cli.test")
    module.add_arguments = lambda parser: None
    module.run = lambda parsed: None
    monkeypatch.setitem(sys.modules, "mlc_dsv3.cli.test", module)
    monkeypatch.setitem(VERBS, "test", "does nothing")
    return module


def raising(error: BaseException):
    def run(parsed: object) -> None:
        raise error

    return run


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {verb}" in shown for verb in VERBS)


@pytest.mark.parametrize("verb_name", VERBS)
def test_every_verb_explains_itself_without_loading_a_runtime(verb_name: str) -> None:
    script = (
        f"import sys; from mlc_dsv3.cli.main import main\n"
        f"try: main([*'{verb_name}'.split(), '--help'])\n"
        f"except SystemExit as left: assert left.code == 0\n"
        f"heavy = {{'tvm', 'numpy', 'tokenizers', 'jinja2', 'rich', 'prompt_toolkit'}} & set(sys.modules)\n"
        f"assert not heavy, heavy\n"
        f"from mlc_dsv3.cli.main import VERBS, module_of\n"
        f"assert [verb for verb in VERBS if module_of(verb) in sys.modules] == ['{verb_name}']"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "usage: mlc_dsv3 " + verb_name in shown.stdout
    assert "--help" in shown.stdout


def test_version_names_the_package() -> None:
    shown = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"mlc_dsv3 {__version__}\n"
    assert shown.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["chatter"],
        ["chat", "--temprature", "1"],
        ["chat", "--max-tokens", "many"],
        ["chat", "a", "b"],
        ["convert_weight"],
        ["--quantization", "q4f16_1"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("mlc_dsv3: error: ")
    assert shown.err.count("\n") == 1
    assert "--help" in shown.err


@pytest.mark.parametrize("verb_name", VERBS)
def test_an_unknown_option_points_to_its_verbs_help(verb_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"convert_weight": ["x"], "gen_config": ["x", "-o", "y"], "compile": ["x"], "inspect": ["x"]}
    arguments = [*needed.get(verb_name, ()), *(["--text", "x"] if verb_name == "rebalance" else ())]
    assert main([verb_name, *arguments, "--nope"]) == 2
    said = f"mlc_dsv3: error: unrecognized arguments: --nope (see mlc_dsv3 {verb_name} --help)\n"
    assert capsys.readouterr().err == said
    assert main(["--nope", verb_name, *arguments]) == 2
    assert "(see mlc_dsv3 --help)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no such thing:\n  try another"), "no such thing: try another"),
        (ConfigError("n_group is 0"), "n_group is 0"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device: /x"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/dev/null/x"), "Not a directory: /dev/null/x"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/tmp"), "Is a directory: /tmp"),
        (OSError(errno.EFBIG, "File too large", "/x"), "File too large: /x"),
        (FileExistsError(errno.EEXIST, "File exists", "/x"), "File exists: /x"),
        (OSError(errno.EBUSY, "Device or resource busy", "/x"), "Device or resource busy: /x"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/x"), "Too many levels of symbolic links: /x"),
    ],
)
def test_a_mistake_is_one_line_and_two(
    verb: ModuleType, capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    verb.run = raising(error)
    assert main(["test"]) == 2
    assert capsys.readouterr().err == f"mlc_dsv3: error: {said}\n"


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), FileNotFoundError(errno.ENOENT, "ours")])
def test_a_bug_is_a_traceback(verb: ModuleType, error: Exception) -> None:
    verb.run = raising(error)
    with pytest.raises(type(error)):
        main(["test"])


def test_ctrl_c_is_130_and_silent(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.run = raising(KeyboardInterrupt())
    assert main(["test"]) == 130
    assert capsys.readouterr().err == ""


def test_a_verb_may_choose_its_exit_code(verb: ModuleType) -> None:
    assert main(["test"]) == 0
    verb.run = lambda parsed: 3
    assert main(["test"]) == 3


def test_a_reader_that_leaves_is_no_traceback() -> None:
    script = (
        "import sys; from types import ModuleType; from mlc_dsv3.cli import main\n"
        "verb = ModuleType('mlc_dsv3.cli.test'); verb.add_arguments = lambda parser: None\n"
        "verb.run = lambda parsed: print('x' * 1_000_000)\n"
        "sys.modules['mlc_dsv3.cli.test'] = verb; main.VERBS['test'] = 'x'\n"
        "sys.exit(main.main(['test']))"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.read(10)
    writer.stdout.close()
    assert writer.stderr.read() == b""
    assert writer.wait() == 141


def test_verbs_are_modules_of_the_package() -> None:
    for name in VERBS:
        module = importlib.import_module(module_of(name))
        assert callable(module.add_arguments)
        assert callable(module.run)


def test_what_files_say_does_not_rule_the_terminal(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.run = raising(UserError("config.json: \x1b[31mEVIL\x9b2J\x07\x7f\u202e is wrong,\n  Ünï 中"))
    assert main(["test"]) == 2
    said = "config.json: \\x1b[31mEVIL\\x9b2J\\x07\\x7f\\u202e is wrong, Ünï 中"
    assert capsys.readouterr().err == f"mlc_dsv3: error: {said}\n"
    warn("\x1b[31mEVIL")
    note("\x1b[31mEVIL")
    print_table([["\x1b[31mEVIL"]])
    shown = capsys.readouterr()
    assert shown.err == "mlc_dsv3: warning: \\x1b[31mEVIL\nmlc_dsv3: \\x1b[31mEVIL\n"
    assert shown.out == "\\x1b[31mEVIL\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_output_is_named(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        said = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (said.returncode, said.stderr) == (2, "mlc_dsv3: error: No space left on device: standard output\n")


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "XDG_DATA_HOME"])
def test_a_folder_of_ours_that_cannot_be_written_names_its_variable(
    verb: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    product = (cache_folder() if variable == "XDG_CACHE_HOME" else data_folder()) / "made"
    advice = f"; set {variable} to a folder that can be written\n"
    for make in (lambda _: product.mkdir(parents=True), lambda _: make_once(product, print, doing="makes it")):
        verb.run = make
        assert main(["test"]) == 2
        assert capsys.readouterr().err.endswith(advice)
    verb.run = lambda _: make_once(tmp_path / "file" / "mine" / "made", print, doing="makes it")
    assert main(["test"]) == 2
    assert "XDG" not in capsys.readouterr().err
