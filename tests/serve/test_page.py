"""The chat page as a reader uses it: Debian's Chromium, the real server, the demo."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from observed import Observed
from served import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from mlc_dsv3.serve.service import Service

QUESTION, ANSWER = "What is 34 + 57?", "91"
PHONE = {"width": 390, "height": 780}
DESKTOP = {"width": 1400, "height": 850}


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(origin, **options)`: the page in a fresh profile. What it must never do fails the test at its end."""
    contexts, watched = [], []

    def open_it(origin: str, **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        watched.append(Observed(page, origin))
        page.goto(origin)
        return page

    yield open_it
    for each in watched:
        assert each.foreign == [], "it asked another host"
        assert each.errors == []
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Callable[..., Page], demo_server: str) -> Page:
    """The demo's page."""
    return open_page(demo_server)


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def answers(page: Page) -> Locator:
    """The complete answers of the shown conversation."""
    return page.locator("article.answer:not(.running)")


def asked(page: Page, text: str = QUESTION, number: int = 1) -> Locator:
    """Ask, and wait for the answer, which is the conversation's answer `number`."""
    ask(page, text)
    answers(page).nth(number - 1).wait_for()
    return answers(page).nth(number - 1)


def held_back(page: Page) -> None:
    """Keep requests for answers waiting, as a long prompt would."""

    page.route("**/v1/chat/completions", lambda route: None)


def test_an_answer_comes_with_its_figures(page: Page) -> None:
    answer = asked(page)
    assert ANSWER in answer.inner_text()
    figures = answer.locator(".figures").inner_text()
    assert "tok/s" in figures and "prompt tokens" in figures
    assert page.title() == "mlc_dsv3-demo"
    again = asked(page, "And what is 2 + 3?", 2)
    assert "prompt tokens reused" in again.locator(".figures").inner_text()


def test_a_suggestion_is_asked_with_a_click(page: Page) -> None:
    page.get_by_role("button", name=QUESTION).click()
    answers(page).first.wait_for()
    assert ANSWER in answers(page).first.inner_text()


def test_conversations_are_kept_renamed_and_deleted_with_a_way_back(page: Page) -> None:
    asked(page)
    page.reload()
    answers(page).first.wait_for()
    assert ANSWER in answers(page).first.inner_text()
    row = page.locator("#conversations .row")
    row.hover()
    page.get_by_label(f"Rename {QUESTION}").click()
    page.get_by_label("Name of the conversation").fill("A sum")
    page.get_by_label("Name of the conversation").press("Enter")
    assert page.locator("#title").inner_text() == "A sum"
    row.hover()
    page.get_by_label("Delete A sum").click()
    assert row.count() == 0
    page.get_by_role("button", name="Undo").click()
    row.wait_for()
    assert ANSWER in answers(page).first.inner_text()


def test_an_answer_is_generated_again_and_both_stay(page: Page) -> None:
    asked(page)
    page.get_by_label("Generate again").click()
    page.get_by_text("2/2").wait_for()
    answers(page).first.wait_for()
    page.get_by_label("Version before").click()
    page.get_by_text("1/2").wait_for()
    assert ANSWER in answers(page).first.inner_text()


def test_a_question_is_edited_from_the_keyboard(page: Page) -> None:
    asked(page)
    page.get_by_label("Message", exact=True).press("ArrowUp")
    field = page.get_by_label("Edit your message")
    assert field.input_value() == QUESTION
    field.fill("What is 2 + 3?")
    field.press("Enter")
    page.locator("article.question", has_text="2 + 3").wait_for()
    answers(page).first.wait_for()
    assert "5" in answers(page).first.inner_text()
    assert page.locator("article.question").get_by_text("2/2").count() == 1


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_an_answer_is_stopped(page: Page, how: str) -> None:
    held_back(page)
    ask(page, QUESTION)
    page.get_by_text("Reading the prompt…").wait_for()
    if how == "button":
        page.get_by_label("Stop").click()
    else:
        page.keyboard.press("Escape")
    page.get_by_text("You stopped this answer.").wait_for()
    assert page.get_by_label("Send").is_visible()


def test_settings_are_what_the_server_is_asked_with(page: Page) -> None:
    page.locator("#toggle-settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Max tokens").fill("7")
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Seed").press("Tab")
    with page.expect_request("**/v1/chat/completions") as sent:
        asked(page)
    body = json.loads(sent.value.post_data)
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 7, 3)
    assert "top_p" not in body, "what is left empty is the server's own"


def test_the_load_of_the_experts_is_drawn(page: Page) -> None:
    asked(page)
    canvas = page.locator("canvas.heat")  # open from the start where there is room
    canvas.wait_for()
    assert "experts in" in canvas.get_attribute("aria-label")
    page.wait_for_function(
        """() => {
            const canvas = document.querySelector("canvas.heat");
            const seen = new Set();
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            for (let i = 0; i < data.length; i += 4) seen.add(`${data[i]},${data[i + 1]},${data[i + 2]}`);
            return seen.size > 8;
        }"""
    )
    canvas.focus()
    assert page.locator("#heat-value").inner_text() != ""


def test_what_a_reader_writes_is_shown_and_not_run(page: Page) -> None:
    asked(page, '<img src=x onerror="document.title = 1"><script>document.title = 2</script>')
    assert "<img src=x" in page.locator("article.question").inner_text()
    assert page.title() == "mlc_dsv3-demo"
    assert page.locator("#messages img").count() == 0


def test_a_conversation_beyond_the_context_window_is_said_in_words(page: Page) -> None:
    asked(page, "Anna is in the park. " * 1500)
    assert "longer than the model's context window" in answers(page).first.inner_text()


def test_a_server_that_is_gone_is_said_in_words_and_asked_again(
    open_page: Callable[..., Page], demo_service: Service
) -> None:
    with serving(demo_service) as origin:
        page = open_page(origin)
        asked(page)
    failed = asked(page, "What is 1 + 1?", 2)
    assert "Is mlc_dsv3 serve still running?" in failed.inner_text()
    assert failed.get_by_role("button", name="Try again").is_visible()


def test_a_key_is_asked_for_once_and_used(open_page: Callable[..., Page], demo_service: Service) -> None:
    with serving(demo_service, keys=("s3cret",)) as origin:
        page = open_page(origin)
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Use this key").click()
        page.get_by_text("the API key is wrong").wait_for()
        dialog.get_by_label("API key").fill("s3cret")
        dialog.get_by_role("button", name="Use this key").click()
        assert ANSWER in asked(page).inner_text()


def test_it_fits_a_phone(open_page: Callable[..., Page], demo_server: str) -> None:
    page = open_page(demo_server, viewport=PHONE, has_touch=True, is_mobile=True)
    asked(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not page.locator("#new-conversation").is_visible()
    page.locator("#toggle-sidebar").click()
    page.locator("#new-conversation").click()
    page.get_by_text("What would you like to know?").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(open_page: Callable[..., Page], demo_server: str, scheme: str) -> None:
    page = open_page(demo_server, color_scheme=scheme)
    asked(page)
    for selector in ("article.question .bubble", "article.answer .prose", ".figures", "#model", "#conversations .open"):
        assert contrast(page.locator(selector).first) >= 4.5, selector


def contrast(element: Locator) -> float:
    """The ratio of WCAG 2.2 between an element's text and what lies behind it."""
    text, behind = element.evaluate(
        """(element) => {
            const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const rgba = (colour) => {
                context.clearRect(0, 0, 1, 1);
                context.fillStyle = colour;
                context.fillRect(0, 0, 1, 1);
                return [...context.getImageData(0, 0, 1, 1).data];
            };
            const background = (node) => rgba(getComputedStyle(node).backgroundColor);
            let node = element;
            while (background(node)[3] < 255 && node.parentElement !== null) node = node.parentElement;
            return [rgba(getComputedStyle(element).color), background(node)];
        }"""
    )
    lighter, darker = sorted((luminance(text), luminance(behind)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(rgba: list[int]) -> float:
    """Relative luminance of sRGB (WCAG 2.2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in rgba[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
