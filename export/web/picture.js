/** Picture files as a network's input; what is no picture is refused. */

import { readHeader } from "./header.js";
import { Resizer } from "./resample.js";

/** A bitmap takes four bytes a pixel, beside the browser's own copies. */
const MAX_PIXELS = 100_000_000;

/** Of a file, all that its format and size are read from. */
const HEADER_BYTES = 1 << 18;

/** Pixels that are copied out of a bitmap at once. */
const STRIP_PIXELS = 1 << 20;

/** Bitmaps as the file has them: no colour profile, alpha beside the colour. */
const AS_STORED = {
  colorSpaceConversion: "none",
  imageOrientation: "from-image",
  premultiplyAlpha: "none",
};

/** Why a picture cannot be read, in words for its owner. */
export class PictureError extends Error {}

/**
 * Refuse, before anything is decoded, what is no picture or too large.
 *
 * @param {Blob} file
 * @param {string} name What to call it in errors.
 * @throws {PictureError}
 */
export async function checkPicture(file, name) {
  const head = await file.slice(0, HEADER_BYTES).arrayBuffer();
  const header = readHeader(new Uint8Array(head));
  if (header === null) {
    throw new PictureError(
      `${name} is not a picture that this page reads. ` +
        "JPEG, PNG, GIF, BMP and WebP files are.",
    );
  }
  if (header.width * header.height > MAX_PIXELS) {
    throw new PictureError(
      `${name} has ${size(header.width, header.height)}, more than the ` +
        `${MAX_PIXELS / 1e6} million that this page takes.`,
    );
  }
}

/**
 * A picture, upright, as a network's input.
 *
 * @param {Blob} file What `checkPicture` lets through.
 * @param {string} name What to call it in errors.
 * @param {object} transform See `Resizer`.
 * @returns {Promise<{pixels: Uint8Array, width: number, height: number}>}
 */
export async function readPicture(file, name, transform) {
  const bitmap = await decode(file, name);
  const { width, height } = bitmap;
  try {
    const resizer = new Resizer(width, height, transform);
    const rows = rowsOf(bitmap);
    const step = Math.max(1, Math.floor(STRIP_PIXELS / width));
    for (let y = resizer.top; y < resizer.bottom; y += step) {
      const count = Math.min(step, resizer.bottom - y);
      resizer.add(rows(y, count), y);
    }
    return { pixels: resizer.finish(), width, height };
  } catch (error) {
    throw new PictureError(
      `${name} has ${size(width, height)}, more than this browser has ` +
        `memory for (${error.message}). Make it smaller first.`,
    );
  } finally {
    bitmap.close();
  }
}

async function decode(file, name) {
  try {
    return await createImageBitmap(file, AS_STORED);
  } catch {
    throw new PictureError(
      `${name} cannot be decoded: it is damaged, or too large for this ` +
        "browser.",
    );
  }
}

/**
 * A function that copies rows out of a bitmap, as RGBA bytes.
 *
 * Strip by strip: some browsers have no canvas of a whole photograph. A canvas
 * multiplies colours by alpha and loses what is transparent; WebGL does not.
 */
function rowsOf(bitmap) {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let exact;
  return (y, count) => {
    canvas.width = bitmap.width; // clears it
    canvas.height = count;
    context.drawImage(bitmap, 0, -y);
    const { data } = context.getImageData(0, 0, bitmap.width, count);
    if (isOpaque(data)) return data;
    exact ??= exactRowsOf(bitmap);
    return exact(y, count) ?? data;
  };
}

function isOpaque(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return false;
  return true;
}

/** The same with WebGL; it returns `null` where that cannot hold the bitmap. */
function exactRowsOf(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  const most = gl?.getParameter(gl.MAX_TEXTURE_SIZE) ?? 0;
  if (Math.max(bitmap.width, bitmap.height) > most) return () => null;
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  const format = [gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE];
  gl.texImage2D(gl.TEXTURE_2D, 0, ...format, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(
    gl.FRAMEBUFFER,
    gl.COLOR_ATTACHMENT0,
    gl.TEXTURE_2D,
    gl.getParameter(gl.TEXTURE_BINDING_2D),
    0,
  );
  return (y, count) => {
    const rgba = new Uint8Array(4 * bitmap.width * count);
    gl.readPixels(0, y, bitmap.width, count, ...format.slice(1), rgba);
    return gl.getError() ? null : rgba;
  };
}

const size = (width, height) =>
  `${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels`;
