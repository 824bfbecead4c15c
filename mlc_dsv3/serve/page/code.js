// A block of code: its language, a button that copies it, and its lines in light colours. While a model writes it, lines
// are added; those that are there stay as they are.

import { copyFrom, h, iconButton } from "./dom.js";

const C_LIKE = { line: ["//"], block: ["/*", "*/"], quotes: "\"'" };
const words = (text) => new Set(text.split(" "));
const C_WORDS =
  "auto bool break case catch char class const constexpr continue default delete do double else enum extern false float for if inline int " +
  "long namespace new nullptr NULL operator override private protected public return short signed sizeof static struct switch template this " +
  "throw true try typedef typename union unsigned using virtual void volatile while";

const LANGUAGES = {
  python: {
    line: ["#"],
    quotes: "\"'",
    long: ['"""', "'''"],
    words: words(
      "and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda " +
        "match None nonlocal not or pass raise return self True try while with yield",
    ),
  },
  javascript: {
    ...C_LIKE,
    long: ["`"],
    words: words(
      "as async await break case catch class const continue default delete do else enum export extends false finally for from function if " +
        "implements import in instanceof interface let new null of private public readonly return static super switch this throw true try " +
        "type typeof undefined var void while yield",
    ),
  },
  c: { ...C_LIKE, words: words(C_WORDS) },
  java: {
    ...C_LIKE,
    words: words(`${C_WORDS} abstract boolean byte extends final finally fun implements import instanceof interface null package super val var when`),
  },
  rust: {
    ...C_LIKE,
    quotes: '"',
    words: words(
      "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self " +
        "Self static struct super trait true type unsafe use where while",
    ),
  },
  go: {
    ...C_LIKE,
    long: ["`"],
    words: words(
      "break case chan const continue default defer else fallthrough false for func go if import interface map nil package range return " +
        "select struct switch true type var",
    ),
  },
  shell: {
    line: ["#"],
    quotes: "\"'",
    words: words("case cd do done echo elif else esac exit export fi for function if in local read return set source sudo then until while"),
  },
  sql: {
    line: ["--"],
    block: ["/*", "*/"],
    quotes: "'",
    anyCase: true,
    words: words(
      "ALTER AND AS ASC BETWEEN BY CASE CREATE DELETE DESC DISTINCT DROP ELSE END EXISTS FROM FULL GROUP HAVING IN INDEX INNER INSERT INTO IS " +
        "JOIN KEY LEFT LIKE LIMIT NOT NULL ON OR ORDER OUTER PRIMARY RIGHT SELECT SET TABLE THEN UNION UPDATE VALUES WHEN WHERE WITH",
    ),
  },
  json: { quotes: '"', words: words("true false null") },
  yaml: { line: ["#"], quotes: "\"'", words: words("true false null yes no") },
};

const ALIASES = {
  py: "python", python3: "python", pyi: "python", js: "javascript", jsx: "javascript", ts: "javascript", tsx: "javascript",
  typescript: "javascript", mjs: "javascript", "c++": "c", cpp: "c", cc: "c", h: "c", hpp: "c", cuda: "c", cu: "c", metal: "c", glsl: "c",
  cs: "java", csharp: "java", kotlin: "java", kt: "java", swift: "java", scala: "java", rs: "rust", golang: "go", sh: "shell", bash: "shell",
  zsh: "shell", console: "shell", jsonc: "json", jsonl: "json", yml: "yaml", toml: "yaml", ini: "yaml",
};

export function languageOf(name) {
  const lower = name.toLowerCase();
  return LANGUAGES[Object.hasOwn(ALIASES, lower) ? ALIASES[lower] : Object.hasOwn(LANGUAGES, lower) ? lower : ""] ?? null;
}

// The spans of one line. `state.end` is what closes a comment or string that began on a line before.
export function colourLine(line, language, state) {
  if (language === null) return [line];
  const nodes = [];
  let plain = "";
  const put = (text, kind) => {
    if (plain !== "") nodes.push(plain);
    plain = "";
    nodes.push(h("span", { class: `code-${kind}` }, text));
  };
  const until = (from, end, kind, start) => {
    const found = line.indexOf(end, from);
    state.end = found < 0 ? end : null;
    state.kind = kind;
    const stop = found < 0 ? line.length : found + end.length;
    put(line.slice(start, stop), kind);
    return stop;
  };
  let i = state.end === null ? 0 : until(0, state.end, state.kind, 0);
  while (i < line.length) {
    const rest = (marks) => marks?.find((mark) => line.startsWith(mark, i));
    const long = rest(language.long);
    if (rest(language.line) !== undefined && (i === 0 || language.line[0] !== "#" || /\s/.test(line[i - 1]))) {
      put(line.slice(i), "comment");
      break;
    } else if (language.block !== undefined && line.startsWith(language.block[0], i)) {
      i = until(i + language.block[0].length, language.block[1], "comment", i);
    } else if (long !== undefined) {
      i = until(i + long.length, long, "string", i);
    } else if (language.quotes.includes(line[i])) {
      const end = closingQuote(line, i);
      put(line.slice(i, end), "string");
      i = end;
    } else {
      const word = match(/[A-Za-z_][\w]*/y, line, i) ?? match(/\d[\w.]*/y, line, i);
      const kind = word === null ? null : kindOf(word, line, i, language);
      if (kind === null) plain += word ?? line[i];
      else put(word, kind);
      i += (word ?? line[i]).length;
    }
  }
  if (plain !== "") nodes.push(plain);
  return nodes;
}

function kindOf(word, line, i, language) {
  if (/^\d/.test(word)) return "number";
  if (language.words.has(language.anyCase ? word.toUpperCase() : word)) return "keyword";
  return line[i + word.length] === "(" ? "call" : null;
}

function match(expression, line, i) {
  expression.lastIndex = i;
  return expression.exec(line)?.[0] ?? null;
}

function closingQuote(line, i) {
  for (let end = i + 1; end < line.length; end += 1) {
    if (line[end] === "\\") end += 1;
    else if (line[end] === line[i]) return end + 1;
  }
  return line.length;
}

export class CodeView {
  constructor(name) {
    this.name = name;
    this.language = languageOf(name);
    this.code = h("code");
    this.element = h(
      "figure",
      { class: "code" },
      h(
        "figcaption",
        {},
        h("span", {}, name || "text"),
        iconButton("copy", "Copy code", (event) => copyFrom(event.currentTarget, this.text)),
      ),
      h("pre", { tabindex: 0, role: "region", "aria-label": name === "" ? "Code" : `Code, ${name}` }, this.code),
    );
    this.lines = [];
    this.shown = []; // Of each line: its nodes, and the comment or string that is open in front of it.
  }

  get text() {
    return this.lines.join("\n");
  }

  // Shows these lines. Those that are shown already are taken to be the same, but for the last of them, which may have
  // grown, or have lost what turned out to be the closing fence.
  update(lines) {
    if (lines.length === this.lines.length && lines.at(-1) === this.lines.at(-1)) return;
    const from = Math.max(0, Math.min(lines.length, this.lines.length) - 1);
    const [redrawn] = this.shown.slice(from);
    for (const line of this.shown.splice(from)) for (const node of line.nodes) node.remove();
    const state = { ...(redrawn?.before ?? { end: null, kind: "" }) };
    for (let i = from; i < lines.length; i += 1) {
      const before = { ...state };
      const content = colourLine(lines[i], this.language, state);
      if (i + 1 < lines.length) content.push("\n");
      const nodes = content.map((node) => (typeof node === "string" ? document.createTextNode(node) : node));
      this.code.append(...nodes);
      this.shown.push({ nodes, before });
    }
    this.lines = lines;
  }
}
