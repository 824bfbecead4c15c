// The panel of settings: system prompt, sampling, thinking, tools. They belong to the shown conversation, and new ones
// start with the latest.

import { byId, h, iconButton } from "./dom.js";
import { SETTINGS } from "./preferences.js";

// The server checks again; these limits let the reader see a slip where it is made.
const NUMBERS = [
  { name: "temperature", label: "Temperature", least: 0, most: 2, step: 0.05, hint: "0 always takes the likeliest token" },
  { name: "top_p", label: "Top p", least: 0, most: 1, step: 0.01, hint: "the likeliest tokens that make up this probability" },
  { name: "top_k", label: "Top k", least: 0, step: 1, hint: "this many of the likeliest tokens; 0 takes all" },
  { name: "min_p", label: "Min p", least: 0, most: 1, step: 0.01, hint: "tokens at least this likely beside the likeliest" },
  { name: "max_tokens", label: "Max tokens", least: 1, step: 1, hint: "where an answer is cut off" },
  { name: "seed", label: "Seed", least: 0, step: 1, hint: "the same seed gives the same answer" },
];

export class SettingsPanel {
  // `changed(settings)`; `close()`; `askKey()`.
  constructor(actions) {
    this.actions = actions;
    this.element = byId("settings");
    this.settings = { ...SETTINGS };
  }

  // `switches`: whether the model's template can switch thinking.
  show(settings, switches) {
    this.settings = { ...SETTINGS, ...settings };
    this.element.replaceChildren(
      h(
        "header",
        { class: "panel-head" },
        h("h2", { id: "settings-title" }, "Settings"),
        iconButton("close", "Close the settings", () => this.actions.close()),
      ),
      h(
        "div",
        { class: "panel-body" },
        this.text("system", "System prompt", 5, "What the model is told before the conversation"),
        switches ? this.thinking() : null,
        h("div", { class: "numbers" }, ...NUMBERS.map((number) => this.number(number))),
        h("p", { class: "hint" }, "What is left empty is the model's own default."),
        h("details", { class: "more", open: this.settings.tools !== "" }, h("summary", {}, "Tools"), this.tools()),
        h(
          "div",
          { class: "buttons" },
          h("button", { type: "button", class: "button", onclick: () => this.actions.askKey() }, "API key…"),
          h("button", { type: "button", class: "button", onclick: () => this.reset(switches) }, "Reset"),
        ),
      ),
    );
  }

  set(name, value) {
    this.settings = { ...this.settings, [name]: value };
    this.actions.changed(this.settings);
  }

  reset(switches) {
    this.actions.changed({ ...SETTINGS });
    this.show(SETTINGS, switches);
  }

  text(name, label, rows, placeholder) {
    const field = h("textarea", { id: `set-${name}`, rows, placeholder, spellcheck: name === "tools" ? "false" : null });
    field.value = this.settings[name];
    field.addEventListener("change", () => this.set(name, field.value));
    return h("div", { class: "field" }, h("label", { for: field.id }, label), field);
  }

  number({ name, label, least, most, step, hint }) {
    const id = `set-${name}`;
    const field = h("input", {
      id, type: "number", min: least, max: most, step: step < 1 ? "any" : step, inputmode: step < 1 ? "decimal" : "numeric",
      placeholder: "default", "aria-describedby": `${id}-hint`,
    });
    field.value = this.settings[name] ?? "";
    const note = h("p", { class: "hint", id: `${id}-hint` }, hint);
    field.addEventListener("change", () => {
      const valid = field.checkValidity();
      field.setAttribute("aria-invalid", String(!valid));
      note.classList.toggle("field-error", !valid);
      note.textContent = valid ? hint : field.validationMessage;
      if (valid) this.set(name, field.value === "" ? null : field.valueAsNumber);
    });
    return h("div", { class: "field" }, h("label", { for: id }, label), field, note);
  }

  thinking() {
    const choice = h("select", { id: "set-thinking" });
    for (const [value, label] of [["", "As the model does by default"], ["true", "On"], ["false", "Off"]]) {
      choice.append(h("option", { value, selected: value === String(this.settings.thinking ?? "") }, label));
    }
    choice.addEventListener("change", () => this.set("thinking", choice.value === "" ? null : choice.value === "true"));
    return h("div", { class: "field" }, h("label", { for: choice.id }, "Thinking"), choice);
  }

  tools() {
    const field = h("textarea", { id: "set-tools", rows: 8, spellcheck: "false", placeholder: '[{"type": "function", "function": {"name": …}}]' });
    field.value = this.settings.tools;
    const note = h("p", { class: "hint", id: "set-tools-hint", role: "status" }, "Definitions as in OpenAI's API. You give the results of calls yourself.");
    field.setAttribute("aria-describedby", note.id);
    field.addEventListener("change", () => {
      const problem = problemOfTools(field.value);
      field.setAttribute("aria-invalid", String(problem !== ""));
      note.classList.toggle("field-error", problem !== "");
      note.textContent = problem || "The model may call these. You give the results yourself.";
      if (problem === "") this.set("tools", field.value);
    });
    return h("div", { class: "field" }, h("label", { for: field.id }, "Tools as JSON"), field, note);
  }
}

function problemOfTools(text) {
  if (text.trim() === "") return "";
  try {
    return Array.isArray(JSON.parse(text)) ? "" : "This is not a list: write [ and ] around the tools.";
  } catch (error) {
    return `This is not JSON: ${error.message}`;
  }
}
