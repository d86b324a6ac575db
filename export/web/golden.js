/** The self-check: answers that Keras gave, compared with those given here. */

const SMALLEST = 1e-30; // as in keras_resnext.export.verify

/** How `add_model.py` draws, in whole numbers: steps across and down. */
const STEPS = [
  [1, 2],
  [7, 3],
];

/**
 * A picture that `add_model.py` draws too, byte by byte: triangle waves.
 *
 * @param {number} number Which, 0 or 1.
 * @param {number} size Its side in pixels.
 * @returns {Uint8Array} RGB bytes `(size, size, 3)`.
 */
export function drawGolden(number, size) {
  const [across, down] = STEPS[number];
  const pixels = new Uint8Array(3 * size * size);
  let at = 0;
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const phase = Math.floor(((x * across + y * down) * 512) / size);
      for (let channel = 0; channel < 3; channel++) {
        const value = (phase + 170 * channel) % 512;
        pixels[at++] = Math.min(value, 511 - value);
      }
    }
  }
  return pixels;
}

/** Logits from probabilities, shifted to mean zero: no class hides. */
export function toLogits(probabilities) {
  const logs = Array.from(probabilities, (probability) =>
    Math.log(Math.max(probability, SMALLEST)),
  );
  const mean = logs.reduce((a, b) => a + b, 0) / logs.length;
  return logs.map((value) => value - mean);
}

/**
 * The largest difference from the golden logits.
 *
 * @param {(pixels: Uint8Array) => Promise<Float32Array>} run From pixels to
 *   probabilities.
 * @param {object} manifest What stands in `model.json`.
 * @returns {Promise<number>} `NaN` if an answer has none.
 */
export async function goldenDifference(run, manifest) {
  let largest = 0;
  for (const [number, expected] of manifest.check.logits.entries()) {
    const pixels = drawGolden(number, manifest.transform.image_size);
    const found = toLogits(await run(pixels));
    if (found.length !== expected.length) return NaN;
    const differences = found.map((value, i) => Math.abs(value - expected[i]));
    largest = Math.max(largest, ...differences); // a NaN stays
  }
  return largest;
}
