// What was made, kept in this browser (IndexedDB), newest first. It never leaves the machine.

const MOST = 100; // entries; the oldest go

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("kosmosg", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("entries", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Run `act` on the store and return what its request gives, once it is on disk. */
async function within(mode, act) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction("entries", mode);
      const request = act(transaction.objectStore("entries"));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

/** Return the entries, newest first: their ids are the times at which they were asked for. */
export async function kept() {
  return (await within("readonly", (store) => store.getAll())).reverse();
}

/** Keep an entry, and let the oldest go. */
export async function keep(entry) {
  await within("readwrite", (store) => store.put(entry));
  const ids = await within("readonly", (store) => store.getAllKeys());
  for (const id of ids.slice(0, -MOST)) await forget(id);
}

export const forget = (id) => within("readwrite", (store) => store.delete(id));
export const forgetAll = () => within("readwrite", (store) => store.clear());
