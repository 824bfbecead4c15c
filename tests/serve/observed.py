"""Watches a page of the browser for what it must never do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


class Observed:
    """What a page did that it should not: broke the policy, asked another host, threw."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self._request(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._console(message.text))

    def _request(self, url: str) -> None:
        if not url.startswith((self.origin + "/", "data:", "blob:" + self.origin)):
            self.foreign.append(url)

    def _console(self, text: str) -> None:
        if "Content Security Policy" in text or "Content-Security-Policy" in text:
            self.errors.append(text)
