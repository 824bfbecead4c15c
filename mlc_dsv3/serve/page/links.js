// Links of an answer: they lead to http, https or mailto, or nowhere. Images are links: nothing is loaded.

import { h } from "./dom.js";

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
export const LONGEST_TARGET = 2000; // Characters between a link's parentheses.

// The address of a link that may be followed, or null.
export function safeAddress(text) {
  try {
    const url = new URL(text); // No base: a relative address would lead into this server.
    return SCHEMES.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

// The address in `(address "title")`, where `start` is at the parenthesis, and what follows it.
export function readTarget(text, start) {
  if (text[start] !== "(") return null;
  const rest = text.slice(start + 1, start + 1 + LONGEST_TARGET);
  const skip = /^\s*/.exec(rest)[0].length;
  const angled = /^<([^<>\n]*)>/.exec(rest.slice(skip));
  const address = angled === null ? balanced(rest.slice(skip)) : angled[1];
  const behind = rest.slice(skip + (angled === null ? address.length : angled[0].length));
  const close = /^(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\)/.exec(behind);
  if (close === null) return null;
  return { address: address.replaceAll(/\\([!-/:-@[-`{-~])/g, "$1"), end: start + 1 + rest.length - behind.length + close[0].length };
}

// The start of `text` up to a space or to a parenthesis that it did not open. As in CommonMark, 32 may be open at a time.
function balanced(text) {
  let depth = 0;
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] === "(") depth += 1;
    if (text[i] === ")") depth -= 1;
    if (text[i] <= " " || depth < 0 || depth > 32) return text.slice(0, i);
  }
  return text;
}

export function withoutClosingMarks(text) {
  for (;;) {
    const opened = text.split("(").length - text.split(")").length;
    if (/[.,;:!?'*_~\]]$/.test(text) || (text.endsWith(")") && opened < 0)) text = text.slice(0, -1);
    else return text;
  }
}

export function anchor(address, ...children) {
  return h("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

export function linkTo(text, label, image) {
  const address = safeAddress(text);
  if (image) label.prepend("Image: ");
  if (address !== null) return anchor(address, label);
  return h("span", { class: "no-link" }, label, ` (${text})`); // Shown, so that nothing of the answer is hidden.
}
