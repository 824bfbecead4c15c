// The list of conversations: choose, rename, delete, export.

import { byId, h, iconButton } from "./dom.js";

const DAY = 24 * 3600 * 1000;

export class Sidebar {
  // `actions`: open(conversation), rename(conversation, title), remove(conversation).
  constructor(actions) {
    this.actions = actions;
    this.element = byId("conversations");
  }

  show(conversations, current, running) {
    this.last = [conversations, current, running];
    const focused = document.activeElement?.closest?.("[data-id]")?.dataset.id;
    const groups = Map.groupBy(conversations, age);
    this.element.replaceChildren(
      ...[...groups].map(([name, members]) =>
        h("section", { "aria-label": name }, h("h2", {}, name), h("ul", {}, ...members.map((member) => this.row(member, member === current, running(member))))),
      ),
    );
    if (conversations.length === 0) this.element.append(h("p", { class: "nothing" }, "Conversations are kept in this browser, and nowhere else."));
    if (focused !== undefined) this.element.querySelector(`[data-id="${CSS.escape(focused)}"] .open`)?.focus();
  }

  row(conversation, current, running) {
    const title = conversation.title || "New conversation";
    const open = h(
      "button",
      { type: "button", class: "open", title, "aria-current": current ? "true" : null, onclick: () => this.actions.open(conversation) },
      running ? h("span", { class: "dot", role: "img", "aria-label": "Answering" }) : null,
      h("span", { class: "open-title" }, title),
    );
    const tools = h(
      "span",
      { class: "row-tools" },
      iconButton("pencil", `Rename ${title}`, () => this.rename(conversation, row)),
      iconButton("download", `Export ${title}`, () => exportJson([conversation], title)),
      iconButton("trash", `Delete ${title}`, () => this.actions.remove(conversation)),
    );
    const row = h("li", { class: current ? "row current" : "row", "data-id": conversation.id }, open, tools);
    return row;
  }

  rename(conversation, row) {
    const field = h("input", { "aria-label": "Name of the conversation", maxlength: 200 });
    field.value = conversation.title;
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      const title = field.value.trim();
      if (keep && title !== "") this.actions.rename(conversation, title);
      else this.show(...this.last);
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    field.addEventListener("blur", () => finish(true));
    row.replaceChildren(field);
    field.focus();
    field.select();
  }
}

function age(conversation) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (conversation.updated >= midnight) return "Today";
  if (conversation.updated >= midnight - DAY) return "Yesterday";
  return conversation.updated >= midnight - 7 * DAY ? "The last seven days" : "Earlier";
}

// Saves conversations as a file of JSON.
export function exportJson(conversations, title) {
  const text = JSON.stringify({ format: "mlc_dsv3 conversations", version: 1, conversations }, null, 2);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const name = title.replaceAll(/[^\p{L}\p{N}]+/gu, "-").replaceAll(/^-|-$/g, "").slice(0, 60) || "conversation";
  h("a", { href: url, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
