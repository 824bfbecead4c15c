"""The page's files as a browser gets them: types, headers, copies that are still right, and nothing besides."""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="FastAPI is missing: pip install '.[serve]'")

from mlc_dsv3.serve.page import read_page_files

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def get(origin: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, with the path sent as it is."""
    connection = http.client.HTTPConnection(urlsplit(origin).netloc)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def test_page_comes_with_a_policy_that_lets_it_load_nothing_else(page_server):
    status, headers, body = get(page_server, "/")
    assert status == 200
    assert body.startswith(b"<!doctype html>")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("style.css", "text/css; charset=utf-8"),
        ("main.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_files_have_their_types_and_the_same_headers(page_server, name, content_type):
    status, headers, _ = get(page_server, f"/page/{name}")
    assert status == 200
    assert headers["content-type"] == content_type
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"


def test_a_copy_that_is_still_right_is_not_sent_again(page_server):
    _, headers, body = get(page_server, "/page/main.js")
    for tags in (headers["etag"], f"W/{headers['etag']}", f'"other", {headers["etag"]}', "*"):
        status, again, nothing = get(page_server, "/page/main.js", If_None_Match=tags)
        assert (status, nothing) == (304, b"")
        assert again["etag"] == headers["etag"]
    status, _, whole = get(page_server, "/page/main.js", If_None_Match='"other"')
    assert (status, whole) == (200, body)


def test_head_has_the_headers_alone(page_server):
    status, headers, body = get(page_server, "/", "HEAD")
    assert (status, body) == (200, b"")
    assert headers["etag"] == read_page_files()["index.html"].etag


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/__init__.py",
        "/page/files.py",
        "/page/../__init__.py",
        "/page/..%2f..%2f__init__.py",
        "/page/%2e%2e/app.py",
        "/page/main.js%00.css",
        "/page//etc/passwd",
    ],
)
def test_no_path_leads_to_another_file(page_server, path):
    assert get(page_server, path)[0] == 404


def test_every_file_of_the_folder_is_served_and_every_reference_is_a_file():
    files = read_page_files()
    folder = Path(__import__("mlc_dsv3.serve.page", fromlist=["page"]).__file__).parent
    assert set(files) == {
        path.name for path in folder.iterdir() if path.suffix not in (".py", "") or path.is_file()
    } - {path.name for path in folder.glob("*.py")}
    html = files["index.html"].content.decode()
    for name in re.findall(r'(?:src|href)="page/([^"]+)"', html):
        assert name in files
    for name, file in files.items():
        if name.endswith(".js"):
            for module in re.findall(r'from "\./([^"]+)"', file.content.decode()):
                assert module in files


def test_files_name_no_other_host_and_no_way_to_parse_html():
    for name, file in read_page_files().items():
        text = file.content.decode()
        # The namespace of SVG is a name, not an address that is loaded.
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[a-z0-9]+\.", text) == [], name
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert way not in text, (name, way)
