// Conversations in IndexedDB, one record each. Where the browser keeps nothing they last as long as the page.

const NAME = "mlc_dsv3";
const STORE = "conversations";

export class ConversationStore {
  constructor() {
    this.all = new Map();
    this.database = null;
    this.channel = new BroadcastChannel(NAME); // Other tabs of this page.
  }

  // Whether conversations are kept.
  async open() {
    try {
      this.database = await openDatabase();
      await this.load();
      return true;
    } catch {
      this.database = null;
      return false;
    }
  }

  async load() {
    const records = await finished(this.database.transaction(STORE).objectStore(STORE).getAll());
    this.all = new Map([...records.map((record) => [record.id, record]), ...this.all]);
  }

  // `changed(id)` when another tab has saved or removed a conversation. What `busy(id)` says is ours alone stays as it is.
  watch(changed, busy) {
    this.channel.onmessage = async ({ data: id }) => {
      if (this.database === null || busy(id)) return;
      const record = await finished(this.database.transaction(STORE).objectStore(STORE).get(id));
      if (record === undefined) this.all.delete(id);
      else this.all.set(id, record);
      changed(id);
    };
  }

  // The latest first.
  list() {
    return [...this.all.values()].sort((a, b) => b.updated - a.updated);
  }

  async save(conversation) {
    this.all.set(conversation.id, conversation);
    await this.write((store) => store.put(conversation));
    this.channel.postMessage(conversation.id);
  }

  async remove(id) {
    this.all.delete(id);
    await this.write((store) => store.delete(id));
    this.channel.postMessage(id);
  }

  async write(change) {
    if (this.database === null) return;
    const transaction = this.database.transaction(STORE, "readwrite");
    await finished(change(transaction.objectStore(STORE)));
  }
}

function openDatabase() {
  const opening = indexedDB.open(NAME, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
  return finished(opening);
}

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
