// The load of the routed experts as a heat map: a row a layer, a column an expert, beside an even share of 1 / experts.

import { byId, h, iconButton } from "./dom.js";
import { readExperts } from "./server.js";

const INTERVAL = 1000; // Milliseconds.
const MOST = 4; // The scale ends at this many times the even share.
const STOPS = ["--heat-0", "--heat-1", "--heat-2", "--heat-3", "--heat-4"];

export class ExpertsPanel {
  constructor({ close }) {
    this.load = null;
    this.cell = null; // [row, column] under the pointer or the keyboard's cursor.
    this.timer = null;
    this.canvas = h("canvas", { class: "heat", tabindex: 0, role: "img", "aria-describedby": "heat-text heat-value" });
    this.value = h("p", { class: "heat-value", id: "heat-value", role: "status" });
    this.text = h("p", { class: "hint", id: "heat-text" });
    this.rows = h("tbody");
    this.legend = h("canvas", { class: "legend-bar", "aria-hidden": "true" });
    this.map = h(
      "div",
      { hidden: true },
      this.canvas,
      h("div", { class: "legend" }, h("span", {}, "0"), this.legend, h("span", {}, `${MOST}× or more`), h("span", { class: "legend-even" }, "1× is an even share")),
      this.value,
      this.text,
      h("details", { class: "more" }, h("summary", {}, "As a table"), h("table", { class: "busiest" }, tableHead(), this.rows)),
    );
    this.nothing = h("p", { class: "hint" });
    byId("experts").replaceChildren(
      h("header", { class: "panel-head" }, h("h2", { id: "experts-title" }, "Experts"), iconButton("close", "Close the experts", close)),
      h("div", { class: "panel-body" }, this.nothing, this.map),
    );
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.select(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.load !== null && this.select(this.cell ?? [0, 0]));
    this.canvas.addEventListener("blur", () => this.select(null));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // Polls once a second while `active`, and reads once more when that ends.
  follow(active) {
    clearInterval(this.timer);
    this.timer = active ? setInterval(() => this.read(), INTERVAL) : null;
    this.read();
  }

  async read() {
    if (this.reading || byId("experts").hidden || document.hidden) return;
    this.reading = true;
    try {
      this.update(await readExperts());
    } catch (error) {
      if (this.load === null) this.nothing.textContent = error.message;
    } finally {
      this.reading = false;
    }
  }

  update(load) {
    this.map.hidden = load === null;
    this.nothing.hidden = load !== null;
    this.nothing.textContent = "The server counts no experts: the model has none, or counting is off.";
    if (load === null) return;
    this.load = load;
    const busiest = load.load.map(busiestOf);
    const worst = busiest.reduce((best, one, row) => (one.share > busiest[best].share ? row : best), 0);
    const { layers, experts, tokens } = load;
    this.canvas.setAttribute("aria-label", `Load of ${experts} experts in ${layers.length} layers. Arrow keys move over it.`);
    this.text.textContent = tokens === 0 ? "No tokens yet: the load appears with the first answer." : inWords(load, busiest[worst], layers[worst]);
    this.rows.replaceChildren(
      ...busiest.map((one, row) =>
        h("tr", {}, h("th", { scope: "row" }, String(layers[row])), h("td", {}, String(one.expert)), h("td", {}, percent(one.share)), h("td", {}, String(one.idle))),
      ),
    );
    this.draw();
    this.tell();
  }

  // The size of the drawing in CSS pixels.
  geometry() {
    const { layers, experts } = this.load;
    const left = 8 + 7 * String(layers.at(-1)).length;
    const width = this.canvas.clientWidth - left;
    const cell = width / experts;
    return { left, cell, row: Math.max(5, Math.min(30, Math.max(cell * 1.6, 260 / layers.length))), gap: cell > 5 ? 1 : 0 };
  }

  draw() {
    if (this.load === null || this.canvas.clientWidth === 0) return;
    const colours = readColours(this.canvas);
    this.drawLegend(colours);
    const { layers, load, experts } = this.load;
    const { left, cell, row, gap } = this.geometry();
    const context = prepare(this.canvas, this.canvas.clientWidth, row * layers.length);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.ceil(14 / row);
    for (const [y, shares] of load.entries()) {
      context.fillStyle = colours.text;
      if (y % every === 0) context.fillText(String(layers[y]), left - 6, (y + 0.5) * row);
      for (const [x, share] of shares.entries()) {
        context.fillStyle = heat(colours.stops, share * experts);
        context.fillRect(left + x * cell, y * row, cell - gap, row - Math.max(gap, row > 8 ? 1 : 0));
      }
    }
    if (this.cell !== null) {
      context.strokeStyle = colours.mark;
      context.lineWidth = 2;
      context.strokeRect(left + this.cell[1] * cell, this.cell[0] * row, Math.max(3, cell - gap), row - 1);
    }
  }

  drawLegend({ stops }) {
    const width = this.legend.clientWidth;
    const context = prepare(this.legend, width, 10);
    for (let x = 0; x < width; x += 1) {
      context.fillStyle = heat(stops, (MOST * x) / width);
      context.fillRect(x, 0, 1.5, 10);
    }
  }

  point(event) {
    if (this.load === null) return;
    const { left, cell, row } = this.geometry();
    const column = Math.floor((event.offsetX - left) / cell);
    const line = Math.floor(event.offsetY / row);
    const inside = column >= 0 && column < this.load.experts && line >= 0 && line < this.load.layers.length;
    this.select(inside ? [line, column] : null);
  }

  key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step === undefined || this.load === null) return;
    event.preventDefault();
    const [row, column] = this.cell ?? [0, 0];
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    this.select([within(row + step[0], this.load.layers.length), within(column + step[1], this.load.experts)]);
  }

  select(cell) {
    if (String(cell) === String(this.cell)) return;
    this.cell = cell;
    this.draw();
    this.tell();
  }

  tell() {
    if (this.cell === null) {
      this.value.textContent = "Point at a square, or move over the map with the arrow keys.";
      return;
    }
    const [row, column] = this.cell;
    const share = this.load.load[row][column];
    this.value.textContent = `Layer ${this.load.layers[row]}, expert ${column}: ${percent(share)} of choices, ${times(share * this.load.experts)} an even share`;
  }
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
const times = (ratio) => `${ratio.toFixed(ratio < 10 ? 1 : 0)}×`;

function inWords({ tokens, experts }, { expert, share }, layer) {
  const counted = Math.round(tokens).toLocaleString("en");
  return `Choices of the routers over the last ${counted} tokens. Busiest: expert ${expert} of layer ${layer}, with ${times(share * experts)} an even share.`;
}

function tableHead() {
  const cells = ["Layer", "Busiest", "Its share", "Idle"].map((name) => h("th", { scope: "col" }, name));
  return h("thead", {}, h("tr", {}, ...cells));
}

function busiestOf(shares) {
  let expert = 0;
  for (const [index, share] of shares.entries()) if (share > shares[expert]) expert = index;
  return { expert, share: shares[expert], idle: shares.filter((share) => share === 0).length };
}

function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

// Colours of the theme as they are now, from the style sheet.
function readColours(element) {
  const probe = h("span", { hidden: true });
  element.after(probe);
  const read = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const colours = { stops: STOPS.map((name) => read(name).match(/[\d.]+/g).slice(0, 3).map(Number)), text: read("--muted"), mark: read("--text") };
  probe.remove();
  return colours;
}

// Squares of a ratio between 0 and MOST spread the low ones, where most experts are.
function heat(stops, ratio) {
  const place = Math.sqrt(Math.min(1, Math.max(0, ratio / MOST))) * (stops.length - 1);
  const index = Math.min(stops.length - 2, Math.floor(place));
  const part = place - index;
  const mixed = stops[index].map((value, channel) => Math.round(value + part * (stops[index + 1][channel] - value)));
  return `rgb(${mixed.join(" ")})`;
}
