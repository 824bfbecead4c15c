"""The page's files, read once, and the router that answers with them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from fastapi import APIRouter, Request, Response

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# What a model writes is shown on this page: whatever slips through its parser finds nothing that it could run, load or
# send to.
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "; ".join(
            (
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "connect-src 'self'",
                "img-src 'self' data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # A browser keeps the files but asks each time whether they are the same, so that an upgrade shows at once.
        "Cache-Control": "no-cache",
    }
)


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent. `etag` is a hash of its content, in the quotation marks of HTTP."""

    content: bytes
    content_type: str
    etag: str


@functools.cache
def read_page_files() -> Mapping[str, PageFile]:
    """Every file of the page by its name, as the installed package holds them."""
    files = {}
    for entry in resources.files("mlc_dsv3.serve.page").iterdir():
        content_type = _CONTENT_TYPES.get("." + entry.name.rpartition(".")[2])
        if content_type is not None:
            content = entry.read_bytes()
            files[entry.name] = PageFile(content, content_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return MappingProxyType(files)


router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    """The page itself."""
    return _answer(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def file_of_page(request: Request, name: str) -> Response:
    """A file of the page. `name` is looked up among the files that were read, so that no path leads elsewhere."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    file = read_page_files().get(name)
    if file is None:
        return Response("The chat page has no such file.\n", status_code=404, media_type="text/plain")
    headers = {**HEADERS, "ETag": file.etag}
    if _matches(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.content_type})


def _matches(if_none_match: str, etag: str) -> bool:
    """Whether a browser's copy is still right. A proxy that compresses may have weakened the tag (RFC 9110, 13.1.2)."""
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return any(tag in (etag, "*") for tag in tags)
