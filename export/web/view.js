/** What the page shows; it knows nothing of workers. */

const TOP = 5;

const SMALL = 100; // pixels across, from which enlarging may smooth

const NAMES = { webgpu: "WebGPU", wasm: "WebAssembly" };

export const element = (id) => document.getElementById(id);

/** A backend in words, such as "WebAssembly, 2 threads". */
export function backendName({ backend, threads }) {
  if (backend === "webgpu") return NAMES.webgpu;
  return `${NAMES.wasm}, ${threads} thread${threads === 1 ? "" : "s"}`;
}

/** What the model is. */
export function showFacts(manifest) {
  const { image_size: side } = manifest.transform;
  const facts = {
    Network: manifest.name,
    Classes: `${manifest.output.classes}, from ${side} × ${side} pixels`,
    File: `${manifest.file}, ${megabytes(manifest.bytes)} MB`,
    "Self-check": "not done yet",
    "SHA-256": manifest.sha256,
  };
  element("facts").replaceChildren();
  for (const [name, value] of Object.entries(facts)) showFact(name, value);
}

/** One fact about the model, new or in place of its older value. */
export function showFact(name, value) {
  const id = `fact-${name.replace(/\W/g, "-").toLowerCase()}`;
  let place = element(id);
  if (!place) {
    place = document.createElement("dd");
    place.id = id;
    const group = document.createElement("div");
    group.append(create("dt", name), place);
    element("facts").append(group);
  }
  place.textContent = value;
}

/** How much of the model is here; of `null`, that it is being started. */
export function showProgress(loaded, total) {
  const progress = element("progress");
  element("loading").hidden = false;
  if (loaded === null) {
    progress.removeAttribute("value");
    element("bytes").textContent = "";
    return;
  }
  progress.max = total;
  progress.value = loaded;
  element("bytes").textContent =
    `${megabytes(loaded)} of ${megabytes(total)} MB`;
}

/** What the model is doing, said once by screen readers. */
export function showState(text) {
  if (element("state").textContent !== text) {
    element("state").textContent = text;
  }
}

export function hideProgress() {
  element("loading").hidden = true;
}

/** Pictures to try; `choose` is called with the one that is. */
export function showSamples(samples, choose) {
  element("samples").hidden = samples.length === 0;
  const items = samples.map((sample) => {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.src = sample.file;
    image.alt = `Sample: ${sample.text}`;
    button.append(image);
    button.addEventListener("click", () => choose(sample));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  element("samples").querySelector("ul").replaceChildren(...items);
}

/** A picture before its answer is known. */
export function showPicture(file, name) {
  const preview = element("preview");
  hidePicture();
  preview.src = URL.createObjectURL(file);
  preview.alt = name;
  preview.hidden = false;
  preview.onload = () => {
    preview.classList.toggle("small", preview.naturalWidth < SMALL);
  };
  element("hint").hidden = true;
  element("result").classList.add("old");
}

function hidePicture() {
  const preview = element("preview");
  URL.revokeObjectURL(preview.src);
  preview.removeAttribute("src");
  preview.hidden = true;
  element("hint").hidden = false;
}

/** Why there is neither a picture nor an answer. */
export function refusePicture(text) {
  hidePicture();
  showNoAnswer("");
  showError(text);
}

/** The camera's picture, moving. */
export function showVideo(on) {
  element("video").hidden = !on;
  element("shoot").hidden = !on;
  element("choose").hidden = on;
  element("camera").textContent = on ? "Close the camera" : "Use the camera";
  const isEmpty = !element("preview").getAttribute("src");
  element("preview").hidden = on || isEmpty;
  element("hint").hidden = on || !isEmpty;
}

/** What went wrong, said at once by screen readers; "" for nothing. */
export function showError(text) {
  element("error").textContent = text;
}

/** Something the reader should know of the model; "" for nothing. */
export function showNotice(text) {
  element("notice").textContent = text;
}

/** In place of an answer, why there is none. */
export function showNoAnswer(text) {
  element("result").hidden = true;
  element("empty").hidden = text === "";
  element("empty").textContent = text;
}

/** The most probable classes as bars, and what the network saw. */
export function showAnswer(answer, manifest, name) {
  const { probabilities, times, width, height } = answer;
  const best = probabilities
    .map((probability, i) => ({ label: labelOf(manifest, i), probability }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, TOP);
  element("bars").replaceChildren(...best.map(bar));
  const total = times.read + times.run;
  element("time").textContent =
    `${milliseconds(total)} ms: ${milliseconds(times.read)} to read ` +
    `${width} × ${height} pixels, ${milliseconds(times.run)} to answer.`;
  drawSeen(answer.pixels, manifest.transform.image_size);
  element("empty").hidden = true;
  element("result").hidden = false;
  element("result").classList.remove("old");
  const [first, second] = best;
  element("spoken").textContent =
    `${name}: ${first.label}, ${percent(first.probability)}` +
    (second ? `; ${second.label}, ${percent(second.probability)}.` : ".");
}

export const labelOf = (manifest, i) => manifest.labels?.[i] ?? `class ${i}`;

function bar({ label, probability }) {
  const item = document.createElement("li");
  const value = create("data", percent(probability));
  value.value = probability;
  const line = create("span", "");
  line.className = "line";
  line.style.setProperty("--share", probability);
  const name = create("span", label);
  name.className = "name";
  item.append(name, value, line);
  return item;
}

/** The pixels that the network got, enlarged. */
function drawSeen(pixels, side) {
  const canvas = element("seen");
  canvas.width = canvas.height = side;
  const rgba = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    rgba.data.set(pixels.subarray(3 * i, 3 * i + 3), 4 * i);
    rgba.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(rgba, 0, 0);
  const text = `What the network saw: ${side} × ${side} pixels`;
  canvas.setAttribute("aria-label", text);
  element("seen-text").textContent = `${text}.`;
}

function create(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function percent(probability) {
  const text = (100 * probability).toFixed(1);
  return text === "0.0" && probability > 0 ? "< 0.1%" : `${text}%`;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1);

const milliseconds = (time) => time.toFixed(time < 10 ? 1 : 0);
