/**
 * The model in ONNX Runtime, away from the page's own thread.
 *
 * Each worker has one backend for its life: onnxruntime-web starts its threads
 * once. It takes `{type: "start", manifest, backend, threads}`, then any number
 * of `{type: "classify", id, file, name}`.
 */

import { goldenDifference } from "./golden.js";
import { ModelError, loadModel } from "./model.js";
import { PictureError, readPicture } from "./picture.js";

const RUNTIME = new URL("node_modules/onnxruntime-web/dist/", import.meta.url);

const BUILDS = { webgpu: "ort.webgpu.min.mjs", wasm: "ort.wasm.min.mjs" };

let manifest;
let run; // from pixels to probabilities
let answers = 0;
let waiting = Promise.resolve(); // one picture at a time, in their order

self.onmessage = ({ data }) => {
  const handle = data.type === "start" ? start : classify;
  waiting = waiting.then(() => handle(data)).catch(fail);
};

function fail(error) {
  const reason = error instanceof ModelError ? "model" : "backend";
  const message = String(error?.message ?? error); // some throw a number
  self.postMessage({ type: "failed", reason, message });
}

async function start({ manifest: given, backend, threads }) {
  manifest = given;
  const bytes = await loadModel(manifest, (loaded) =>
    self.postMessage({ type: "progress", loaded }),
  );
  self.postMessage({ type: "starting" });
  run = await open(bytes, backend, threads);
  await check("ready");
}

/** A function from pixels to probabilities. */
async function open(bytes, backend, threads) {
  const ort = await import(new URL(BUILDS[backend], RUNTIME).href);
  ort.env.wasm.wasmPaths = RUNTIME.href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(bytes, {
    executionProviders: [backend],
  });
  return async (pixels) => {
    const values = Float32Array.from(pixels);
    const image = new ort.Tensor("float32", values, manifest.input.shape);
    const outputs = await session.run({ [manifest.input.name]: image });
    return outputs[manifest.output.name].data;
  };
}

/** Compare with Keras' answers; the result is a message of this type. */
async function check(type) {
  const difference = await goldenDifference(run, manifest);
  // A NaN is within nothing.
  const passed = difference <= manifest.check.tolerance;
  self.postMessage(
    passed
      ? { type, difference, answers }
      : { type: "failed", reason: "check", difference },
  );
}

async function classify({ id, file, name }) {
  const started = performance.now();
  let picture;
  try {
    picture = await readPicture(file, name, manifest.transform);
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    self.postMessage({ type: "refused", id, message: error.message });
    return;
  }
  const read = performance.now();
  const probabilities = Array.from(await run(picture.pixels));
  const times = { read: read - started, run: performance.now() - read };
  self.postMessage({ type: "answer", id, probabilities, times, ...picture });
  answers += 1;
  // Some GPUs are right on the first pictures only.
  if (answers % manifest.check.every === 0) await check("checked");
}
