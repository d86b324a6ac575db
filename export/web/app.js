/** The page: pictures in, answers out, from a worker that is checked. */

import { closeCamera, openCamera, takePicture } from "./camera.js";
import { readManifest } from "./model.js";
import { checkPicture } from "./picture.js";
import * as view from "./view.js";

const { element } = view;

const MOST_THREADS = 8; // one picture at a time keeps no more busy

let manifest;
let worker;
let running; // what the worker was started with
let isReady = false;
let current = null; // the picture shown: {id, file, name}
let asked = 0;
let clicked = 0; // samples

main();

async function main() {
  listen();
  offerThreads();
  try {
    manifest = await readManifest();
  } catch (error) {
    view.hideProgress();
    view.showState("There is no model.");
    view.showNotice(error.message);
    return;
  }
  view.showFacts(manifest);
  view.showSamples(manifest.samples, async ({ file, text }) => {
    const number = ++clicked;
    const response = await fetch(file).catch(() => null);
    const picture = response?.ok && (await response.blob().catch(() => null));
    if (number !== clicked) return; // another one was chosen meanwhile
    if (picture) classify(picture, text);
    else view.showError(`The sample ${file} cannot be fetched.`);
  });
  await prepareOffline();
  await restart();
}

/** What to try, one after the other, until one computes what Keras did. */
async function attempts() {
  const wasm = { backend: "wasm", threads: Number(element("threads").value) };
  const webgpu = { backend: "webgpu", threads: 1 };
  const choice = element("backend").value;
  if (choice === "wasm") return [wasm];
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (choice === "webgpu") {
    if (adapter) return [webgpu, wasm];
    view.showNotice("This browser has no WebGPU here; WebAssembly is used.");
    return [wasm];
  }
  // A GPU that is computed by the processor is slower than WebAssembly.
  const isReal = adapter && !adapter.info?.isFallbackAdapter;
  return isReal ? [webgpu, wasm] : [wasm];
}

let restarts = 0;

async function restart() {
  const number = ++restarts;
  view.showNotice("");
  const found = await attempts();
  if (number === restarts) start(found); // else another choice was made
}

/** A new worker for the first attempt; the others are for if it fails. */
function start([attempt, ...others]) {
  worker?.terminate();
  isReady = false;
  running = attempt;
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => receive(data, others);
  worker.onerror = (event) => {
    const message = event.message ?? "its files cannot be fetched";
    receive({ type: "failed", reason: "backend", message }, others);
  };
  view.showFact("Self-check", "not done yet");
  view.showState("Loading the model.");
  view.showProgress(0, manifest.bytes);
  worker.postMessage({ type: "start", manifest, ...attempt });
}

/** What the worker says. */
function receive(data, others) {
  if (data.type === "progress") {
    view.showProgress(data.loaded, manifest.bytes);
  } else if (data.type === "starting") {
    view.showState(`Starting on ${view.backendName(running)}.`);
    view.showProgress(null);
  } else if (data.type === "ready") {
    isReady = true;
    view.hideProgress();
    view.showState(`Ready, on ${view.backendName(running)}.`);
    showCheck(data);
    ask();
  } else if (data.type === "checked") {
    showCheck(data);
  } else if (data.type === "answer" && data.id === current?.id) {
    view.showAnswer(data, manifest, current.name);
    announce(data);
  } else if (data.type === "refused" && data.id === current?.id) {
    current = null;
    view.refusePicture(data.message);
  } else if (data.type === "failed") {
    fail(data, others);
  }
}

/** Go on with the next attempt, or say why there is no answer. */
function fail({ reason, message, difference }, others) {
  worker.terminate();
  const name = view.backendName(running);
  let what = message;
  if (reason === "check") {
    what =
      `${name} does not compute what Keras computed: logits of the golden ` +
      `pictures differ by ${short(difference)}, and ` +
      `${short(manifest.check.tolerance)} is allowed.`;
    view.showFact("Self-check", "failed");
  } else if (reason === "backend") {
    what = `${name} does not run this model: ${message.replace(/\.$/, "")}.`;
  }
  if (reason === "model" || others.length === 0) {
    isReady = false;
    view.hideProgress();
    view.showState("The model does not run here.");
    const end = " No answers are given, because they might be wrong.";
    view.showNotice(what + (reason === "check" ? end : ""));
    view.showNoAnswer("There is no answer without the model.");
    return;
  }
  const wasReady = isReady;
  start(others);
  view.showNotice(
    `${what} The model runs on ${view.backendName(running)} now.` +
      (wasReady ? " Answers since the last check may have been wrong." : ""),
  );
}

function showCheck({ difference, answers }) {
  const when = answers ? `again after ${answers} pictures` : "at the start";
  view.showFact(
    "Self-check",
    `passed ${when}: logits within ${short(difference)} of Keras'; ` +
      `${short(manifest.check.tolerance)} is allowed`,
  );
}

const short = (value) => Number(value.toPrecision(2)).toString();

/** Show a picture and ask the worker about it, once it is ready. */
async function classify(file, name) {
  stopCamera();
  view.showError("");
  current = null;
  const id = ++asked;
  try {
    await checkPicture(file, name);
  } catch (error) {
    if (id === asked) view.refusePicture(error.message);
    return;
  }
  if (id !== asked) return; // another one came meanwhile
  current = { id, file, name };
  view.showPicture(file, name);
  if (!isReady) view.showNoAnswer("The answer comes when the model is ready.");
  ask();
}

function ask() {
  if (isReady && current) worker.postMessage({ type: "classify", ...current });
}

/** For other scripts in this page. */
function announce({ probabilities, pixels, times }) {
  const labels = probabilities.map((_, i) => view.labelOf(manifest, i));
  const { name } = current;
  const detail = { name, labels, probabilities, pixels, times, ...running };
  document.dispatchEvent(new CustomEvent("answer", { detail }));
}

/** Classify the first of some files. */
function take(files) {
  const [file] = files;
  if (!file) {
    view.showError("That is no picture file. Save it first, then choose it.");
    return;
  }
  classify(file, file.name);
}

async function toggleCamera() {
  if (element("video").srcObject) {
    stopCamera();
    return;
  }
  try {
    await openCamera(element("video"));
    view.showError("");
    view.showVideo(true);
  } catch (error) {
    view.showError(error.message);
  }
}

function stopCamera() {
  closeCamera(element("video"));
  view.showVideo(false);
}

async function shoot() {
  classify(await takePicture(element("video")), "The camera's picture");
}

function offerThreads() {
  const cores = navigator.hardwareConcurrency || 1;
  const most = crossOriginIsolated ? Math.min(cores, MOST_THREADS) : 1;
  const options = Array.from({ length: most }, (_, i) => {
    return new Option(i + 1, i + 1, i + 1 === most, i + 1 === most);
  });
  element("threads").replaceChildren(...options);
}

function listen() {
  element("file").addEventListener("change", ({ target }) => {
    if (target.files.length) take(target.files);
    target.value = ""; // the same file may be chosen again
  });
  element("camera").addEventListener("click", toggleCamera);
  element("shoot").addEventListener("click", shoot);
  for (const id of ["backend", "threads"]) {
    element(id).addEventListener("change", () => manifest && restart());
  }
  document.addEventListener("paste", (event) => {
    take(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    element("stage").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) element("stage").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    element("stage").classList.remove("over");
    take(event.dataTransfer.files);
  });
}

/** Have the service worker keep what this page fetches from now on. */
async function prepareOffline() {
  const { serviceWorker } = navigator;
  if (!serviceWorker) return;
  try {
    await serviceWorker.register("offline.js");
  } catch {
    return; // a private window: the page works, but not offline
  }
  if (serviceWorker.controller) return;
  await Promise.race([
    new Promise((resolve) =>
      serviceWorker.addEventListener("controllerchange", resolve),
    ),
    new Promise((resolve) => setTimeout(resolve, 3000)),
  ]);
}
