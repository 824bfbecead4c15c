// The server's API as the page uses it: models, answers as they are streamed, the experts' load; and its errors in words.

import { preferences } from "./preferences.js";

// Relative to the page, so that a proxy may serve it under a folder.
const address = (path) => new URL(path, document.baseURI);

// What went wrong, in words for the reader. `kind` is what the page may do about it.
export class ServerError extends Error {
  constructor(kind, words, { detail = "", retryAfter = null } = {}) {
    super(words);
    this.kind = kind; // "gone" | "key" | "large" | "busy" | "context" | "refused" | "broken" | "stream"
    this.detail = detail; // The server's own words.
    this.retryAfter = retryAfter; // Seconds.
  }
}

async function request(path, { body = null, signal = null } = {}) {
  const headers = {};
  if (body !== null) headers["Content-Type"] = "application/json";
  if (preferences.key !== "") headers.Authorization = `Bearer ${preferences.key}`;
  let response;
  try {
    response = await fetch(address(path), { method: body === null ? "GET" : "POST", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("gone", "The server does not answer. Is mlc_dsv3 serve still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  const { detail, code } = readError(text);
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const retryAfter = Number.isNaN(seconds) ? null : seconds;
  switch (response.status) {
    case 401:
      return new ServerError("key", "The server asks for an API key, or does not know the one that it was given.", { detail });
    case 413:
      return new ServerError("large", "The server takes no message as long as this. Shorten it, or start a new conversation.", { detail });
    case 429:
      return new ServerError("busy", "The server is busy and takes no further requests for now.", { detail, retryAfter });
    case 404:
      return new ServerError("refused", "The server does not know what the page asked for.", { detail });
  }
  if (response.status === 503) return new ServerError("busy", "The server is starting or shutting down.", { detail, retryAfter });
  if (response.status >= 500) return new ServerError("broken", `The server failed to answer (${response.status}).`, { detail, retryAfter });
  if (isAboutContext(code, detail)) {
    const words = "The conversation is longer than the model's context window. Start a new one, or edit an earlier message.";
    return new ServerError("context", words, { detail });
  }
  return new ServerError("refused", "The server does not accept this request.", { detail });
}

const isAboutContext = (code, detail) => code === "context_length_exceeded" || /context (window|length)/i.test(detail);

// The message and code of an error object, or the plain text of a proxy's answer.
function readError(text) {
  try {
    const value = JSON.parse(text);
    const error = value.error ?? value;
    const message = typeof error === "string" ? error : error.message;
    return { detail: typeof message === "string" ? message : "", code: error.code ?? "" };
  } catch {
    return { detail: text.startsWith("<") ? "" : text.slice(0, 300).trim(), code: "" };
  }
}

// The served models: [{id, …}].
export async function listModels() {
  const value = await (await request("v1/models")).json();
  return value.data;
}

// {layers, experts, load, tokens}, or null where the model has no routed experts or the server does not count them.
export async function readExperts() {
  try {
    const load = await (await request("experts")).json();
    return Array.isArray(load.layers) && load.layers.length > 0 ? load : null;
  } catch (error) {
    if (error.kind === "refused") return null;
    throw error;
  }
}

// The chunks of an answer. ServerError where the stream holds an error, or breaks off.
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", { body, signal });
  let done = false;
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") {
      done = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) {
      const { detail, code } = readError(data);
      if (isAboutContext(code, detail)) throw new ServerError("context", "The answer reached the end of the context window.", { detail });
      throw new ServerError("stream", "The server could not finish this answer.", { detail });
    }
    yield chunk;
  }
  if (!done) throw new ServerError("gone", "The connection broke off before the answer was complete. Is the server still running?");
}

// The data of server-sent events. Comments, which keep the connection open, are skipped.
export async function* readEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await read(reader);
      buffer += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = buffer.split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("gone", "The connection to the server broke off before the answer was complete.");
  }
}
