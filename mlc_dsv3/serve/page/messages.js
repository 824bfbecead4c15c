// What is shown of one message: a question, an answer while it grows and afterwards, a tool's result.
// `actions` is the page's: edit(message, text), regenerate(message), showVersion(message), retry(message), answerTool(message, results).

import { isEmptyAnswer } from "./conversation.js";
import { copyFrom, h, icon, iconButton } from "./dom.js";
import { figuresOf } from "./figures.js";
import { MarkdownView } from "./markdown.js";

export function viewOf(message, actions) {
  return message.role === "user" ? new Question(message, actions) : message.role === "tool" ? new ToolResult(message) : new Answer(message, actions);
}

function versionButtons(message, versions, actions) {
  if (versions.length < 2) return [];
  const at = versions.indexOf(message);
  const step = (name, label, other) => iconButton(name, label, () => actions.showVersion(other), { disabled: other === undefined });
  return [
    h(
      "span",
      { class: "versions", role: "group", "aria-label": "Versions" },
      step("left", "Version before", versions[at - 1]),
      h("span", {}, `${at + 1}/${versions.length}`),
      step("right", "Version after", versions[at + 1]),
    ),
  ];
}

class Question {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = h("div", { class: "bubble" }, message.content);
    this.tools = h("div", { class: "tools" });
    this.element = h("article", { class: "message question", "aria-label": "You" }, this.body, this.tools);
  }

  update({ versions, running }) {
    const { message, actions } = this;
    this.tools.replaceChildren(
      ...versionButtons(message, versions, actions),
      iconButton("copy", "Copy", (event) => copyFrom(event.currentTarget, message.content)),
      iconButton("pencil", "Edit", () => this.edit(), { disabled: running }),
    );
  }

  edit() {
    if (this.form !== undefined) return;
    const field = h("textarea", { "aria-label": "Edit your message", rows: 1 });
    field.value = this.message.content;
    const send = () => field.value.trim() !== "" && this.actions.edit(this.message, field.value.trim());
    const keys = (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        this.cancel();
      }
    };
    field.addEventListener("keydown", keys);
    this.form = h(
      "form",
      { class: "edit", onsubmit: (event) => (event.preventDefault(), send()) },
      field,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", class: "button", onclick: () => this.cancel() }, "Cancel"),
        h("button", { type: "submit", class: "button primary" }, "Send"),
      ),
    );
    this.body.replaceWith(this.form);
    this.tools.hidden = true;
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  cancel() {
    this.form.replaceWith(this.body);
    this.form = undefined;
    this.tools.hidden = false;
    this.tools.lastElementChild.focus();
  }
}

class ToolResult {
  constructor(message) {
    const result = h("pre", { tabindex: 0, role: "region", "aria-label": "Result" }, message.content);
    this.element = h("article", { class: "message tool-result", "aria-label": "Result of a tool" }, h("p", { class: "label" }, "Result"), result);
  }

  update() {}
}

class Answer {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.thoughtBody = h("div", { class: "prose" });
    this.thoughtLabel = h("span");
    this.thought = h("details", { class: "thought", hidden: true }, h("summary", {}, icon("right"), this.thoughtLabel), this.thoughtBody);
    this.prose = h("div", { class: "prose" });
    this.calls = h("div", { class: "calls" });
    this.waiting = h("p", { class: "waiting" }, h("span", { class: "dot" }), h("span", { class: "waiting-text" }));
    this.notice = h("div");
    this.figures = h("p", { class: "figures" });
    this.tools = h("div", { class: "tools" });
    this.markdown = new MarkdownView(this.prose);
    this.thoughtMarkdown = new MarkdownView(this.thoughtBody);
    this.thought.addEventListener("toggle", () => this.updateThought());
    const foot = h("footer", {}, this.figures, this.tools);
    this.element = h("article", { class: "message answer", "aria-label": "Answer" }, this.thought, this.prose, this.calls, this.waiting, this.notice, foot);
  }

  // `run` is the one that makes this answer, or null when it is complete.
  update({ versions, run, running }) {
    const { message } = this;
    this.run = run;
    this.element.classList.toggle("running", run !== null);
    this.updateThought();
    this.markdown.update(message.content, run !== null);
    this.updateCalls();
    this.waiting.hidden = run === null;
    if (run !== null) {
      const nothing = isEmptyAnswer(message);
      this.waiting.lastChild.textContent = nothing ? "Reading the prompt…" : "";
      return;
    }
    this.updateNotices();
    this.figures.replaceChildren(...figuresOf(message).map(({ text, title }) => h("span", { title }, text)));
    this.tools.replaceChildren(
      ...versionButtons(message, versions, this.actions),
      iconButton("copy", "Copy answer", (event) => copyFrom(event.currentTarget, message.content)),
      iconButton("again", "Generate again", () => this.actions.regenerate(message), { disabled: running }),
    );
  }

  updateThought() {
    const { message, run } = this;
    this.thought.hidden = message.reasoning === "";
    if (message.reasoning === "") return;
    const seconds = run?.thinkingSeconds() ?? null;
    const took = message.reasoningSeconds;
    this.thoughtLabel.textContent =
      seconds !== null ? `Thinking… ${seconds.toFixed(0)} s` : took === undefined ? "Thought" : `Thought for ${took.toFixed(1)} s`;
    this.thought.classList.toggle("now", seconds !== null);
    if (this.thought.open) this.thoughtMarkdown.update(message.reasoning, seconds !== null);
  }

  updateCalls() {
    const { message, run } = this;
    const key = JSON.stringify([message.toolCalls, run === null]);
    if (key === this.callsKey) return;
    this.callsKey = key;
    this.calls.replaceChildren(...message.toolCalls.map(toolCall));
    if (run === null && message.toolCalls.length > 0 && this.actions.awaitsTools(message)) this.calls.append(this.resultForm());
  }

  resultForm() {
    const fields = this.message.toolCalls.map((call) => h("textarea", { rows: 2, "aria-label": `Result of ${call.name}`, placeholder: `Result of ${call.name}` }));
    const send = (event) => {
      event.preventDefault();
      this.actions.answerTool(this.message, fields.map((field) => field.value));
    };
    const button = h("button", { type: "submit", class: "button primary" }, fields.length === 1 ? "Send the result" : "Send the results");
    return h("form", { class: "edit", onsubmit: send }, ...fields, h("div", { class: "buttons" }, button));
  }

  updateNotices() {
    const { error, finish } = this.message;
    const key = JSON.stringify([error, finish]);
    if (key !== this.noticesKey) this.notice.replaceChildren(...this.notices());
    this.noticesKey = key;
  }

  notices() {
    const { message } = this;
    if (message.error !== null) return [this.errorCard(message.error)];
    if (message.finish === "stopped") return [h("p", { class: "note" }, "You stopped this answer.")];
    if (message.finish === "length") return [h("p", { class: "note" }, "The answer reached the limit of tokens.")];
    if (message.finish === null) return [h("p", { class: "note" }, "This answer was not finished.")];
    if (isEmptyAnswer(message)) return [h("p", { class: "note" }, "The model said nothing.")];
    return [];
  }

  errorCard(error) {
    const label = error.kind === "key" ? "Enter a key" : "Try again";
    const button = h("button", { type: "button", class: "button", onclick: () => this.actions.retry(this.message) }, label);
    if (error.retryAfter !== null) countDown(button, label, error.time + error.retryAfter * 1000);
    const detail = error.detail === "" ? null : h("p", { class: "detail" }, `The server says: ${error.detail}`);
    return h("div", { class: "error", role: "alert" }, h("p", {}, error.words), detail, button);
  }
}

// The server said when it takes requests again: until then the button says how long.
function countDown(button, label, until) {
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${label} in ${left} s` : label;
    if (left > 0) setTimeout(tick, 250);
  };
  tick();
}

function toolCall(call) {
  return h(
    "section",
    { class: "call", "aria-label": `Call of ${call.name}` },
    h("p", { class: "call-name" }, icon("tool"), h("span", {}, "Calls "), h("code", {}, call.name || "…")),
    h("pre", { tabindex: 0, role: "region", "aria-label": "Arguments" }, prettyJson(call.arguments)),
  );
}

// As long as the arguments are incomplete they are shown as they are.
function prettyJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
