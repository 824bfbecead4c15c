// Elements and icons. Text becomes text nodes: nothing on this page parses HTML that a model wrote.

// `h("a", {class: "x", onclick: f}, "text", node)`. Attributes that are null, undefined or false are left out.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Makes these the children from place `from` on. Those that are there already are not moved: they keep focus and scrolling.
export function place(parent, nodes, from = 0) {
  let next = parent.childNodes[from] ?? null;
  for (const node of nodes) {
    while (next !== null && next !== node && !nodes.includes(next)) {
      const rest = next.nextSibling;
      next.remove();
      next = rest;
    }
    if (node === next) next = next.nextSibling;
    else parent.insertBefore(node, next);
  }
  while (next !== null) {
    const rest = next.nextSibling;
    next.remove();
    next = rest;
  }
}

export const byId = (id) => document.getElementById(id);

// Paths in a square of 24, drawn as strokes.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 13l4.5 4.5L19 7",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  pencil: "M5 19l1-4L16.5 4.5l3 3L9 18zM14 7l3 3",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  down: "M12 5v14M6 13l6 6 6-6",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  grid: "M4 4h4v4H4zM10 4h4v4h-4zM16 4h4v4h-4zM4 10h4v4H4zM10 10h4v4h-4zM16 10h4v4h-4zM4 16h4v4H4zM10 16h4v4h-4zM16 16h4v4h-4z",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  tool: "M14 6a4 4 0 0 1 5-1l-3 3 1 2 2 1 3-3a4 4 0 0 1-6 5l-7 7-3-3 7-7a4 4 0 0 1 1-4z",
};

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [attribute, value] of [["viewBox", "0 0 24 24"], ["class", "icon"], ["aria-hidden", "true"]]) {
    svg.setAttribute(attribute, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// A button that shows an icon alone, and whose label is read out and shown as a tooltip.
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

// Gives the buttons of index.html their icons.
export function drawIcons(root) {
  for (const element of root.querySelectorAll("[data-icon]")) {
    element.prepend(icon(element.dataset.icon));
    if (element.ariaLabel) element.title = element.ariaLabel;
  }
}

// Copies text and says so on the button for a moment.
export async function copyFrom(button, text) {
  if (button.classList.contains("done")) return;
  button.classList.add("done");
  const copied = await writeClipboard(text);
  const [drawing, label] = [button.querySelector("svg"), button.getAttribute("aria-label")];
  const done = copied ? "Copied" : "The browser does not allow copying";
  drawing.replaceWith(icon(copied ? "check" : "close"));
  button.setAttribute("aria-label", done);
  announce(done);
  setTimeout(() => {
    button.querySelector("svg").replaceWith(drawing);
    button.setAttribute("aria-label", label);
    button.classList.remove("done");
  }, 1500);
}

// Browsers offer the clipboard on HTTPS and on loopback alone; elsewhere the old command still works.
async function writeClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = h("textarea", { class: "hidden" });
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

// Has a screen reader say something once.
export function announce(text) {
  byId("announcer").textContent = text;
}

let toastTimer = 0;

// A line at the bottom for some seconds, with at most one thing to do about it.
export function toast(text, action = null) {
  const element = byId("toast");
  const hide = () => element.classList.remove("shown");
  const button = action && h("button", { type: "button", class: "quiet-button", onclick: () => (hide(), action.run()) }, action.label);
  element.replaceChildren(h("span", {}, text), ...(button ? [button] : []));
  element.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hide, action ? 12000 : 5000);
}
