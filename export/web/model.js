/** The model's files: fetched from here, checked by SHA-256, kept offline. */

const CACHE = "keras-resnext-model";

/** What is wrong with the model's files, in words. */
export class ModelError extends Error {}

/**
 * What `add_model.py` wrote about the model.
 *
 * @returns {Promise<object>} The content of `model/model.json`.
 */
export async function readManifest() {
  let response;
  try {
    response = await fetch(manifestUrl());
  } catch {
    throw new ModelError(
      "The model's description, model/model.json, cannot be fetched: there " +
        "is no connection to where this page came from.",
    );
  }
  if (!response.ok) {
    throw new ModelError(
      "There is no model here yet. Write one with add_model.py, then load " +
        "this page again.",
    );
  }
  const manifest = await response.json().catch(() => null);
  if (manifest?.format !== 1) {
    throw new ModelError(
      "model/model.json is not one that this page reads. Write the model " +
        "again with this page's add_model.py.",
    );
  }
  return manifest;
}

/**
 * The model's bytes, from the cache or from the server, of the right SHA-256.
 *
 * @param {object} manifest See `readManifest`.
 * @param {(loaded: number) => void} onProgress Called with bytes so far.
 * @returns {Promise<Uint8Array>}
 */
export async function loadModel(manifest, onProgress) {
  if (!globalThis.isSecureContext) {
    throw new ModelError(
      "Browsers check files only on https and on localhost. Open this page " +
        "there.",
    );
  }
  const cache = await caches.open(CACHE).catch(() => null); // private windows
  const key = new URL(`model/${manifest.sha256}`, import.meta.url).href;
  const kept = await cache?.match(key);
  if (kept) {
    const bytes = new Uint8Array(await kept.arrayBuffer());
    if ((await sha256(bytes)) === manifest.sha256) {
      onProgress(bytes.length);
      return bytes;
    }
    await cache.delete(key);
  }
  const bytes = await download(manifest, onProgress);
  const found = await sha256(bytes);
  if (found !== manifest.sha256) {
    throw new ModelError(
      `The model file ${manifest.file} is damaged, or of another version ` +
        `than model.json: its SHA-256 begins with ${found.slice(0, 8)}, and ` +
        `${manifest.sha256.slice(0, 8)} is expected. Load this page again; ` +
        "if that does not help, write the model again with add_model.py.",
    );
  }
  await keep(cache, key, bytes);
  return bytes;
}

function manifestUrl() {
  return new URL("model/model.json", import.meta.url);
}

async function download(manifest, onProgress) {
  const bytes = new Uint8Array(manifest.bytes);
  let loaded = 0;
  try {
    const url = new URL(manifest.file, manifestUrl());
    // Kept below, once it is checked; the browser need not keep another.
    const response = await fetch(url, { cache: "no-store" });
    if (!response.ok) throw new ModelError(`status ${response.status}`);
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (loaded + value.length > bytes.length) {
        throw new ModelError(`it has more than ${bytes.length} bytes`);
      }
      bytes.set(value, loaded);
      loaded += value.length;
      onProgress(loaded);
    }
  } catch (error) {
    throw new ModelError(
      `The model file ${manifest.file} cannot be fetched: ${error.message}.`,
    );
  }
  return bytes.subarray(0, loaded);
}

async function sha256(bytes) {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}

/** Put a model into the cache in place of older ones of this page. */
async function keep(cache, key, bytes) {
  try {
    const folder = new URL("model/", import.meta.url).href;
    for (const { url } of await cache.keys()) {
      if (url.startsWith(folder) && url !== key) await cache.delete(url);
    }
    await cache.put(key, new Response(bytes));
  } catch {
    // Too little room: the model is fetched again next time.
  }
}
