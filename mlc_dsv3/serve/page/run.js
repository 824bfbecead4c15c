// One answer while it is generated: the request, and what its chunks add to the message.

import { apiMessages } from "./conversation.js";
import { streamChat } from "./server.js";

const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

export class Run {
  // `changed()` is called after each chunk, and `ended()` once, whatever happened.
  constructor(conversation, message, model, { changed, ended }) {
    this.conversation = conversation;
    this.message = message;
    this.model = model;
    this.changed = changed;
    this.ended = ended;
    this.controller = new AbortController();
    this.started = performance.now();
    this.thoughtSince = null;
  }

  stop() {
    this.controller.abort();
  }

  async go() {
    const { message } = this;
    try {
      for await (const chunk of streamChat(requestBody(this.conversation, message, this.model), this.controller.signal)) {
        this.take(chunk);
        this.changed();
      }
    } catch (error) {
      if (error.name === "AbortError") message.finish = "stopped";
      else message.error = plainError(error);
    }
    this.endThought();
    message.seconds = (performance.now() - this.started) / 1000;
    this.ended();
  }

  take(chunk) {
    const { message } = this;
    if (chunk.usage) {
      message.usage = chunk.usage;
      message.timings = chunk.timings ?? chunk.usage.timings ?? null;
    }
    const choice = chunk.choices?.[0];
    if (choice === undefined) return;
    const delta = choice.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning ?? "";
    if (thought !== "") {
      this.thoughtSince ??= performance.now();
      message.reasoning += thought;
    }
    if (delta.content || delta.tool_calls) this.endThought();
    message.content += delta.content ?? "";
    for (const piece of delta.tool_calls ?? []) addToolCall(message.toolCalls, piece);
    if (choice.finish_reason) message.finish = choice.finish_reason;
  }

  // Seconds of the thought so far.
  thinkingSeconds() {
    return this.thoughtSince === null ? null : (performance.now() - this.thoughtSince) / 1000;
  }

  endThought() {
    if (this.thoughtSince === null) return;
    this.message.reasoningSeconds = this.thinkingSeconds();
    this.thoughtSince = null;
  }
}

// An error as it is kept with its message. `time` is when it came, in milliseconds since 1970.
export function plainError({ kind = "page", message, detail = "", retryAfter = null }) {
  return { kind, words: message, detail, retryAfter, time: Date.now() };
}

function addToolCall(calls, piece) {
  const call = (calls[piece.index ?? 0] ??= { id: "", name: "", arguments: "" });
  call.id = piece.id ?? call.id;
  call.name += piece.function?.name ?? "";
  call.arguments += piece.function?.arguments ?? "";
}

function requestBody(conversation, message, model) {
  const { settings } = conversation;
  const body = {
    model: model.id,
    messages: apiMessages(conversation, message.parent),
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of SAMPLING) if (settings[name] !== null) body[name] = settings[name];
  const switches = model.thinking_variables ?? [];
  if (settings.thinking !== null && switches.length > 0) {
    body.chat_template_kwargs = Object.fromEntries(switches.map((name) => [name, settings.thinking]));
  }
  if (settings.tools.trim() !== "") body.tools = JSON.parse(settings.tools);
  return body;
}
