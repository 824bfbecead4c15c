// The field for a message, with its keys, and the buttons that send and stop.

import { byId } from "./dom.js";

export class Composer {
  // `actions`: send(text), stop(), editLast().
  constructor(actions) {
    this.actions = actions;
    this.field = byId("message");
    this.sendButton = byId("send");
    this.stopButton = byId("stop");
    this.running = false;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.stopButton.addEventListener("click", () => actions.stop());
    this.field.addEventListener("input", () => this.changed());
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.changed();
  }

  key(event) {
    if (event.isComposing) return; // Enter chooses what an input method offers.
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && this.field.value === "" && !this.running && this.actions.editLast()) {
      event.preventDefault();
    }
  }

  send() {
    const text = this.field.value.trim();
    if (text === "" || this.running) return;
    this.fill("");
    this.actions.send(text);
  }

  fill(text) {
    this.field.value = text;
    this.changed();
  }

  changed() {
    this.sendButton.disabled = this.field.value.trim() === "";
    if (!CSS.supports("field-sizing", "content")) {
      this.field.style.height = "auto";
      this.field.style.height = `${this.field.scrollHeight}px`;
    }
  }

  show(running) {
    const focused = document.activeElement === (running ? this.sendButton : this.stopButton);
    this.running = running;
    this.sendButton.hidden = running;
    this.stopButton.hidden = !running;
    if (focused) this.field.focus();
  }

  // Not on a phone, where it would bring up the keyboard.
  focus() {
    if (matchMedia("(hover: hover)").matches) this.field.focus();
  }
}
