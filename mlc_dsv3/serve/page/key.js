// The dialog that asks for the server's API key.

import { byId } from "./dom.js";
import { preferences } from "./preferences.js";

// Resolves to whether a key was given. `reason` is what the server said of the last one.
export function askKey(reason) {
  const [dialog, form, field] = [byId("key-dialog"), byId("key-form"), byId("key")];
  if (dialog.open) return Promise.resolve(false);
  byId("key-error").textContent = preferences.key === "" ? "" : reason || "The server does not know this key.";
  field.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const finish = (given) => {
      if (given) preferences.keepKey(field.value.trim(), byId("key-remember").checked);
      form.onsubmit = null;
      byId("key-cancel").onclick = null;
      dialog.onclose = null;
      dialog.close();
      resolve(given);
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      finish(true);
    };
    byId("key-cancel").onclick = () => finish(false);
    dialog.onclose = () => finish(false); // Escape.
  });
}
