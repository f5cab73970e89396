// This browser's pictures, in IndexedDB: the files themselves, so that they outlive the server's retention. Where the
// browser forbids storage (some private windows), they live as long as the page.

import { remember, recall } from "./preferences.js";

export const MAX_PICTURES = 500;

let opened = null;
let kept = null; // only without a database
let number = 0;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("zturbo", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => {
      request.result.onclose = () => { opened = null; }; // by the browser, e.g. because the disk failed: the next use opens it anew
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  }).catch(() => { kept = []; return null; });
  return opened;
}

async function ask(mode, work) {
  const base = await database();
  if (base === null) return null;
  return new Promise((resolve, reject) => {
    const transaction = base.transaction("pictures", mode);
    const request = work(transaction.objectStore("pictures"));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Keep a picture; returns it with its `id`. The oldest goes where there are too many. */
export async function add(picture) {
  if (await database() === null) {
    kept.push({ ...picture, id: ++number });
    return kept.at(-1);
  }
  if (!recall("asked-to-persist")) {
    remember("asked-to-persist", true);
    navigator.storage?.persist?.();
  }
  const id = await ask("readwrite", (store) => store.add(picture));
  const ids = await ask("readonly", (store) => store.getAllKeys());
  await remove(ids.slice(0, -MAX_PICTURES));
  return { ...picture, id };
}

/** All pictures, newest first. */
export async function all() {
  return (await ask("readonly", (store) => store.getAll()) ?? kept).toReversed();
}

/** All of them or, where that fails, none. */
export async function remove(ids) {
  await ask("readwrite", (store) => { for (const id of ids) store.delete(id); });
  kept = kept?.filter((one) => !ids.includes(one.id)) ?? null;
}
