// The messages of the shown conversation, and where the reader is among them: the view follows an answer's end unless the
// reader has scrolled up.

import { shownPath, versionsOf } from "./conversation.js";
import { byId, place } from "./dom.js";
import { viewOf } from "./messages.js";

const NEAR = 60; // Pixels from the end that still count as the end.

export class Thread {
  constructor(actions, suggestions) {
    this.actions = actions;
    this.suggestions = suggestions; // () => what an empty conversation shows.
    this.scroller = byId("thread");
    this.list = byId("messages");
    this.jump = byId("jump");
    this.views = new Map(); // Message id → view.
    this.follows = true;
    this.top = 0;
    this.dirty = null;
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.jump.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.follows && this.toEnd()).observe(this.scroller);
  }

  // Shows the conversation's path; views of messages that stay are kept.
  show(conversation, run) {
    this.conversation = conversation;
    const path = shownPath(conversation);
    const views = new Map(path.map((message) => [message.id, this.kept(message) ?? viewOf(message, this.actions)]));
    this.views = views;
    this.list.classList.toggle("empty", path.length === 0);
    place(this.list, path.length === 0 ? [this.suggestions()] : [...views.values()].map((view) => view.element));
    for (const message of path) this.refresh(message, run);
    if (this.follows) this.toEnd();
  }

  kept(message) {
    const view = this.views.get(message.id);
    return view?.message === message && view.form === undefined ? view : undefined;
  }

  refresh(message, run) {
    this.views.get(message.id)?.update({
      versions: versionsOf(this.conversation, message),
      run: run?.message === message ? run : null,
      running: run !== null,
    });
  }

  // Redraws a growing answer with the next frame, however many chunks arrive until then.
  grow(run) {
    if (this.dirty !== null) return;
    this.dirty = requestAnimationFrame(() => {
      this.dirty = null;
      if (run.conversation !== this.conversation || run.done) return;
      this.refresh(run.message, run);
      if (this.follows) this.toEnd();
    });
  }

  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const near = scrollHeight - scrollTop - clientHeight < NEAR;
    if (near) this.follows = true;
    else if (scrollTop < this.top) this.follows = false; // The reader went up; a page that grew does not do that.
    this.top = scrollTop;
    this.jump.hidden = near || this.follows;
  }

  toEnd() {
    this.follows = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.top = this.scroller.scrollTop;
    this.jump.hidden = true;
  }

  editLast() {
    const last = shownPath(this.conversation).findLast((message) => message.role === "user");
    if (last !== undefined) this.views.get(last.id).edit();
    return last !== undefined;
  }
}
