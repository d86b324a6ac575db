/** What the first bytes of a picture file say: its format and its size. */

const FORMATS = [
  { kind: "PNG", at: 0, magic: "\x89PNG\r\n\x1a\n", size: pngSize },
  { kind: "JPEG", at: 0, magic: "\xff\xd8\xff", size: jpegSize },
  { kind: "GIF", at: 0, magic: "GIF8", size: gifSize },
  { kind: "BMP", at: 0, magic: "BM", size: bmpSize },
  { kind: "WebP", at: 8, magic: "WEBPVP8", size: webpSize },
];

/**
 * The format of a picture file, and its size as far as the bytes say it.
 *
 * @param {Uint8Array} bytes The beginning of a file.
 * @returns {{kind: string, width: number, height: number} | null} Sides are 0
 *   where the size stands further behind; `null` if it is no picture.
 */
export function readHeader(bytes) {
  const format = FORMATS.find(({ at, magic }) =>
    [...magic].every((c, i) => bytes[at + i] === c.charCodeAt(0)),
  );
  if (!format) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let sides = [0, 0];
  try {
    sides = format.size(view);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the file ends there
  }
  return { kind: format.kind, width: sides[0], height: sides[1] };
}

function pngSize(view) {
  return [view.getUint32(16), view.getUint32(20)];
}

function gifSize(view) {
  return [view.getUint16(6, true), view.getUint16(8, true)];
}

function bmpSize(view) {
  // A negative height means from top to bottom.
  return [view.getInt32(18, true), view.getInt32(22, true)].map(Math.abs);
}

function webpSize(view) {
  const kind = String.fromCharCode(view.getUint8(15));
  if (kind === "X") {
    const three = (at) => view.getUint32(at, true) & 0xffffff;
    return [1 + three(24), 1 + three(27)];
  }
  if (kind === "L") {
    const bits = view.getUint32(21, true);
    return [1 + (bits & 0x3fff), 1 + ((bits >> 14) & 0x3fff)];
  }
  return [26, 28].map((at) => view.getUint16(at, true) & 0x3fff);
}

/** Of a JPEG file, segment by segment until the one of the frame. */
function jpegSize(view) {
  let at = 2;
  for (;;) {
    if (view.getUint8(at) !== 0xff) return [0, 0];
    const marker = view.getUint8(at + 1);
    const standsAlone = marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8);
    // DHT, JPG and DAC are between the markers of frames.
    const isFrame = marker >= 0xc0 && marker <= 0xcf;
    if (isFrame && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return [view.getUint16(at + 7), view.getUint16(at + 5)];
    }
    if (marker === 0xff) at += 1;
    else at += standsAlone ? 2 : 2 + view.getUint16(at + 2);
  }
}
