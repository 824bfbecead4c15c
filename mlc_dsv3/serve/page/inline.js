// Markdown's inline text → DOM nodes: emphasis as in CommonMark (delimiter runs), code, links, and formulas left as text.
// HTML is text.

import { h } from "./dom.js";
import { anchor, linkTo, LONGEST_TARGET, readTarget, safeAddress, withoutClosingMarks } from "./links.js";

const LONGEST_FORMULA = 2000;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", ndash: "–", mdash: "—", hellip: "…", times: "×" };
const SPACE = /^\s?$/u;
// Chinese and Japanese put no spaces around emphasis, so that their characters count as punctuation does.
const PUNCTUATION = /[\p{P}\p{S}\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/u;

// A fragment for `text`. With `growing`, text that has begun in bold, code or a link is already shown so.
export function renderInline(text, growing = false) {
  return new Inline(text, growing).render();
}

class Inline {
  constructor(text, growing) {
    this.text = text;
    this.growing = growing;
    this.position = 0;
    this.plain = ""; // Characters that wait to become a text node.
    this.out = document.createDocumentFragment();
    this.runs = []; // Runs of *, _ and ~ that may still open or close something.
    this.brackets = [];
    this.codeEnds = new Map(); // Length of a run of backticks → from where on there is none.
  }

  render() {
    while (this.position < this.text.length) this.step();
    this.flush();
    this.emphasise(0);
    if (this.growing) this.closeBold();
    this.out.normalize();
    return this.out;
  }

  step() {
    const ordinary = /[^\\`*_~[\]!<&$\nhH]+/y;
    ordinary.lastIndex = this.position;
    const match = ordinary.exec(this.text);
    if (match !== null) {
      this.plain += match[0];
      this.position += match[0].length;
      return;
    }
    const character = this.text[this.position];
    const read = READERS[character];
    if (!read.call(this, character)) {
      this.plain += character;
      this.position += 1;
    }
  }

  flush() {
    if (this.plain !== "") this.out.append(this.plain);
    this.plain = "";
  }

  add(node, length) {
    this.flush();
    this.out.append(node);
    this.position += length;
    return true;
  }

  // A match of a sticky expression at the current place, or null.
  match(expression) {
    expression.lastIndex = this.position;
    return expression.exec(this.text);
  }

  escape() {
    const next = this.text[this.position + 1];
    if (next === "(") return this.formula("\\(", "\\)");
    if (next === "[") return this.formula("\\[", "\\]") || this.escaped(next);
    if (next === "\n") return this.add(h("br"), 2);
    return next !== undefined && /[!-/:-@[-`{-~]/.test(next) && this.escaped(next);
  }

  escaped(character) {
    this.plain += character;
    this.position += 2;
    return true;
  }

  code() {
    const ticks = this.match(/`+/y)[0];
    const start = this.position + ticks.length;
    const end = this.closingTicks(start, ticks.length);
    if (end < 0 && !this.growing) {
      this.plain += ticks;
      this.position = start;
      return true;
    }
    let content = this.text.slice(start, end < 0 ? this.text.length : end).replaceAll("\n", " ");
    if (content.startsWith(" ") && content.endsWith(" ") && content.trim() !== "") content = content.slice(1, -1);
    return this.add(h("code", {}, content), end < 0 ? this.text.length : end + ticks.length - this.position);
  }

  closingTicks(start, length) {
    if (this.codeEnds.get(length) <= start) return -1;
    const runs = /`+/g;
    runs.lastIndex = start;
    for (let run = runs.exec(this.text); run !== null; run = runs.exec(this.text)) {
      if (run[0].length === length) return run.index;
    }
    this.codeEnds.set(length, start);
    return -1;
  }

  formula(opener, closer) {
    const start = this.position + opener.length;
    const end = this.text.slice(start, start + LONGEST_FORMULA).indexOf(closer);
    if (end <= 0) return false;
    const length = opener.length + end + closer.length;
    return this.add(h("span", { class: "formula" }, this.text.slice(this.position, this.position + length)), length);
  }

  // $x$ as in Pandoc: no space inside the marks, and no digit behind them, so that prices stay prices.
  dollar() {
    if (this.text[this.position + 1] === "$") return this.formula("$$", "$$");
    const found = this.match(/\$(?!\s)[^$\n]{1,1000}(?<![\s\\])\$(?!\d)/y);
    return found !== null && this.add(h("span", { class: "formula" }, found[0]), found[0].length);
  }

  run(character) {
    const expression = character === "*" ? /\*+/y : character === "_" ? /_+/y : /~+/y;
    const text = this.match(expression)[0];
    const end = this.position + text.length;
    const before = /.$/su.exec(this.text.slice(Math.max(0, this.position - 2), this.position))?.[0] ?? "";
    const after = /^./su.exec(this.text.slice(end, end + 2))?.[0] ?? "";
    const [spaceBefore, spaceAfter] = [SPACE.test(before), SPACE.test(after)];
    const [markBefore, markAfter] = [PUNCTUATION.test(before), PUNCTUATION.test(after)];
    const left = !spaceAfter && (!markAfter || spaceBefore || markBefore);
    const right = !spaceBefore && (!markBefore || spaceAfter || markAfter);
    const node = document.createTextNode(text);
    this.add(node, text.length);
    if (character === "~" && text.length !== 2) return true;
    const word = character === "_";
    const open = left && (!word || !right || markBefore);
    const close = right && (!word || !left || markAfter);
    if (open || close) this.runs.push({ node, character, count: text.length, length: text.length, open, close });
    return true;
  }

  // Pairs the runs from `bottom` on: CommonMark's "process emphasis", with its bounds on how far to look back.
  emphasise(bottom) {
    const floor = new Map();
    const runs = this.runs.splice(bottom);
    const openers = [];
    for (const run of runs) {
      while (run.close && run.count > 0) {
        const key = `${run.character}${run.open}${run.length % 3}`;
        let index = openers.length - 1;
        const least = Math.min(floor.get(key) ?? 0, openers.length);
        while (index >= least && !pairs(openers[index], run)) index -= 1;
        if (index < least) {
          floor.set(key, openers.length);
          break;
        }
        wrap(openers[index], run);
        openers.length = openers[index].count > 0 ? index + 1 : index;
        for (const [name, value] of floor) floor.set(name, Math.min(value, openers.length));
      }
      if (run.open && run.count > 0) openers.push(run);
    }
    this.unclosed = openers;
  }

  closeBold() {
    for (const run of this.unclosed.reverse()) {
      if (run.character !== "*" || run.count < 2 || run.node.nextSibling === null) continue;
      const strong = h("strong");
      while (run.node.nextSibling !== null) strong.append(run.node.nextSibling);
      shorten(run, 2);
      this.out.append(strong);
    }
  }

  openBracket(character) {
    const image = character === "!";
    if (image && this.text[this.position + 1] !== "[") return false;
    const node = document.createTextNode(image ? "![" : "[");
    this.add(node, image ? 2 : 1);
    this.brackets.push({ node, image, runs: this.runs.length, active: true });
    return true;
  }

  closeBracket() {
    const bracket = this.brackets.pop();
    if (bracket === undefined || !bracket.active) return false;
    const target = readTarget(this.text, this.position + 1);
    if (target === null) return this.growing && this.beginTarget(bracket);
    this.flush();
    this.emphasise(bracket.runs);
    const label = document.createDocumentFragment();
    while (bracket.node.nextSibling !== null) label.append(bracket.node.nextSibling);
    bracket.node.replaceWith(linkTo(target.address, label, bracket.image));
    if (!bracket.image) for (const outer of this.brackets) outer.active = outer.active && outer.image;
    this.position = target.end;
    return true;
  }

  // The address of a link is still being written: show its label alone.
  beginTarget(bracket) {
    const rest = this.text.slice(this.position + 1);
    if (!rest.startsWith("(") || /\s/.test(rest) || rest.length > LONGEST_TARGET) return false;
    this.flush();
    bracket.node.remove();
    this.position = this.text.length;
    return true;
  }

  angle() {
    const line = this.match(/<br ?\/?>/iy);
    if (line !== null) return this.add(h("br"), line[0].length);
    const found = this.match(/<([a-zA-Z][a-zA-Z0-9+.-]{1,31}:[^\s<>]{1,2000}|[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8})>/y);
    if (found === null) return false;
    const address = safeAddress(found[1].includes(":") ? found[1] : `mailto:${found[1]}`);
    return address !== null && this.add(anchor(address, found[1]), found[0].length);
  }

  entity() {
    const found = this.match(/&(?:([a-zA-Z]{2,8})|#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6}));/y);
    if (found === null) return false;
    const code = found[2] !== undefined ? Number.parseInt(found[2], 10) : Number.parseInt(found[3], 16);
    const text = found[1] === undefined ? (code > 0 && code < 0x110000 ? String.fromCodePoint(code) : "\ufffd") : ENTITIES[found[1]];
    if (text === undefined) return false;
    this.plain += text;
    this.position += found[0].length;
    return true;
  }

  // A model that starts a new line means one.
  lineBreak() {
    this.plain = this.plain.trimEnd();
    return this.add(h("br"), 1);
  }

  bareAddress() {
    if (this.position > 0 && /[\w@/]/.test(this.text[this.position - 1])) return false;
    const found = this.match(/https?:\/\/[^\s<>"`|\\]{1,2000}/iy);
    if (found === null) return false;
    const text = withoutClosingMarks(found[0]);
    const address = safeAddress(text);
    return address !== null && this.add(anchor(address, text), text.length);
  }
}

const READERS = {
  "\\": Inline.prototype.escape,
  "`": Inline.prototype.code,
  "*": Inline.prototype.run,
  _: Inline.prototype.run,
  "~": Inline.prototype.run,
  "[": Inline.prototype.openBracket,
  "!": Inline.prototype.openBracket,
  "]": Inline.prototype.closeBracket,
  "<": Inline.prototype.angle,
  "&": Inline.prototype.entity,
  $: Inline.prototype.dollar,
  "\n": Inline.prototype.lineBreak,
  h: Inline.prototype.bareAddress,
  H: Inline.prototype.bareAddress,
};

function pairs(opener, closer) {
  if (opener.character !== closer.character) return false;
  if (opener.character === "~") return true;
  const both = opener.close || closer.open;
  return !both || (opener.length + closer.length) % 3 !== 0 || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

function wrap(opener, closer) {
  const count = opener.count >= 2 && closer.count >= 2 ? 2 : 1;
  const element = h(opener.character === "~" ? "del" : count === 2 ? "strong" : "em");
  while (opener.node.nextSibling !== closer.node) element.append(opener.node.nextSibling);
  opener.node.after(element);
  shorten(opener, count);
  shorten(closer, count);
}

function shorten(run, count) {
  run.count -= count;
  run.node.data = run.node.data.slice(count);
}
