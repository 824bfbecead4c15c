"""Draws the picture of the chat page in the documents: `python tests/serve/screenshot.py docs/page.png`."""

from __future__ import annotations

import sys

from playwright.sync_api import sync_playwright

from mlc_dsv3.bench.server_process import ServerProcess

STORY = "Anna is in the kitchen. Anna has a red ball. Anna goes to the park. Where is the ball?"


def draw(path: str) -> None:
    """Ask the demo three questions, and draw the page with the load of the experts."""
    with ServerProcess([]) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 1280, "height": 720}, device_scale_factor=1.5)
        page.goto(f"http://127.0.0.1:{server.port}")
        for number, text in enumerate(("What is 34 + 57?", STORY, "What colour is the ball?")):
            page.get_by_label("Message", exact=True).fill(text)
            page.get_by_label("Message", exact=True).press("Enter")
            page.locator("article.answer:not(.running)").nth(number).wait_for()
        page.wait_for_timeout(2500)  # the experts' load is read once a second
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    draw(sys.argv[1])
