// What the reader chose, kept in this browser: theme, open panel, settings of new conversations, the API key.

export const SETTINGS = Object.freeze({
  system: "",
  temperature: null, // null: the model's own default.
  top_p: null,
  top_k: null,
  min_p: null,
  max_tokens: null,
  seed: null,
  thinking: null, // true, false, or null for the template's own default.
  tools: "", // OpenAI's tool definitions, as JSON.
});

class Preferences {
  get theme() {
    return read(localStore, "theme") ?? "system";
  }

  set theme(value) {
    write(localStore, "theme", value === "system" ? null : value);
  }

  // "experts", "settings", "none", or null where the reader has not chosen.
  get panel() {
    return read(localStore, "panel");
  }

  set panel(value) {
    write(localStore, "panel", value);
  }

  get settings() {
    try {
      return { ...SETTINGS, ...JSON.parse(read(localStore, "settings") ?? "{}") };
    } catch {
      return { ...SETTINGS };
    }
  }

  set settings(value) {
    write(localStore, "settings", JSON.stringify(value));
  }

  get key() {
    return read(sessionStore, "key") ?? read(localStore, "key") ?? "";
  }

  // For this tab, or with `remember` until it is replaced.
  keepKey(key, remember) {
    write(sessionStore, "key", key);
    write(localStore, "key", remember ? key : null);
  }
}

// Each throws where the browser keeps nothing for this page; then choices last as long as the page.
const localStore = () => window.localStorage;
const sessionStore = () => window.sessionStorage;
const fallback = new Map();

function read(store, name) {
  try {
    return store().getItem(name);
  } catch {
    return fallback.get(name) ?? null;
  }
}

function write(store, name, value) {
  try {
    if (value === null) store().removeItem(name);
    else store().setItem(name, value);
  } catch {
    if (value === null) fallback.delete(name);
    else fallback.set(name, value);
  }
}

export const preferences = new Preferences();
