// A conversation is a tree: an edited message and an answer that was generated again stand beside the first one.
// Messages: {id, parent, role, content, …}; an answer also has reasoning, reasoningSeconds, toolCalls, finish, error,
// usage, timings, seconds; a tool's result has toolCallId. The shown path ends in `leaf`. All of it is plain JSON.

const TITLE_LENGTH = 60;

export function newConversation(settings) {
  const now = Date.now();
  return { id: crypto.randomUUID?.() ?? `${now}-${Math.random()}`, title: "", created: now, updated: now, settings, messages: [], leaf: null };
}

let lastId = 0;

export function addMessage(conversation, parent, role, content, fields = {}) {
  lastId = Math.max(lastId + 1, Date.now());
  const message = { id: lastId, parent, role, content, ...fields };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  conversation.updated = Date.now();
  if (role === "user" && conversation.title === "") conversation.title = titleFrom(content);
  return message;
}

export const addAnswer = (conversation, parent) =>
  addMessage(conversation, parent, "assistant", "", { reasoning: "", toolCalls: [], finish: null, error: null });

function titleFrom(text) {
  const line = text.trim().replaceAll(/\s+/g, " ");
  return line.length <= TITLE_LENGTH ? line : `${line.slice(0, TITLE_LENGTH).replace(/\s\S*$/, "")}…`;
}

export function pathTo(conversation, id) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const path = [];
  for (let message = byId.get(id); message !== undefined; message = byId.get(message.parent)) path.unshift(message);
  return path;
}

export const shownPath = (conversation) => pathTo(conversation, conversation.leaf);

// The versions of a message: those that answer the same one.
export const versionsOf = (conversation, message) => conversation.messages.filter((other) => other.parent === message.parent);

// Shows another version, and below it what was said last.
export function showVersion(conversation, message) {
  let leaf = message;
  for (;;) {
    const next = conversation.messages.findLast((other) => other.parent === leaf.id);
    if (next === undefined) break;
    leaf = next;
  }
  conversation.leaf = leaf.id;
}

export function removeMessage(conversation, message) {
  conversation.messages = conversation.messages.filter((other) => other !== message);
  if (conversation.leaf === message.id) conversation.leaf = message.parent;
}

// The conversation up to a message as the API takes it. An answer's thought goes along: the chat template decides what
// of it the model sees again.
export function apiMessages(conversation, id) {
  const system = conversation.settings.system.trim();
  const messages = pathTo(conversation, id).map((message) => {
    if (message.role === "tool") return { role: "tool", tool_call_id: message.toolCallId, content: message.content };
    if (message.role === "user") return { role: "user", content: message.content };
    const answer = { role: "assistant", content: message.content };
    if (message.reasoning !== "") answer.reasoning_content = message.reasoning;
    if (message.toolCalls.length > 0) {
      answer.tool_calls = message.toolCalls.map((call) => ({
        id: call.id,
        type: "function",
        function: { name: call.name, arguments: call.arguments },
      }));
    }
    return answer;
  });
  return system === "" ? messages : [{ role: "system", content: system }, ...messages];
}

export const isEmptyAnswer = (message) => message.content === "" && message.reasoning === "" && message.toolCalls.length === 0;
