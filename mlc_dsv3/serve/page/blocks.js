// Markdown's blocks (CommonMark and GitHub's tables, without HTML): lines of text → a tree of plain objects.
// A block has `type`, and `start` and `end`, the lines that it covers.

const DEEPEST = 12; // A quote or list that is nested deeper is shown as text.
const LONGEST_FORMULA = 100; // Lines.

export function parseBlocks(lines, depth = 0) {
  const blocks = [];
  let line = 0;
  while (line < lines.length) {
    if (isBlank(lines[line])) {
      line += 1;
      continue;
    }
    const block = readBlock(lines, line, depth);
    block.start = line;
    blocks.push(block);
    line = block.end;
  }
  return blocks;
}

function readBlock(lines, i, depth) {
  return (
    readFence(lines, i) ??
    readIndentedCode(lines, i) ??
    readMath(lines, i) ??
    readHeading(lines, i) ??
    readRule(lines, i) ??
    (depth < DEEPEST ? (readQuote(lines, i, depth) ?? readList(lines, i, depth)) : null) ??
    readTable(lines, i) ??
    readParagraph(lines, i)
  );
}

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

// Whether a line ends the paragraph before it.
function interrupts(lines, i) {
  const line = lines[i];
  if (indentOf(line) > 3) return false;
  const item = itemOf(line);
  return (
    fenceOf(line) !== null ||
    mathCloser(line) !== null ||
    headingLevel(line) > 0 ||
    isRule(line) ||
    line.trimStart().startsWith(">") ||
    (item !== null && !item.empty && (item.number === null || item.number === 1)) ||
    tableHead(lines, i) !== null
  );
}

function fenceOf(line) {
  const match = /^( {0,3})(`{3,}|~{3,})(.*)$/.exec(line);
  if (match === null || (match[2][0] === "`" && match[3].includes("`"))) return null;
  return { indent: match[1].length, mark: match[2], language: match[3].trim().split(/\s/)[0] };
}

function readFence(lines, i) {
  const fence = fenceOf(lines[i]);
  if (fence === null) return null;
  const code = [];
  for (let end = i + 1; end < lines.length; end += 1) {
    const text = lines[end].trim();
    if (text.length >= fence.mark.length && indentOf(lines[end]) < 4 && text === fence.mark[0].repeat(text.length)) {
      return { type: "code", language: fence.language, lines: code, closed: true, end: end + 1 };
    }
    code.push(lines[end].slice(Math.min(fence.indent, indentOf(lines[end]))));
  }
  return { type: "code", language: fence.language, lines: code, closed: false, end: lines.length };
}

function readIndentedCode(lines, i) {
  if (indentOf(lines[i]) < 4) return null;
  let end = i + 1;
  for (let next = end; next < lines.length && (isBlank(lines[next]) || indentOf(lines[next]) >= 4); next += 1) {
    if (!isBlank(lines[next])) end = next + 1;
  }
  return { type: "code", language: "", lines: lines.slice(i, end).map((line) => line.slice(4)), closed: true, end };
}

// What ends a formula that is set apart, where a line begins one with $$ or \[.
function mathCloser(line) {
  const text = line.trim();
  const closer = text.startsWith("$$") ? "$$" : text.startsWith("\\[") ? "\\]" : null;
  const place = closer === null ? -1 : text.indexOf(closer, 2);
  return place < 0 || place === text.length - 2 ? closer : null; // Text behind it: part of a paragraph.
}

// Ends with the line of its closer, or with its paragraph.
function readMath(lines, i) {
  const closer = mathCloser(lines[i]);
  if (closer === null) return null;
  let end = i + 1;
  let open = lines[i].trim().indexOf(closer, 2) < 0;
  for (; open && end < lines.length && end < i + LONGEST_FORMULA && !isBlank(lines[end]); end += 1) {
    open = !lines[end].includes(closer);
  }
  return { type: "math", text: lines.slice(i, end).join("\n"), end };
}

function headingLevel(line) {
  const match = /^ {0,3}(#{1,6})(?=\s|$)/.exec(line);
  return match === null ? 0 : match[1].length;
}

function readHeading(lines, i) {
  const level = headingLevel(lines[i]);
  if (level === 0) return null;
  let text = lines[i].trim().slice(level).trim();
  const bare = text.replace(/#+$/, "");
  if (bare === "" || bare.endsWith(" ")) text = bare.trim();
  return { type: "heading", level, text, end: i + 1 };
}

function isRule(line) {
  const marks = line.replaceAll(/\s/g, "");
  return indentOf(line) < 4 && marks.length >= 3 && "*-_".includes(marks[0]) && marks === marks[0].repeat(marks.length);
}

const readRule = (lines, i) => (isRule(lines[i]) ? { type: "rule", end: i + 1 } : null);

function readQuote(lines, i, depth) {
  const inner = [];
  let end = i;
  while (end < lines.length) {
    const match = /^ {0,3}> ?/.exec(lines[end]);
    if (match === null) break;
    inner.push(lines[end].slice(match[0].length));
    end += 1;
  }
  return end === i ? null : { type: "quote", blocks: parseBlocks(inner, depth + 1), end };
}

function itemOf(line) {
  const match = /^( {0,3})([-+*]|\d{1,9}[.)])(?: +|$)/.exec(line);
  if (match === null || isRule(line)) return null;
  const [indent, marker] = [match[1].length, match[2]];
  const spaces = match[0].length - indent - marker.length;
  const content = indent + marker.length + (spaces > 4 || spaces === 0 ? 1 : spaces);
  const number = /\d/.test(marker[0]) ? Number.parseInt(marker, 10) : null;
  // Models indent what belongs to "1." by two spaces as often as by three.
  return { content, least: Math.min(content, indent + 2), kind: marker.at(-1), number, empty: line.length === match[0].length };
}

function readList(lines, i, depth) {
  const first = itemOf(lines[i]);
  if (first === null) return null;
  const list = { type: "list", ordered: first.number !== null, from: first.number, loose: false, items: [], end: i };
  let next = i;
  while (next < lines.length) {
    const item = itemOf(lines[next]);
    if (item === null || item.kind !== first.kind) break;
    if (next > list.end) list.loose = true; // A blank line stands between this item and the one before.
    const inner = readItem(lines, next, item);
    list.end = inner.end;
    list.items.push(itemBlock(inner.lines, depth, list));
    next = list.end;
    while (next < lines.length && isBlank(lines[next])) next += 1;
  }
  return list;
}

// The lines of an item without its marker and indentation. `end` is behind its last line that is not blank.
function readItem(lines, i, item) {
  const inner = [lines[i].slice(item.content)];
  let end = i + 1;
  for (let next = end; next < lines.length; next += 1) {
    const [line, indent] = [lines[next], indentOf(lines[next])];
    if (!isBlank(line)) {
      const lazy = next === end && !interrupts(lines, next) && itemOf(line) === null;
      if (indent < item.least && !lazy) break;
      while (inner.length < next - i) inner.push("");
      inner.push(line.slice(Math.min(indent, item.content)));
      end = next + 1;
    }
  }
  return { lines: inner, end };
}

function itemBlock(lines, depth, list) {
  const task = /^\[([ xX])\] +/.exec(lines[0]);
  if (task !== null) lines[0] = lines[0].slice(task[0].length);
  const blocks = parseBlocks(lines, depth + 1);
  if (blocks.filter((block) => block.type === "paragraph").length > 1) list.loose = true;
  return { done: task === null ? null : task[1] !== " ", blocks };
}

function cellsOf(line) {
  const cells = [];
  let cell = "";
  const text = line.trim();
  for (let i = text[0] === "|" ? 1 : 0; i < text.length; i += 1) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      cell += "|";
      i += 1;
    } else if (text[i] === "|") {
      cells.push(cell.trim());
      cell = "";
    } else {
      cell += text[i];
    }
  }
  if (cell.trim() !== "") cells.push(cell.trim());
  return cells;
}

// A table's first row and how its columns are aligned, where line i begins one.
function tableHead(lines, i) {
  if (i + 1 >= lines.length || !lines[i].includes("|") || !/^[\s|:-]+$/.test(lines[i + 1])) return null;
  const [head, rule] = [cellsOf(lines[i]), cellsOf(lines[i + 1])];
  if (!lines[i + 1].includes("-") || head.length !== rule.length) return null;
  if (!rule.every((cell) => /^:?-+:?$/.test(cell))) return null;
  const align = rule.map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  return { head, align };
}

function readTable(lines, i) {
  const table = tableHead(lines, i);
  if (table === null) return null;
  const rows = [];
  let end = i + 2;
  while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end)) {
    const cells = cellsOf(lines[end]);
    rows.push(table.head.map((_, column) => cells[column] ?? ""));
    end += 1;
  }
  return { type: "table", ...table, rows, end };
}

function readParagraph(lines, i) {
  let end = i + 1;
  while (end < lines.length && !isBlank(lines[end])) {
    const underline = /^ {0,3}(=+|-+)\s*$/.exec(lines[end]);
    if (underline !== null) {
      const level = underline[1][0] === "=" ? 1 : 2;
      return { type: "heading", level, text: textOf(lines, i, end), end: end + 1 };
    }
    if (interrupts(lines, end)) break;
    end += 1;
  }
  return { type: "paragraph", text: textOf(lines, i, end), end };
}

const textOf = (lines, start, end) => lines.slice(start, end).map((line) => line.trimStart()).join("\n").trimEnd();
