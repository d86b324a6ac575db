"""Image files as pixels: one gate, then Pillow or a TensorFlow graph.

`read_image` and `decode` take the same files, refuse the same ones before they
decode a pixel, and give the same pixels, turned upright as EXIF says.

| format | what is read |
|---|---|
| JPEG | grey and RGB; CMYK as Adobe writes it (to one level of 255) |
| PNG | all; of 16 bits a channel the upper 8; alpha is dropped |
| GIF | the first frame, which must fill the picture |
| BMP | 8 (a palette), 24 or 32 bits a pixel, not compressed |
| WebP | all; alpha is dropped; the first frame of animations |
"""

import functools
import io
import operator
import os
import stat
from typing import Any

import numpy as np

from keras_resnext.exif import called
from keras_resnext.exif import exif_orientation
from keras_resnext.exif import read_orientation
from keras_resnext.exif import turn
from keras_resnext.exif import upright

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")

# Where Pillow, as it comes, refuses images.
MAX_PIXELS = 178_956_970

# The decoding that Pillow and torchvision use. TensorFlow's default saves a
# twentieth of the time and is off by up to 16 levels.
JPEG_METHOD = "INTEGER_ACCURATE"

# How the files of each format begin: a string at a position.
_MAGIC = {
    "JPEG": {0: b"\xff\xd8\xff"},
    "PNG": {0: b"\x89PNG\r\n\x1a\n"},
    "GIF": {0: b"GIF8"},
    "BMP": {0: b"BM"},
    "WEBP": {0: b"RIFF", 8: b"WEBPVP8"},
}

_NEVER = 1 << 30

# Adobe stores the inverse; of other files nobody knows, and decoders differ.
_WHICH_CMYK = "a JPEG file in CMYK must have Adobe's mark"
# Behind two bytes that an expression for text cannot name.
_ADOBE_MARK = r"\C*\x00\x0eAdobe\C*"

# Of a file, all that the gate looks at; the masks of a BMP file end here.
_HEAD_BYTES = 66

_READABLE = "JPEG, PNG, GIF, BMP and WebP are read"

# Bytes, more than any string has.
_ALL = 2**31 - 1

# Of a GIF file up to the end of its first frame; runs of full ones, of 255
# bytes, count once. A hostile file may have millions.
_MAX_GIF_PARTS = 1 << 12


def read_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image with Pillow, turned upright.

    Only the EXIF orientation of JPEG, PNG and WebP files counts, where it is
    well formed: `decode` knows no other. Pillow's `exif_transpose` also reads
    it from XMP and from entries of the wrong type.

    Args:
        source: Path of an image file, its content as bytes, or a binary file
            object. JPEG, PNG, GIF, BMP or WebP, whatever its name.
        max_pixels: Most pixels that an image may have. Defaults to
            178,956,970, Pillow's limit.

    Returns:
        uint8 array `(height, width, 3)` of RGB.

    Raises:
        ValueError: if it is not an image that can be read, or has more pixels.

    Example:

    >>> read_image("photo.jpg").shape
    (3024, 4032, 3)
    """
    return np.array(read_picture(source, max_pixels=max_pixels))


def read_picture(
    source: Any, *, max_pixels: int = MAX_PIXELS, shrink_to: int = _NEVER
):
    """What `read_image` reads, as a Pillow image.

    Args:
        source: See `read_image`.
        max_pixels: See `read_image`.
        shrink_to: A JPEG whose shorter side is at least twice this is decoded
            at 1/2, 1/4 or 1/8 of its size, whichever is the smallest that
            leaves this many pixels to it. Defaults to a
            number that no side has.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        ValueError: see `read_image`.

    Example:

    >>> read_picture("photo.jpg", shrink_to=500).size
    (1008, 756)
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        name, file = "the image", io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        name, file = os.fspath(source), None
    elif hasattr(source, "read"):
        name, file = getattr(source, "name", "the image"), source
    else:
        raise ValueError(
            "`source` must be a path, bytes or a file object; got "
            f"{type(source).__name__}."
        )
    try:
        if file is not None:
            return _read_file(file, max_pixels, shrink_to)
        if not stat.S_ISREG(os.stat(name).st_mode):  # a pipe may never end
            raise ValueError("it is not a regular file")
        with open(name, "rb") as file:
            return _read_file(file, max_pixels, shrink_to)
    # On damaged files, Pillow raises errors of any type.
    except Exception as error:
        raise ValueError(
            f"`source` must be an image file; {name}: "
            f"{error or type(error).__name__}."
        ) from error


def _read_file(file, max_pixels, shrink_to):
    """The Pillow image of an open file."""
    if not (hasattr(file, "seekable") and file.seekable()):
        file = io.BytesIO(file.read())
    file.seek(0)
    head = file.read(_HEAD_BYTES).ljust(_HEAD_BYTES, b"\0")
    kind = _kind_of(head)
    if kind is None:
        raise ValueError(f"unknown format; {_READABLE}")
    if kind == "BMP" and not _is_plain_bmp(head):
        raise ValueError(
            "a BMP file must have 8, 24 or 32 bits a pixel, not compressed"
        )
    if kind == "WEBP":  # Pillow allocates before it says the size
        size = _webp_size(head, lambda this, x, y: x if this else y)
        _check_pixels(*size[::-1], max_pixels)
    file.seek(0)
    with _plugin(kind)(file) as image:
        _check_pixels(*image.size, max_pixels)
        if kind == "GIF" and image.tile[0][1] != (0, 0, *image.size):
            raise ValueError("a GIF file's first frame must fill the picture")
        if image.mode == "CMYK" and "adobe" not in image.info:
            raise ValueError(_WHICH_CMYK)
        if kind == "JPEG":
            image.draft(None, (shrink_to, shrink_to))
        return to_upright_rgb(image)


def to_upright_rgb(image):
    """A Pillow image as RGB, turned upright.

    Args:
        image: A Pillow image, as it was opened.

    Returns:
        A Pillow image of mode RGB; the same if it is one.

    Example:

    >>> to_upright_rgb(Image.open("portrait.jpg")).size
    (3024, 4032)
    """
    from PIL import Image

    # Before the pixels are loaded: a PNG's eXIf chunk behind them is left
    # out, as it is in a graph.
    exif = image.info.get("exif", b"")
    if image.mode.startswith("I"):
        # 16 bits a pixel, of which Pillow's conversion clips all above 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    image.load()
    if image.mode != "RGB":  # or it would be copied
        image = image.convert("RGB")
    return turn(image, read_orientation(exif))


def _kind_of(head):
    """The format of a file that begins so, or `None`."""
    for kind, parts in _MAGIC.items():
        if all(head.startswith(text, start) for start, text in parts.items()):
            return kind
    return None


def _plugin(kind):
    """Pillow's class for a format.

    `Image.open` has a limit of pixels of its own, in a global variable, and
    warns from half of it on.
    """
    if kind == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile as plugin
    elif kind == "PNG":
        from PIL.PngImagePlugin import PngImageFile as plugin
    elif kind == "GIF":
        from PIL.GifImagePlugin import GifImageFile as plugin
    elif kind == "BMP":
        from PIL.BmpImagePlugin import BmpImageFile as plugin
    else:
        from PIL.WebPImagePlugin import WebPImageFile as plugin
    return plugin


def check_max_pixels(value: int) -> None:
    """Refuse a limit of pixels that is no positive integer.

    Raises:
        ValueError: if it is not.

    Example:

    >>> check_max_pixels(1_000_000)
    """
    if type(value) is not int or value < 1:
        raise ValueError(
            f"`max_pixels` must be a positive integer; got {value!r}."
        )


def _check_pixels(width, height, max_pixels):
    if width * height > max_pixels:
        raise ValueError(
            f"it has {width}x{height} pixels, more than `max_pixels` "
            f"({max_pixels})"
        )


def decode(
    encoded: Any, *, max_pixels: int = MAX_PIXELS, shrink_to: int = _NEVER
) -> Any:
    """Decode an image in a TensorFlow graph, turned upright.

    Args:
        encoded: String tensor, scalar: a JPEG, PNG, GIF, BMP or WebP file.
        max_pixels: See `read_image`.
        shrink_to: See `read_picture`; a tensor too.

    Returns:
        uint8 tensor `(height, width, 3)` of RGB.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, if it is not an image
            that can be read, or has more pixels.

    Example:

    >>> decode(tf.io.read_file("photo.jpg")).dtype
    tf.uint8
    """
    import tensorflow as tf

    encoded = tf.convert_to_tensor(encoded)

    def jpeg():
        shape = jpeg_shape(encoded, max_pixels=max_pixels)
        return _decode_jpeg(encoded, shape, shrink_to)

    limit = tf.cast(max_pixels, tf.int64)
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        jpeg,
        lambda: tf.cond(
            _is_kind("PNG", encoded),
            lambda: _decode_png(encoded, limit),
            lambda: called(_decode_other)(encoded, limit),
        ),
    )
    image = tf.ensure_shape(image, (None, None, 3))
    return upright(image, exif_orientation(encoded))


def _is_kind(kind, encoded):
    """Whether a file begins as those of a format, in a graph."""
    import tensorflow as tf

    parts = [
        tf.strings.substr(encoded, start, len(magic)) == magic
        for start, magic in _MAGIC[kind].items()
    ]
    return functools.reduce(operator.and_, parts)


def _decode_png(encoded, max_pixels):
    """The pixels of a PNG file, in a graph."""
    import tensorflow as tf

    header = tf.strings.substr(encoded, 0, 24)
    numbers = tf.io.decode_raw(header, tf.int32, little_endian=False)
    size = tf.unstack(tf.cast(numbers[4:], tf.int64), 2)
    return _decode_any(encoded, 3, size, max_pixels)


def _decode_other(encoded, max_pixels):
    """The pixels of a file that is neither JPEG nor PNG, in a graph."""
    import tensorflow as tf

    # Padded with zeros, as in Python.
    text = tf.strings.substr(encoded, 0, _HEAD_BYTES) + bytes(_HEAD_BYTES)

    def unknown():
        with _required(False, f"Unknown format; {_READABLE}"):
            return tf.zeros((0, 0, 3), tf.uint8)

    readers = {"GIF": _decode_gif, "BMP": _decode_bmp, "WEBP": _decode_webp}
    return tf.case(
        [
            (
                _is_kind(kind, text),
                lambda read=read: called(read)(encoded, text, max_pixels),
            )
            for kind, read in readers.items()
        ],
        default=unknown,
    )


def _decode_gif(encoded, text, max_pixels):
    first, size, fills = _first_gif_frame(encoded)
    with _required(fills, "A GIF file's first frame must fill the picture"):
        return _decode_any(first, 3, size, max_pixels)


def _decode_bmp(encoded, text, max_pixels):
    import tensorflow as tf

    head = _head(text)
    size = tf.cast(tf.strings.length(encoded), tf.int64)
    with _required(
        _is_plain_bmp(head) & (14 + _number(head, 14, 4) <= size),
        "A BMP file must have 8, 24 or 32 bits a pixel, not compressed",
    ):
        image = _decode_any(encoded, 3, _bmp_size(head), max_pixels)
        # TensorFlow has the byte of a pixel, an index, in all channels.
        return tf.cond(
            head[28] == 8,
            lambda: tf.gather(
                _bmp_palette(encoded, head), tf.cast(image[..., 0], tf.int32)
            ),
            lambda: image,
        )


def _decode_webp(encoded, text, max_pixels):
    import tensorflow as tf

    head = _head(text)
    size = _webp_size(head, tf.where)
    return tf.cond(
        _is_alpha_webp(head),
        lambda: _decode_any(_with_alpha(encoded, head), 4, size, max_pixels)[
            ..., :3
        ],
        lambda: _decode_any(encoded, 3, size, max_pixels),
    )


def _decode_any(encoded, channels, size, max_pixels):
    """The pixels of a file whose size its head says."""
    import tensorflow as tf

    with _checked(*size, max_pixels):
        return tf.io.decode_image(encoded, channels, expand_animations=False)


def _head(text):
    """The bytes that a file begins with, as integers in a graph."""
    import tensorflow as tf

    head = tf.io.decode_raw(text, tf.uint8)[:_HEAD_BYTES]
    return tf.unstack(tf.cast(head, tf.int64), _HEAD_BYTES)


def jpeg_shape(encoded: Any, *, max_pixels: int = MAX_PIXELS) -> Any:
    """Height and width of a JPEG file as stored, in a TensorFlow graph.

    Args:
        encoded: String tensor, scalar: a JPEG file.
        max_pixels: See `read_image`.

    Returns:
        int32 tensor `(height, width)`.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, if it is no JPEG file,
            or has more pixels.

    Example:

    >>> jpeg_shape(tf.io.read_file("photo.jpg")).numpy()
    array([3024, 4032], dtype=int32)
    """
    import tensorflow as tf

    height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(encoded))
    known = tf.cond(
        channels == 4,
        lambda: tf.strings.regex_full_match(encoded, _ADOBE_MARK),
        lambda: tf.constant(True),
    )
    size = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    with _required(known, _WHICH_CMYK), _checked(*size, max_pixels):
        return tf.stack([height, width])


def _required(condition, message):
    """A context in which operations run only if a condition holds."""
    import tensorflow as tf

    check = tf.debugging.Assert(condition, [message])
    # Eagerly, the assertion has failed by now.
    return tf.control_dependencies([] if check is None else [check])


def _checked(height, width, max_pixels):
    """A context that refuses too many pixels, and sides of no pixel."""
    return _required(
        (height > 0) & (width > 0) & (height * width <= max_pixels),
        "An image must have at least one pixel and at most `max_pixels`",
    )


def _decode_jpeg(encoded, shape, shrink_to):
    """The pixels of a JPEG file, at a fraction of its size if it is large."""
    import tensorflow as tf

    def decoded(ratio):
        return lambda: tf.io.decode_jpeg(
            encoded, 3, ratio=ratio, dct_method=JPEG_METHOD
        )

    scale = tf.reduce_min(shape) // shrink_to
    enough = tf.cast(scale >= tf.constant([2, 4, 8]), tf.int32)
    return tf.switch_case(
        tf.reduce_sum(enough), [decoded(ratio) for ratio in (1, 2, 4, 8)]
    )


# What follows reads the bytes that a file begins with. The functions without
# TensorFlow take them as Python's integers, and as tensors in a graph.


def _number(head, start, count):
    """An integer of some bytes, the lowest first."""
    return sum(head[start + i] * 256**i for i in range(count))


def _bmp_size(head):
    """Height and width; a negative height means from top to bottom."""
    height = _number(head, 22, 4) - 2**32 * (head[25] // 128)
    return abs(height), _number(head, 18, 4)


def _is_plain_bmp(head):
    """Whether a BMP file has pixels that both decoders read."""
    bits, compression = _number(head, 28, 2), _number(head, 30, 4)
    plain = (compression == 0) & ((bits == 8) | (bits == 24) | (bits == 32))
    # Masks that say what is so without them.
    masked = (compression == 3) & (bits == 32)
    for i, mask in enumerate((0xFF0000, 0xFF00, 0xFF)):
        masked &= _number(head, 54 + 4 * i, 4) == mask
    return (_number(head, 14, 4) >= 40) & (plain | masked)


def _bmp_palette(encoded, head):
    """The colours of a BMP file's palette, RGB `(256, 3)`."""
    import tensorflow as tf

    # Between the header, whose size is at byte 14, and the pixels, which
    # begin where bytes 10 to 13 say.
    start, stop = 14 + _number(head, 14, 4), _number(head, 10, 4)
    palette = _part(encoded, start, tf.clip_by_value(stop - start, 0, 1024))
    palette += tf.constant(bytes(1024))  # black, as in Pillow
    colors = tf.io.decode_raw(palette, tf.uint8)[:1024]
    return tf.reshape(colors, (256, 4))[:, 2::-1]  # BGR and a filler


def _webp_size(head, where):
    """Height and width, of the canvas if the file is an extended one."""
    lossless = _number(head, 21, 4)
    return [
        where(
            head[15] == ord("X"),
            1 + _number(head, extended, 3),
            where(
                head[15] == ord("L"),
                1 + lossless // shift % 2**14,
                _number(head, lossy, 2) % 2**14,
            ),
        )
        for extended, shift, lossy in ((27, 2**14, 28), (24, 1, 26))
    ]


def _is_alpha_webp(head):
    """Whether TensorFlow decodes a WebP file to four channels only."""
    extended, lossless = head[15] == ord("X"), head[15] == ord("L")
    alpha = (head[20] // 16 % 2 == 1) | (head[20] // 2 % 2 == 1)
    return (extended & alpha) | (lossless & (head[24] // 16 % 2 == 1))


def _with_alpha(encoded, head):
    """A WebP file that says that it has alpha.

    TensorFlow decodes animations of such files only, whatever is in them.
    """
    import tensorflow as tf

    flags = head[20] + 16 * (1 - head[20] // 16 % 2)
    return tf.where(
        head[15] == ord("X"), _with_byte(encoded, 20, flags), encoded
    )


def _with_byte(encoded, position, value):
    """A string with another byte at a position."""
    import tensorflow as tf

    byte = tf.gather([bytes([i]) for i in range(256)], value)
    before = tf.strings.substr(encoded, tf.zeros_like(position), position)
    return before + byte + _part(encoded, position + 1, _ALL)


def _part(encoded, start, size):
    """Some bytes of a string; none from behind its end.

    TensorFlow has the whole string in its error, which Python cannot read.
    """
    import tensorflow as tf

    start = tf.minimum(
        tf.cast(start, tf.int64),
        tf.cast(tf.strings.length(encoded), tf.int64),
    )
    return tf.strings.substr(encoded, start, tf.cast(size, tf.int64))


def _first_gif_frame(encoded):
    """A GIF file of the first frame alone, opaque.

    TensorFlow would decode all frames, which may be many gigabytes, and make
    black what is transparent; Pillow has the palette's colour there.

    Returns:
        The file, its height and width, and whether its frame fills it.
    """
    import tensorflow as tf

    data = tf.io.decode_raw(encoded, tf.uint8)
    size = tf.size(data, tf.int64)

    def byte(position):
        return tf.cast(data[tf.minimum(position, size - 1)], tf.int64)

    def number(position):
        return byte(position) + 256 * byte(position + 1)

    def table(flags):
        """Bytes of a table of colours."""
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    def goes_on(position, inside, control, frame, done):
        return ~done & (position < size)

    def advance(position, inside, control, frame, done):
        """From a block to its parts, or from a part to the next.

        A part begins with its length; one of length 0 ends the block.
        """
        # Encoders fill all parts but the last; those are passed over at once.
        full = tf.argmax(data[position::256] != 255)
        position += tf.where(inside, 256 * full, 0)
        kind = byte(position)
        is_frame = ~inside & (kind == 0x2C)
        is_extension = ~inside & (kind == 0x21)
        is_control = is_extension & (byte(position + 1) == 0xF9)
        ends = inside & (kind == 0)
        following = tf.where(
            inside,
            position + 1 + kind,
            tf.where(
                is_frame,
                position + 11 + table(byte(position + 9)),
                tf.where(is_extension, position + 2, size),
            ),
        )
        return (
            following,
            ~ends,
            tf.where(is_control, position + 3, control),
            tf.where(is_frame, position, frame),
            ends & (frame > 0),
        )

    zero, no = tf.constant(0, tf.int64), tf.constant(False)
    stop, _, control, frame, done = tf.while_loop(
        goes_on,
        advance,
        (13 + table(byte(zero + 10)), no, zero, zero, no),
        maximum_iterations=_MAX_GIF_PARTS,
    )
    height, width = number(frame + 7), number(frame + 5)
    fills = done & (number(frame + 1) == 0) & (number(frame + 3) == 0)
    fills &= (width >= number(zero + 6)) & (height >= number(zero + 8))
    first = tf.strings.substr(encoded, zero, stop) + ";"
    flags = byte(control)
    opaque = _with_byte(first, control, flags - flags % 2)
    return tf.where(control > 0, opaque, first), (height, width), fills
