/**
 * The service worker: this page without a connection.
 *
 * Files come from the server where it answers, and are kept; without it, the
 * kept ones are used. The model is kept by `model.js`, by its SHA-256.
 */

const CACHE = "keras-resnext-page";

const PAGE = [
  ...["./", "app.js", "camera.js", "golden.js", "header.js", "icon.svg"],
  ...["model.js", "picture.js", "resample.js", "style.css", "view.js"],
  ...["worker.js", "model/model.json"],
];

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(keepPage());
});

self.addEventListener("activate", (event) => {
  event.waitUntil(self.clients.claim());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const isOurs = new URL(request.url).origin === self.location.origin;
  // The model's file is asked for with "no-store".
  if (request.method !== "GET" || request.cache === "no-store" || !isOurs) {
    return;
  }
  event.respondWith(answer(event));
});

async function keepPage() {
  const cache = await caches.open(CACHE);
  const keep = (paths) =>
    Promise.all(paths.map((path) => cache.add(path).catch(() => {})));
  await keep(PAGE);
  const manifest = await cache.match("model/model.json");
  if (manifest) await keep((await manifest.json()).samples.map((s) => s.file));
}

async function answer(event) {
  const { request } = event;
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) {
      const copy = response.clone();
      // Room may be short; the answer is right all the same.
      event.waitUntil(cache.put(request, copy).catch(() => {}));
    }
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}
