"""The user's folders, and a user who has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlc_dsv3.errors import UserError
from mlc_dsv3.folders import cache_folder, data_folder, expanded

FOLDERS = {"XDG_CACHE_HOME": cache_folder, "XDG_DATA_HOME": data_folder}
# Runs the command as a user without an account.
HOMELESS = """
import pwd, sys
def nobody(user): raise KeyError(user)
pwd.getpwuid = nobody
from mlc_dsv3.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has neither HOME nor an account."""

    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    for variable in FOLDERS:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("variable", FOLDERS)
def test_the_xdg_folders_count_where_they_are_absolute(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(variable, str(tmp_path / "chosen"))
    assert FOLDERS[variable]() == tmp_path / "chosen" / "mlc_dsv3"
    for not_chosen in ("", "relative"):
        monkeypatch.setenv(variable, not_chosen)
        assert FOLDERS[variable]().is_relative_to(tmp_path / "home")
        assert FOLDERS[variable]().name == "mlc_dsv3"


@pytest.mark.parametrize("variable", FOLDERS)
def test_without_a_home_the_error_names_what_to_set(variable: str, homeless: None) -> None:
    with pytest.raises(UserError, match=f"no home folder .* set HOME, or {variable} to a folder"):
        FOLDERS[variable]()


def test_without_a_home_an_absolute_xdg_folder_is_enough(
    homeless: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlc_dsv3.chat.terminal import history_path
    from mlc_dsv3.compiler.targets import resolve_target
    from mlc_dsv3.compiler.tuned import find_tuned, tuned_text

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mlc_dsv3"
    assert history_path() is None
    assert find_tuned(resolve_target()).own == frozenset()
    assert tuned_text(resolve_target(), "q0f32").startswith("{")


def test_a_home_that_is_not_known_cannot_be_written_as_a_tilde(homeless: None) -> None:
    with pytest.raises(UserError, match="~/model begins with a home folder that is not known"):
        expanded("~/model")
    assert expanded("model") == Path("model")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["chat", "--prompt", "x"], 2),
        (["chat", "~/model", "--prompt", "x"], 2),
        (["bench"], 2),
        (["rebalance", "--text", __file__], 2),
        (["tune"], 2),
        (["devices"], 0),
    ],
    ids=lambda each: each if isinstance(each, int) else " ".join(each[:2]),
)
def test_verbs_of_a_user_without_a_home_say_so_in_one_line(arguments: list[str], code: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", *FOLDERS)}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, code // 2), done.stderr
    assert "home folder" in done.stderr or code == 0


def test_tvm_is_imported_without_a_home(tmp_path: Path) -> None:
    script = HOMELESS.partition("from")[0] + "from mlc_dsv3.folders import import_tvm; import_tvm()\nimport tvm.relax"
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", *FOLDERS)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
