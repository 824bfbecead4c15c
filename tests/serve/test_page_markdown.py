"""The page's Markdown in Chromium: held against markdown-it, the same however it is cut, inert where it is hostile."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from observed import Observed

ORACLE = MarkdownIt("commonmark", {"breaks": True, "html": False}).enable(["table", "strikethrough"])

# One construct each; markdown-it (CommonMark with GitHub's tables) says what they are.
DOCUMENTS = {
    "paragraphs": "One line\nand another.\n\nA second paragraph.  \nWith a hard break\\\nand one more.",
    "headings": "# One\n\n## Two ##\ntext\n### Three #\n\nSetext\n===\n\nSmaller\n---\n\n#hash\n\n####### seven",
    "emphasis": "*a* **b** ***c*** _d_ __e__ ~~f~~ *a **b** c* **a *b* c** a*b*c a_b_c 2 * 3 * 4 **a*b** *a**b*",
    "emphasis beside marks": '**"quoted"** (*a*) *a*, _b_. foo-_(bar)_ "*x*" **bold**: text, __init__ and **`code`**',
    "unbalanced": "**open *and* _never closed\n\n* alone ** alone ~~ tilde ~ `",
    "code spans": "`a` ``b ` c`` ` d ` `**no**` `a\nb` \\`e\\` ``f",
    "escapes": r"\*no\* \# \[a] \\ \a \< &amp; &lt;b&gt; &#65; &#x42; &unknown; AT&T",
    "links": '[a](https://example.com/x) [b **c**](<https://example.com/y z> "title") [d](mailto:a@example.com)\n'
    "[e](https://example.com/(f)) <https://example.com/g> <a@example.com> [h] [i](no space here) ]( [j](k",
    "rules": "a\n\n***\n\n- - -\n\n___\n\n--\n",
    "quotes": "> one\n> two\n>\n> three\n\n> # head\n> - a\n> - b\n\nafter\n\n> > nested\n>\n> back",
    "fences": "```python\nx = 1\n\n    y\n```\ntext\n~~~\n```\n~~~\n"
    "\n````md\n```\ninner\n```\n````\n\n  ```\n  two\n   three\n  ```",
    "an open fence": "before\n```js\nlet a = `x`;\n// **no**",
    "indented code": "text\n\n    code\n\n    more\n\nafter",
    "bullets": "- a\n- b\n  continued\n- c\n\ntext\n\n* x\n* y\n\n+ p\n",
    "numbers": "1. a\n2. b\n3. c\n\n7) x\n8) y\n\ntext\n14. no list",
    "nested lists": "- a\n  - b\n    - c\n  - d\n- e\n\n1. x\n   - y\n   - z\n2. w\n\n10. t\n    1. u",
    "loose lists": "- a\n\n- b\n\n  second paragraph\n- c\n\n      code in c\n\n1. one\n\n2. two",
    "lists with blocks": "1. Do this:\n\n   ```sh\n   make\n   ```\n\n   then\n"
    "2. > quoted\n3. # head\n4.\n5. | a |\n   |---|\n   | b |",
    "lists and paragraphs": "text\n- a\n- b\n\nafter\n1. x\nlazy\n* * *\n- a\n+ b",
    "tables": "| a | b |\n|:--|--:|\n| **1** | `2` |\n| 3 |\n| 4 | 5 | 6 |\n"
    "\nhead | two\n--- | :-:\nx \\| y | z\nafter\n\n| no |\n| table |",
    "a table behind text": "text\n| a | b |\n|---|---|\n| c | d |\n> quote",
    "unicode": "**强调** 文字, *größer*, __до__, 🎉 **🎉**",
}


@pytest.fixture(scope="module")
def page(chromium, page_server):
    """A blank page under the real policy, with `render(text, growing, cuts)` and `reduce` in it."""
    page = chromium.new_page()
    page.goto(page_server + "/")
    page.evaluate((Path(__file__).parent / "markdown.js").read_text())
    page.evaluate(
        """async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        window.render = (text, cuts = []) => {
            const view = new MarkdownView(document.createElement("div"));
            for (const cut of cuts) view.update(text.slice(0, cut), true);
            view.update(text, false);
            return view.element;
        };
    }"""
    )
    yield page
    page.close()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_and_inlines_are_those_of_markdown_it(page, name):
    text = DOCUMENTS[name]
    ours = page.evaluate("text => reduce(render(text))", text)
    assert ours == page.evaluate("html => reduceHtml(html)", ORACLE.render(text))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_arrives_by_characters_is_the_same(page, name):
    text = DOCUMENTS[name]
    assert page.evaluate(
        "text => render(text, Array.from(text, (_, i) => i)).innerHTML === render(text).innerHTML", text
    )


LINES = st.sampled_from(
    [
        "",
        "words and **bold** and `code`",
        "[a](https://example.com/b) *c*",
        "# head",
        "---",
        "===",
        "- item",
        "  - nested",
        "1. one",
        "2. two",
        "   deep",
        "    code",
        "```",
        "```python",
        'x = """',
        "> quote",
        "| a | b |",
        "|---|---|",
        "$$",
        "\\[",
        "\\]",
        "-",
        "|",
        "**open",
    ]
)


@given(st.lists(LINES, max_size=12).map("\n".join), st.lists(st.integers(0, 200), max_size=12).map(sorted))
@settings(max_examples=150, deadline=None)
def test_an_answer_is_the_same_however_it_is_cut(page, text, cuts):
    assert page.evaluate("([text, cuts]) => render(text, cuts).innerHTML === render(text).innerHTML", [text, cuts])


HOSTILE = [
    "<script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 1">',
    '<svg onload="window.hacked = 1"><a href="javascript:window.hacked = 1">x</a></svg>',
    '<iframe src="https://example.com"></iframe><style>*{display:none}</style><base href="https://example.com">',
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt:window.hacked=1)",
    "[x](java&#115;cript:window.hacked=1)",
    "[x](<java\tscript:window.hacked=1>)",
    "[x](\x01javascript:window.hacked=1)",
    "[x](data:text/html,<script>window.hacked=1</script>)",
    "[x](vbscript:x) [y](file:///etc/passwd) [z](blob:https://example.com/a)",
    "[x](/v1/models) [y](//example.com/z) [z](?a=b) [w](#composer)",
    "<javascript:window.hacked=1> <data:text/html,x>",
    "![x](https://example.com/track.png) ![y](javascript:window.hacked=1) ![](https://example.com/z.png)",
    '[x](https://example.com/" onmouseover="window.hacked=1)',
    '```"><script>window.hacked=1</script>\n</code></pre><script>window.hacked=1</script>\n```',
    '| <img src=x onerror="window.hacked=1"> |\n|---|\n| <script>window.hacked=1</script> |',
    '> - # <b onclick="window.hacked=1">x</b>',
    "&lt;script&gt;window.hacked=1&lt;/script&gt;",
    "$<img src=x onerror=window.hacked=1>$ \\(<script>window.hacked=1</script>\\)",
    "__proto__ constructor ```constructor\n```",
    "```__proto__\nx\n```\n```toString\ny\n```",
]


def test_what_a_hostile_model_writes_is_inert(chromium, page_server):
    page = chromium.new_page()
    observed = Observed(page, page_server)
    page.goto(page_server + "/")
    found = page.evaluate(
        """async (texts) => {
        const { MarkdownView } = await import("/page/markdown.js");
        const found = { tags: [], attributes: [], addresses: [] };
        for (const text of texts) {
            const element = document.createElement("div");
            document.body.append(element);
            const view = new MarkdownView(element);
            for (let end = 0; end < text.length; end += 1) view.update(text.slice(0, end), true);
            view.update(text, false);
            for (const node of element.querySelectorAll("*")) {
                found.tags.push(node.localName);
                found.attributes.push(...node.getAttributeNames());
                if (node.localName !== "a") continue;
                found.addresses.push(node.href);
                if (!node.rel.includes("noopener") || node.target !== "_blank") throw new Error(node.outerHTML);
                node.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
            }
            const shown = element.textContent.includes(text.slice(0, 12));
            if (text.startsWith("<") && !shown) throw new Error("not shown as text: " + text);
        }
        return found;
    }""",
        HOSTILE,
    )
    page.wait_for_timeout(100)
    ours = {
        "p",
        "a",
        "span",
        "br",
        "code",
        "pre",
        "figure",
        "figcaption",
        "button",
        "svg",
        "path",
        "div",
        "table",
        "thead",
    }
    ours |= {"tbody", "tr", "th", "td", "blockquote", "ul", "li", "h3", "strong"}
    assert set(found["tags"]) <= ours
    assert not [name for name in found["attributes"] if name.startswith("on") or name in ("src", "style", "srcdoc")]
    assert found["addresses"]
    assert all(address.startswith("https://example.com/") for address in found["addresses"])
    assert page.evaluate("window.hacked") is None
    assert observed.foreign == []
    assert observed.errors == []
    page.close()


LONG = [
    *("*" * 50_000, "*a " * 20_000, "a* " * 20_000, "*a_ " * 20_000, "~~a" * 20_000, "[" * 50_000, "[](" * 20_000),
    *("![" * 25_000, "`" * 50_000, "`a``" * 15_000, "<a" * 30_000, "$a " * 20_000, "\\(" * 30_000, "\\[\n" * 20_000),
    *(">" * 50_000, "- " * 30_000, "> - " * 15_000, "1. a\n" * 10_000, "# " + "#" * 50_000, "```\n" * 15_000),
    *("|" * 50_000, "|\n" * 20_000, "a|b\n" * 15_000, "http://" * 10_000, "https://a.b/" + ")" * 30_000, "&" * 50_000),
    " " * 50_000 + "a",
]


@pytest.mark.parametrize("text", LONG, ids=lambda text: f"{len(text)} of {text[:6]!r}")
def test_no_text_takes_long(page, text):
    started = time.monotonic()
    page.evaluate("text => void render(text)", text)
    assert time.monotonic() - started < 2


def test_formulas_stay_text(page):
    text = "Area $a_1*b*c_2$ and \\(x_1 * y * z\\), $$\\frac{a}{b}_c *d*$$ for $5 or $6."
    text += "\n\n\\[\nx *y* _z_\n\\]\n\n$$\na_b_c\n$$"
    shown = page.evaluate(
        "text => Array.from(render(text).querySelectorAll('.formula'), (node) => node.textContent)", text
    )
    assert shown == [
        "$a_1*b*c_2$",
        "\\(x_1 * y * z\\)",
        "$$\\frac{a}{b}_c *d*$$",
        "\\[\nx *y* _z_\n\\]",
        "$$\na_b_c\n$$",
    ]
    assert page.evaluate("text => render(text).querySelectorAll('em').length", text) == 0


def test_chinese_emphasis_needs_no_spaces(page):
    # CommonMark alone would leave these marks as they are: punctuation stands inside, a letter outside.
    html = page.evaluate("text => render(text).innerHTML", "这是**注意：**重点，**“引用”**也是。")
    assert html == "<p>这是<strong>注意：</strong>重点，<strong>“引用”</strong>也是。</p>"


def test_bare_addresses_are_links_without_the_marks_behind_them(page):
    text = "See https://example.com/a_b_c. (https://example.com/d) **https://example.com/e** xhttps://example.com/f"
    found = page.evaluate("text => Array.from(render(text).querySelectorAll('a'), (node) => node.href)", text)
    assert found == ["https://example.com/a_b_c", "https://example.com/d", "https://example.com/e"]


def test_tasks_are_boxes(page):
    boxes = page.evaluate(
        "text => [...render(text).querySelectorAll('input')].map((box) => [box.checked, box.disabled, box.ariaLabel])",
        "- [x] a\n- [ ] b\n- [] c",
    )
    assert boxes == [[True, True, "Done"], [False, True, "To do"]]


def test_complete_blocks_and_code_lines_are_not_drawn_again(page):
    kept = page.evaluate(
        """async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const view = new MarkdownView(document.createElement("div"));
        let text = "# head\\n\\nfirst\\n\\n```python\\na = 1\\nb = 2\\n";
        view.update(text, true);
        const [head, first, code] = view.element.children;
        const line = code.querySelector("code").firstChild;
        text += "c = 3\\n".repeat(50);
        view.update(text, true);
        text += "```\\n\\nlast";
        view.update(text, true);
        const now = view.element.children;
        const sameLine = code.querySelector("code").firstChild === line;
        return [now[0] === head, now[1] === first, now[2] === code, sameLine, now.length];
    }"""
    )
    assert kept == [True, True, True, True, 4]


@pytest.mark.full
def test_a_long_answer_stays_smooth(page):
    """200,000 characters in 20,000 pieces: a frame's work does not grow with what is there already."""
    took = page.evaluate(
        """async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const view = new MarkdownView(document.createElement("div"));
        const part = "A paragraph with **bold** text and `code`, of some length." +
            "\\n\\n- one\\n- two\\n\\n```python\\nx = f(1)\\n```\\n\\n";
        const text = part.repeat(Math.ceil(200000 / part.length));
        const times = [];
        for (let end = 10; end < text.length; end += 10) {
            const started = performance.now();
            view.update(text.slice(0, end), true);
            times.push(performance.now() - started);
        }
        const mean = (part) => part.reduce((a, b) => a + b, 0) / part.length;
        return [mean(times.slice(0, 2000)), mean(times.slice(-2000))];
    }"""
    )
    assert took[1] < 3 * took[0] + 1
