"""A model's name: what is downloaded for it, and what it is called."""

from pathlib import Path

import pytest

from mlc_dsv3.errors import UserError
from mlc_dsv3.runtime.hub import model_folder, model_name, model_title

NAMES = {
    "someone/tiny.model": None,
    "someone/tiny.model/": None,
    "https://huggingface.co/someone/tiny.model": None,
    "https://huggingface.co/someone/tiny.model/": None,
    "http://www.huggingface.co/someone/tiny.model": None,
    "huggingface.co/someone/tiny.model": None,
    "https://hf.co/someone/tiny.model/tree/main": "main",
    "https://huggingface.co/someone/tiny.model/tree/v1.0/": "v1.0",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_repository_is_known_by_its_name_and_by_its_address(name, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, *, revision, **_):
        asked.append((repository, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert model_folder(name) == tmp_path
    assert asked == [("someone/tiny.model", NAMES[name])]
    assert (model_title(name), model_name(name)) == ("someone/tiny.model", "tiny.model")


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/absent/model", "https://example.com/a/b", "./a/b", "a//b"])
def test_what_is_neither_a_folder_nor_a_repository_is_refused(name):
    with pytest.raises(UserError, match="does not exist"):
        model_folder(name)


def test_a_snapshot_goes_by_its_repository(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--someone--tiny-model" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    assert model_folder(snapshot) == snapshot
    for spelling in (snapshot, f"{snapshot}/", snapshot / ".." / "0123abcd"):
        assert (model_title(spelling), model_name(spelling)) == ("someone/tiny-model", "tiny-model")
    monkeypatch.chdir(snapshot)
    assert model_title(".") == "someone/tiny-model"


def test_other_folders_go_by_their_own_name(tmp_path):
    for name in ("plain", "tiny-q4f16_1-MLC", "models--a--b"):
        (tmp_path / name).mkdir()
    assert model_title(tmp_path / "plain") == model_name(f"{tmp_path}/plain/") == "plain"
    assert model_title(tmp_path / "tiny-q4f16_1-MLC") == "tiny"
    assert model_title(tmp_path / "models--a--b") == "models--a--b"
    assert model_name(Path("absent")) == "absent"
