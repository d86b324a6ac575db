/**
 * Pillow's resize of 8-bit pictures, bit for bit, then a crop of the centre.
 *
 * A canvas scales in its own way, different in each browser. This is what
 * `keras_resnext.transforms.EvalTransform` does, with Pillow's two passes and
 * its weights in fixed point; what the crop leaves out is never computed.
 */

const BITS = 22;

const HALF = 1 << (BITS - 1); // so that sums are rounded

/** Longer side by shorter from which only the middle is resized. */
const LONG = 100;

/** Height by width from which Pillow resizes down first, since version 13. */
const TALL = 2;

const FILTERS = {
  bilinear: { support: 1, weight: (x) => (x < 1 ? 1 - x : 0) },
  bicubic: {
    support: 2,
    weight: (x) => {
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
    },
  },
};

/** Pixels of a picture, added strip by strip, as a network's input. */
export class Resizer {
  /**
   * @param {number} width Of the picture, upright, in pixels.
   * @param {number} height
   * @param {{image_size: number, resize_size: number, interpolation: string}}
   *   transform
   */
  constructor(width, height, transform) {
    const filter = FILTERS[transform.interpolation];
    const [across, down] = spans(width, height, transform);
    const size = transform.image_size;
    this.size = size;
    this.width = width;
    this.columns = weights(width, across, size, filter);
    this.rows = weights(height, down, size, filter);
    /** The rows of the picture that count. */
    this.top = this.rows.first[0];
    this.bottom = this.rows.first[size - 1] + this.rows.count[size - 1];
    // The order matters: what is between the passes is rounded to bytes.
    this.isTall = height > TALL * width && down.side < height;
    if (this.isTall) {
      this.sums = new Int32Array(3 * width * size).fill(HALF);
    } else {
      this.narrow = new Uint8Array(3 * size * (this.bottom - this.top));
    }
  }

  /** Add rows of the picture, of RGBA bytes; the first is row `y`. */
  add(rgba, y) {
    const rows = rgba.length / 4 / this.width;
    if (this.isTall) {
      for (let row = 0; row < rows; row++) this.#addRow(rgba, row, y + row);
    } else {
      const target = this.narrow.subarray(3 * this.size * (y - this.top));
      this.#resizeAcross(rgba, 4, rows, target);
    }
  }

  /** The network's input, RGB bytes `(image_size, image_size, 3)`. */
  finish() {
    const result = new Uint8Array(3 * this.size * this.size);
    if (this.isTall) {
      const flat = Uint8Array.from(this.sums, byte);
      this.#resizeAcross(flat, 3, this.size, result);
    } else {
      this.#resizeDown(this.narrow, result);
    }
    return result;
  }

  /** From rows of the picture's width to rows of the result's. */
  #resizeAcross(source, channels, rows, target) {
    const { first, count, start, values } = this.columns;
    let out = 0;
    for (let row = 0; row < rows; row++) {
      for (let x = 0; x < this.size; x++) {
        let red = HALF;
        let green = HALF;
        let blue = HALF;
        let at = channels * (row * this.width + first[x]);
        const stop = start[x] + count[x];
        for (let i = start[x]; i < stop; i++, at += channels) {
          red = (red + Math.imul(source[at], values[i])) | 0;
          green = (green + Math.imul(source[at + 1], values[i])) | 0;
          blue = (blue + Math.imul(source[at + 2], values[i])) | 0;
        }
        target[out++] = byte(red);
        target[out++] = byte(green);
        target[out++] = byte(blue);
      }
    }
  }

  /** From narrow rows to the result. */
  #resizeDown(source, target) {
    const { first, count, start, values } = this.rows;
    const line = 3 * this.size;
    for (let y = 0; y < this.size; y++) {
      for (let x = 0; x < line; x++) {
        let sum = HALF;
        let at = line * (first[y] - this.top) + x;
        const stop = start[y] + count[y];
        for (let i = start[y]; i < stop; i++, at += line) {
          sum = (sum + Math.imul(source[at], values[i])) | 0;
        }
        target[line * y + x] = byte(sum);
      }
    }
  }

  /** Add a row of the picture to the rows of the result that it is part of. */
  #addRow(rgba, row, y) {
    const { first, count, start, values } = this.rows;
    const line = 3 * this.width;
    for (let out = 0; out < this.size; out++) {
      const i = y - first[out];
      if (i < 0 || i >= count[out]) continue;
      const weight = values[start[out] + i];
      let at = 4 * row * this.width;
      for (let x = line * out; x < line * (out + 1); x += 3, at += 4) {
        this.sums[x] += Math.imul(rgba[at], weight);
        this.sums[x + 1] += Math.imul(rgba[at + 1], weight);
        this.sums[x + 2] += Math.imul(rgba[at + 2], weight);
      }
    }
  }
}

/** A sum in fixed point as a byte. */
function byte(sum) {
  const value = sum >> BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/**
 * What of each side is resized, to how much, and from where the crop is.
 *
 * The longer side is rounded down, the crop's corner to the nearest.
 */
function spans(width, height, { image_size, resize_size }) {
  const longer = (side, other) => Math.trunc((resize_size * side) / other);
  const sides =
    width <= height
      ? [resize_size, longer(height, width)]
      : [longer(width, height), resize_size];
  const narrow = Math.max(...sides) > LONG * Math.min(...sides);
  return [width, height].map((stored, i) => {
    const corner = toEven((sides[i] - image_size) / 2);
    if (!narrow) return { from: 0, to: stored, side: sides[i], corner };
    const scale = stored / sides[i];
    return {
      from: corner * scale,
      to: (corner + image_size) * scale,
      side: image_size,
      corner: 0,
    };
  });
}

/** The nearest whole number, halves to the even one, as Python rounds. */
function toEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

/** For each pixel of the result, which pixels are added, and their weights. */
function weights(stored, span, size, filter) {
  // Pillow keeps the ends in single precision.
  const from = Math.fround(span.from);
  const scale = Math.fround(Math.fround(span.to) - from) / span.side;
  const widened = Math.max(scale, 1);
  const support = filter.support * widened;
  const first = new Int32Array(size);
  const count = new Int32Array(size);
  const start = new Int32Array(size);
  const values = new Int32Array(size * (2 * Math.ceil(support) + 1));
  let used = 0;
  for (let i = 0; i < size; i++) {
    const centre = from + (i + span.corner + 0.5) * scale;
    first[i] = Math.max(Math.trunc(centre - support + 0.5), 0);
    const stop = Math.min(Math.trunc(centre + support + 0.5), stored);
    count[i] = stop - first[i];
    start[i] = used;
    const found = [];
    for (let x = 0; x < count[i]; x++) {
      const distance = (x + first[i] - centre + 0.5) * (1 / widened);
      found.push(filter.weight(Math.abs(distance)));
    }
    const sum = found.reduce((a, b) => a + b, 0);
    for (const weight of found) {
      const fixed = (sum ? weight / sum : weight) * 2 ** BITS;
      values[used++] = Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
  }
  return { first, count, start, values };
}
