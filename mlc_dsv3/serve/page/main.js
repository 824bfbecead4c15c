// The page: puts its parts together. State is the shown conversation and the answers that run.

import { Composer } from "./composer.js";
import { addAnswer, addMessage, newConversation, removeMessage, shownPath, showVersion } from "./conversation.js";
import { announce, byId, drawIcons, h, toast } from "./dom.js";
import { ExpertsPanel } from "./experts.js";
import { Frame } from "./frame.js";
import { askKey } from "./key.js";
import { preferences } from "./preferences.js";
import { plainError, Run } from "./run.js";
import { listModels } from "./server.js";
import { SettingsPanel } from "./settings.js";
import { exportJson, Sidebar } from "./sidebar.js";
import { ConversationStore } from "./store.js";
import { emptyState } from "./suggestions.js";
import { Thread } from "./thread.js";

const SAVE_EVERY = 2000; // Milliseconds between two savings of an answer that grows.

class Page {
  constructor() {
    drawIcons(document.body);
    this.store = new ConversationStore();
    this.runs = new Map(); // Conversation id → run.
    this.model = null;
    this.thread = new Thread(this, () => emptyState(this.model, (text) => this.send(text)));
    this.composer = new Composer({ send: (text) => this.send(text), stop: () => this.stop(), editLast: () => this.thread.editLast() });
    this.sidebar = new Sidebar({
      open: (conversation) => this.open(conversation),
      rename: (conversation, title) => this.rename(conversation, title),
      remove: (conversation) => this.remove(conversation),
    });
    this.frame = new Frame({ panelShown: () => this.experts.follow(this.runs.size > 0), redraw: () => this.experts.draw() });
    this.experts = new ExpertsPanel({ close: () => this.frame.showPanel("none") });
    this.settings = new SettingsPanel({
      changed: (settings) => this.changeSettings(settings),
      close: () => this.frame.showPanel("none"),
      askKey: async () => (await askKey("")) && this.connect(),
    });
    byId("new-conversation").addEventListener("click", () => this.startNew());
    byId("export-all").addEventListener("click", () => exportJson(this.store.list(), "conversations"));
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault(); // The address names the conversation.
      byId("message").focus();
    });
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("pagehide", () => this.saveRunning());
  }

  async begin() {
    const named = location.hash.slice(1); // Before the new conversation takes the address.
    this.show(newConversation(preferences.settings));
    this.frame.begin();
    this.composer.focus();
    const [kept] = await Promise.all([this.store.open(), this.connect()]);
    if (!kept) toast("This browser keeps nothing for this page: conversations are gone when you close it.");
    this.store.watch((id) => this.changedElsewhere(id), (id) => this.runs.has(id));
    const last = this.store.all.get(named);
    if (last !== undefined && this.current.messages.length === 0) this.show(last);
    else this.refreshList();
  }

  // Asks which model is served. True where the server answered.
  async connect() {
    try {
      [this.model] = await listModels();
      byId("model").textContent = this.model.id;
      byId("model").classList.remove("gone");
      document.title = this.model.id;
      this.showSettings();
      if (this.current.messages.length === 0) this.show(this.current);
      return true;
    } catch (error) {
      if (error.kind === "key" && (await askKey(error.detail))) return this.connect();
      byId("model").textContent = error.message;
      byId("model").classList.add("gone");
      return false;
    }
  }

  get run() {
    return this.runs.get(this.current.id) ?? null;
  }

  show(conversation) {
    this.thread.follows = true;
    this.current = conversation;
    history.replaceState(null, "", conversation.messages.length === 0 ? location.pathname + location.search : `#${conversation.id}`);
    this.showSettings();
    this.refresh();
  }

  showSettings() {
    this.settings.show(this.current.settings, (this.model?.thinking_variables ?? []).length > 0);
  }

  refresh() {
    byId("title").textContent = this.current.title || "New conversation";
    this.thread.show(this.current, this.run);
    this.composer.show(this.run !== null);
    byId("messages").setAttribute("aria-busy", String(this.run !== null));
    this.refreshList();
  }

  refreshList() {
    this.sidebar.show(this.store.list(), this.current, (conversation) => this.runs.has(conversation.id));
  }

  open(conversation) {
    this.frame.closeSidebarIfNarrow();
    this.show(conversation);
    this.composer.focus();
  }

  startNew() {
    this.open(newConversation(preferences.settings));
  }

  rename(conversation, title) {
    conversation.title = title;
    this.save(conversation);
    this.refresh();
  }

  remove(conversation) {
    this.runs.get(conversation.id)?.stop();
    this.store.remove(conversation.id);
    if (conversation === this.current) this.show(newConversation(preferences.settings));
    else this.refreshList();
    toast(`Deleted “${conversation.title}”.`, {
      label: "Undo",
      run: () => {
        this.save(conversation);
        this.open(conversation);
      },
    });
  }

  changedElsewhere(id) {
    if (id === this.current.id) this.show(this.store.all.get(id) ?? newConversation(preferences.settings));
    else this.refreshList();
  }

  changeSettings(settings) {
    this.current.settings = settings;
    preferences.settings = settings;
    if (this.current.messages.length > 0) this.save(this.current);
  }

  async save(conversation) {
    try {
      await this.store.save(conversation);
    } catch (error) {
      toast(`The browser could not keep this conversation: ${error.message}`);
    }
  }

  send(text) {
    if (this.run !== null) return;
    this.ask(this.current.leaf, text);
  }

  edit(message, text) {
    if (this.run === null) this.ask(message.parent, text);
  }

  ask(parent, text) {
    const question = addMessage(this.current, parent, "user", text);
    this.answer(question.id);
  }

  // Whether a tool's results may be given to this answer: it is the last message.
  awaitsTools(message) {
    return this.current.leaf === message.id;
  }

  answerTool(message, results) {
    let parent = message.id;
    for (const [index, call] of message.toolCalls.entries()) {
      parent = addMessage(this.current, parent, "tool", results[index], { toolCallId: call.id }).id;
    }
    this.answer(parent);
  }

  regenerate(message) {
    if (this.run === null) this.answer(message.parent);
  }

  async retry(message) {
    if (this.run !== null) return;
    if (message.error?.kind === "key" && !(await askKey(message.error.detail))) return;
    await this.connect(); // The server may have been started again with another model.
    removeMessage(this.current, message);
    this.answer(message.parent);
  }

  showVersion(message) {
    showVersion(this.current, message);
    this.save(this.current);
    this.refresh();
  }

  async answer(parent) {
    const conversation = this.current;
    const message = addAnswer(conversation, parent);
    this.save(conversation);
    if (this.model === null && !(await this.connect())) {
      message.error = plainError({ kind: "gone", message: byId("model").textContent });
      this.save(conversation);
      return this.refresh();
    }
    let saved = performance.now();
    const run = new Run(conversation, message, this.model, {
      changed: () => {
        this.thread.grow(run);
        if (performance.now() - saved < SAVE_EVERY || !this.store.all.has(conversation.id)) return;
        saved = performance.now();
        this.save(conversation);
      },
      ended: () => this.ended(run),
    });
    this.runs.set(conversation.id, run);
    this.thread.follows = true;
    history.replaceState(null, "", `#${conversation.id}`);
    this.refresh();
    if (document.activeElement === document.body) this.composer.focus(); // What had the focus is gone.
    this.experts.follow(true);
    announce("The model is answering.");
    run.go();
  }

  ended(run) {
    const { conversation, message } = run;
    run.done = true;
    this.runs.delete(conversation.id);
    conversation.updated = Date.now();
    if (this.store.all.has(conversation.id)) this.save(conversation);
    this.experts.follow(this.runs.size > 0);
    if (conversation === this.current) {
      this.refresh();
      announce(spoken(message));
      if (message.error?.kind === "key") this.retry(message);
    } else {
      this.refreshList();
    }
  }

  stop() {
    this.run?.stop();
  }

  saveRunning() {
    for (const run of this.runs.values()) {
      run.message.finish = "stopped";
      this.save(run.conversation);
    }
  }

  key(event) {
    if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]") !== null) return;
    if (this.run !== null) this.stop();
    else this.frame.escape();
  }
}

// What is read out when an answer is complete: a short one as it is, of a long one how long it is.
function spoken(message) {
  if (message.error !== null) return ""; // The error is an alert of its own.
  const words = message.content.split(/\s+/).filter((word) => word !== "").length;
  const end = message.finish === "stopped" ? "Stopped." : "The answer is complete.";
  return message.content.length <= 300 ? `${end} ${message.content}` : `${end} It has ${words} words.`;
}

new Page().begin();
