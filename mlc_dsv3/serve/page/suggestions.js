// What an empty conversation shows: a greeting, and some things to try.

import { h } from "./dom.js";

const DEMO = [
  "Anna is in the kitchen. Anna has a red ball. Anna goes to the park. Where is the ball?",
  "What is 34 + 57?",
  "Tom is in the garden. Mia is in the office. Who is in the garden?",
];
const OTHERS = [
  "Explain multi-head latent attention in five sentences.",
  "Write a Python function that merges two sorted lists, with a test.",
  "Compare TCP and UDP in a table.",
];

export function emptyState(model, send) {
  const demo = model?.id.toLowerCase().includes("demo") ?? false;
  const note = demo
    ? "This is a small demo model. It knows a small world: tell it who is where and who has what, then ask; or ask for a sum."
    : "Answers come from the model on this server. Conversations stay in this browser.";
  const chips = (model === null ? [] : demo ? DEMO : OTHERS).map((text) => h("button", { type: "button", class: "suggestion", onclick: () => send(text) }, text));
  return h("section", { class: "welcome" }, h("img", { src: "page/icon.svg", alt: "", width: 46, height: 46 }), h("h2", {}, model === null ? "Connecting…" : "What would you like to know?"), h("p", {}, note), h("div", { class: "suggestions" }, ...chips));
}
