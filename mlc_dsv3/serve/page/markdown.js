// An answer in Markdown as DOM nodes, while it grows: blocks that are complete stay as they are, the last one is drawn anew.

import { parseBlocks } from "./blocks.js";
import { CodeView } from "./code.js";
import { h, place } from "./dom.js";
import { renderInline } from "./inline.js";

// A line that is being written and may yet become a mark of its own: "-" of a list, "1." or "|--".
const UNDECIDED = /^\s*(?:[-+*=#>`~_|: ]+|\d+[.)]?)$/;

export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.clear();
  }

  clear() {
    this.text = "";
    this.settled = 0; // Characters of `text` whose blocks are complete.
    this.count = 0; // Nodes of these blocks.
    this.live = []; // The blocks behind them: {start, node, code}.
    this.element.replaceChildren();
  }

  // Shows `text`, which usually is the text shown so far with more behind it. With `growing`, more will come.
  update(text, growing) {
    if (text.slice(0, this.text.length) !== this.text) this.clear(); // `startsWith` is a hundred times as slow in V8.
    this.text = text;
    const lines = readLines(text.slice(this.settled));
    const whole = lines.length - 1; // The last line has no line break behind it yet.
    if (growing && UNDECIDED.test(lines[whole])) lines.pop();
    const blocks = parseBlocks(lines);
    this.live = blocks.map((block, index) => show(block, growing && index === blocks.length - 1, this.live[index]));
    place(this.element, this.live.map((shown) => shown.node), this.count);
    // A block is complete when the next one has begun with a line that will not change.
    const last = blocks.findLastIndex((block) => block.start < whole);
    if (last > 0) this.settle(last);
  }

  settle(count) {
    const lines = this.live[count].start;
    for (let line = 0; line < lines; line += 1) this.settled = this.text.indexOf("\n", this.settled) + 1;
    this.live = this.live.slice(count).map((shown) => ({ ...shown, start: shown.start - lines }));
    this.count += count;
  }
}

// A block's node. Code that was shown at the same place before goes on.
function show(block, growing, before) {
  if (block.type !== "code") return { start: block.start, node: renderBlock(block, growing), code: null };
  const goesOn = before?.code && before.start === block.start && before.code.name === block.language;
  const code = goesOn ? before.code : new CodeView(block.language);
  code.update(block.lines);
  return { start: block.start, node: code.element, code };
}

const readLines = (text) => text.split("\n").map((line) => withoutTabs(line.endsWith("\r") ? line.slice(0, -1) : line));
const withoutTabs = (line) => line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    "));

function renderBlock(block, growing) {
  switch (block.type) {
    case "heading":
      // The page's own title is h1 and the answer's h2, so that a reader of headings finds them in order.
      return h(`h${Math.min(6, block.level + 2)}`, { class: `level-${block.level}` }, renderInline(block.text, growing));
    case "rule":
      return h("hr");
    case "math":
      return h("p", { class: "formula block" }, block.text);
    case "quote":
      return h("blockquote", {}, ...renderBlocks(block.blocks, growing));
    case "list":
      return renderList(block, growing);
    case "table":
      return renderTable(block, growing);
    case "code":
      return show(block, growing).node;
    default:
      return h("p", {}, renderInline(block.text, growing));
  }
}

const renderBlocks = (blocks, growing) => blocks.map((block, index) => renderBlock(block, growing && index === blocks.length - 1));

function renderList(list, growing) {
  const items = list.items.map((item, index) => {
    const grows = growing && index === list.items.length - 1;
    const content = item.blocks.flatMap((block, place) => {
      const last = grows && place === item.blocks.length - 1;
      return !list.loose && block.type === "paragraph" ? [renderInline(block.text, last)] : [renderBlock(block, last)];
    });
    if (item.done === null) return h("li", {}, ...content);
    const box = h("input", { type: "checkbox", checked: item.done, disabled: true, "aria-label": item.done ? "Done" : "To do" });
    return h("li", { class: "task" }, box, ...content);
  });
  return h(list.ordered ? "ol" : "ul", { start: list.ordered && list.from !== 1 ? list.from : null }, ...items);
}

function renderTable(table, growing) {
  const row = (cells, tag, grows) =>
    h("tr", {}, ...cells.map((cell, i) => h(tag, { class: `to-${table.align[i]}`, scope: tag === "th" ? "col" : null }, renderInline(cell, grows))));
  const body = table.rows.map((cells, index) => row(cells, "td", growing && index === table.rows.length - 1));
  return h(
    "div",
    { class: "table", tabindex: 0, role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row(table.head, "th", false)), h("tbody", {}, ...body)),
  );
}
