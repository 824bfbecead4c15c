"""What two processes need is made once: the second waits for the first and uses what it made."""

import os
import threading
import time

import pytest
from tiny_checkpoints import DEEPSEEK_V3, write_checkpoint

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime import prepare
from mlc_dsv3.weights import Checkpoint, conversion
from mlc_dsv3.weights.lock import exclusive, make_once


class Maker(threading.Thread):
    """Calls `make_once`; the file is made when `go` is set. Two threads lock each other out as two processes do."""

    def __init__(self, product, *, fails=False):
        super().__init__(daemon=True)
        self.product, self.fails = product, fails
        self.begun, self.go, self.made, self.error = threading.Event(), threading.Event(), None, None
        self.start()

    def run(self):
        try:
            self.made = make_once(self.product, self.make, doing="makes it")
        except RuntimeError as error:
            self.error = error

    def make(self):
        self.begun.set()
        assert self.go.wait(10)
        if self.fails:
            raise RuntimeError("no luck")
        self.product.write_text("whole")

    def finish(self):
        self.go.set()
        self.join(10)


def wait_until_said(capsys):
    said, end = "", time.monotonic() + 10
    while "waiting" not in said and time.monotonic() < end:
        said += capsys.readouterr().err
        time.sleep(0.01)
    return said


def test_the_second_waits_says_so_and_makes_nothing(tmp_path, capsys):
    product = tmp_path / "new" / "product"
    first = Maker(product)
    assert first.begun.wait(10)
    second = Maker(product)
    assert wait_until_said(capsys) == f"mlc_dsv3: process {os.getpid()} makes it; waiting for it\n"
    first.finish()
    second.finish()
    assert (first.made, second.made) == (True, False) and not second.begun.is_set()
    assert [path.name for path in product.parent.iterdir()] == ["product"]


def test_where_the_first_fails_the_second_makes_it(tmp_path, capsys):
    product = tmp_path / "product"
    first = Maker(product, fails=True)
    assert first.begun.wait(10)
    second = Maker(product)
    wait_until_said(capsys)
    first.finish()
    assert second.begun.wait(10)
    second.finish()
    assert first.error and second.made and product.read_text() == "whole"


def test_what_is_there_needs_no_lock(tmp_path):
    (tmp_path / "product").write_text("")
    with exclusive(tmp_path / "product.lock"):
        assert not make_once(tmp_path / "product", lambda: pytest.fail("made again"), doing="makes it")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/folder cannot be made"):
        make_once(tmp_path / "file" / "folder" / "product", lambda: None, doing="makes it")


def test_two_that_want_one_model_convert_it_once(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path, DEEPSEEK_V3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    converted, found = [], []

    def slow(*arguments, **options):
        converted.append(arguments)
        time.sleep(0.2)
        return conversion.convert(*arguments, **options)

    monkeypatch.setattr(prepare, "convert", slow)

    def run():
        found.append(prepare._converted(Checkpoint.open(folder), "q4f16_1", []).path)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(converted) == 1 and len(found) == 2 and found[0] == found[1]
