"""EXIF orientation: read from image files, in Python and in TensorFlow.

Phones store pictures as the sensor saw them, and beside the pixels how to turn
them. TensorFlow's decoders do not look, and served graphs cannot call Python.
"""

import functools
import struct
from collections.abc import Callable

_EXIF = b"Exif\0\0"

_PNG = b"\x89PNG\r\n\x1a\n"

# A WebP file whose flags say that it has EXIF, which stand at its end.
_WEBP_WITH_EXIF = (
    r"RIFF\C{4}WEBPVP8X\C{4}[\x08-\x0f\x18-\x1f\x28-\x2f\x38-\x3f]\C*"
)

# How an IFD entry begins that has the orientation, in either byte order: tag
# 0x0112, type 3 (SHORT), count 1.
_ENTRY_II = bytes.fromhex("1201 0300 01000000")

_ENTRY_MM = bytes.fromhex("0112 0003 00000001")

# A position behind every file's end.
_END = 1 << 40

# From a JPEG marker to the next, by its second byte: 0 where a length follows.
# 0xFF fills; 0x00, TEM, RST and SOI stand alone; the pixels come after SOS.
_JPEG_STEPS = [0] * 256
_JPEG_STEPS[0x00] = _JPEG_STEPS[0x01] = 2
_JPEG_STEPS[0xD0:0xD9] = [2] * 9
_JPEG_STEPS[0xD9] = _JPEG_STEPS[0xDA] = _END
_JPEG_STEPS[0xFF] = 1

# An image becomes upright by exchanging its axes if its orientation is 5 or
# more, then reversing rows and columns: one pair for each orientation from 1
# to 4, and the same again from 5 to 8.
_REVERSED = ((False, False), (False, True), (True, True), (True, False))

# Pillow's names of the same.
_TRANSPOSITIONS = (
    None,
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)

# EXIF stands at the beginning of a file. A hostile file may have millions of
# segments, which a graph would walk for minutes.
_HEADER_BYTES = 1 << 18

_MAX_SEGMENTS = 512

_MOST_JUNK = 1024  # bytes that one step passes over


def read_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, as Pillow hands them out.

    Args:
        exif: The content of an EXIF segment, with or without its marker.

    Returns:
        From 1 (upright, or not said) to 8.

    Example:

    >>> read_orientation(image.info.get("exif", b""))
    6
    """
    return _tiff_orientation(exif.removeprefix(_EXIF))


def turn(image, orientation: int):
    """Turn a Pillow image upright.

    Args:
        image: A Pillow image, as stored.
        orientation: From 1 to 8.

    Returns:
        A Pillow image; its sides are exchanged for orientations from 5 to 8.

    Example:

    >>> turn(Image.new("RGB", (4, 3)), 6).size
    (3, 4)
    """
    from PIL import Image

    name = _TRANSPOSITIONS[orientation - 1]
    return image.transpose(Image.Transpose[name]) if name else image


def exif_orientation(encoded):
    """The EXIF orientation of a JPEG, PNG or WebP file, in a TensorFlow graph.

    Of JPEG and PNG, only what stands before the pixels is searched, up to 256
    KiB. Damaged metadata count as none.

    Args:
        encoded: String tensor, scalar: the file's content, of any format.

    Returns:
        int32 tensor, scalar, from 1 (upright, or not said) to 8.

    Example:

    >>> exif_orientation(tf.io.read_file("portrait.jpg"))
    <tf.Tensor: shape=(), dtype=int32, numpy=6>
    """
    import tensorflow as tf

    header = tf.strings.substr(encoded, 0, _HEADER_BYTES)
    # Most files have none; one operation says so sooner than a walk.
    may_have = tf.strings.regex_full_match(header, r"\C*(Exif\x00\x00|eXIf)\C*")
    is_webp = tf.strings.regex_full_match(header, _WEBP_WITH_EXIF)
    return tf.cond(
        is_webp | may_have,
        lambda: called(_search)(encoded, is_webp),
        lambda: tf.constant(1),
    )


def _search(encoded, is_webp):
    """The orientation of a file that may have one, in a graph."""
    import tensorflow as tf

    def search_webp():
        data = tf.io.decode_raw(encoded, tf.uint8)
        start, stop = _webp_exif(data)
        return _tiff_orientation_in_graph(data[start:stop])

    def search():
        header = tf.strings.substr(encoded, 0, _HEADER_BYTES)
        data = tf.io.decode_raw(header, tf.uint8)
        start, stop = tf.cond(
            tf.io.is_jpeg(header),
            lambda: _jpeg_exif(data),
            lambda: _png_exif(data),
        )
        return _tiff_orientation_in_graph(data[start:stop])

    return tf.cond(is_webp, search_webp, search)


@functools.cache
def called(function: Callable) -> Callable:
    """A function as one operation of the graphs that call it.

    It is traced once in a process. TensorFlow inlines other functions, and
    their operations then cost time even in a branch that is not taken: about
    a millisecond per image for a thousand operations.

    Args:
        function: A function of scalar tensors that has no variables.

    Returns:
        A `tf.function`.

    Example:

    >>> orientation = tf.cond(may_have, lambda: called(search)(file), one)
    """
    import tensorflow as tf

    return tf.function(
        function,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def upright(image, orientation):
    """Turn an image upright, in a TensorFlow graph.

    Args:
        image: Tensor `(height, width, channels)`, as stored.
        orientation: int32 scalar from 1 to 8, see `exif_orientation`.

    Returns:
        Tensor `(height, width, channels)`, or `(width, height, channels)` for
        orientations from 5 to 8.

    Example:

    >>> upright(tf.zeros((3, 4, 3)), 6).shape
    TensorShape([4, 3, 3])
    """
    import tensorflow as tf

    image = tf.convert_to_tensor(image)
    orientation = tf.convert_to_tensor(orientation, tf.int32)

    def turned():
        exchanged = tf.cond(
            orientation >= 5,
            lambda: tf.transpose(image, (1, 0, 2)),
            lambda: tf.identity(image),
        )
        # Far faster than slices with negative strides.
        axes = tf.where(_reversed_axes(orientation))[:, 0]
        return tf.reverse(exchanged, axes)

    result = tf.cond(orientation > 1, turned, lambda: tf.identity(image))
    return tf.ensure_shape(result, (None, None, image.shape[2]))


def upright_shape(stored_shape, orientation):
    """Height and width of an image once it is turned upright.

    Args:
        stored_shape: int32 `(height, width, ...)`, as stored.
        orientation: int32 scalar from 1 to 8, see `exif_orientation`.

    Returns:
        int32 tensor `(height, width)`.

    Example:

    >>> upright_shape((3, 4, 3), 6).numpy()
    array([4, 3], dtype=int32)
    """
    import tensorflow as tf

    sides = tf.convert_to_tensor(stored_shape, tf.int32)[:2]
    return tf.where(tf.greater_equal(orientation, 5), sides[::-1], sides)


def stored_window(window, stored_shape, orientation):
    """Where a window of the upright image lies in the stored one.

    Args:
        window: int32 `(top, left, height, width)` in the upright image, as
            `tf.io.decode_and_crop_jpeg` takes them.
        stored_shape: int32 `(height, width, ...)`, as stored.
        orientation: int32 scalar from 1 to 8, see `exif_orientation`.

    Returns:
        int32 tensor `(top, left, height, width)` in the stored image. What it
        cuts out, `upright` turns into the window.

    Example:

    >>> stored_window((0, 0, 2, 1), (3, 4, 3), 6).numpy()
    array([2, 0, 1, 2], dtype=int32)
    """
    import tensorflow as tf

    window = tf.convert_to_tensor(window, tf.int32)
    orientation = tf.convert_to_tensor(orientation, tf.int32)
    corner, size = window[:2], window[2:]
    # The corner after reversing is the opposite one.
    opposite = upright_shape(stored_shape, orientation) - corner - size
    corner = tf.where(_reversed_axes(orientation), opposite, corner)
    return tf.where(
        tf.greater_equal(orientation, 5),
        tf.concat([corner[::-1], size[::-1]], 0),
        tf.concat([corner, size], 0),
    )


def _tiff_orientation(tiff):
    """The orientation that a TIFF header says, from bytes; 1 if none."""
    order, begin = {b"II*\0": ("<", _ENTRY_II), b"MM\0*": (">", _ENTRY_MM)}.get(
        tiff[:4], (None, None)
    )
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start > len(tiff) - 2:
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    count = min(count, (len(tiff) - start - 2) // 12)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if tiff[entry : entry + 8] == begin:
            (value,) = struct.unpack_from(f"{order}H", tiff, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def _tiff_orientation_in_graph(tiff):
    """The orientation that a TIFF header says, from uint8; 1 if none."""
    import tensorflow as tf

    def integers(rows):
        # Slices beyond the end are shorter or empty, and then count as 0.
        rows = tf.cast(rows, tf.int64)
        rows = tf.where(is_little, rows, tf.reverse(rows, [-1]))
        powers = tf.constant([256**i for i in range(4)], tf.int64)
        return tf.reduce_sum(rows * powers[: tf.shape(rows)[-1]], -1)

    is_little = _starts_with(tiff, b"II*\0")
    is_tiff = is_little | _starts_with(tiff, b"MM\0*")
    start = integers(tiff[4:8])
    room = (tf.size(tiff, tf.int64) - start - 2) // 12
    count = tf.minimum(integers(tiff[start : start + 2]), room)
    stop = start + 2 + 12 * tf.maximum(count, 0)
    entries = tf.reshape(tiff[start + 2 : stop], (-1, 12))
    begin = tf.where(is_little, list(_ENTRY_II), list(_ENTRY_MM))
    matches = tf.cast(entries[:, :8], tf.int32) == begin
    values = integers(entries[:, 8:10])[tf.reduce_all(matches, 1)]
    value = tf.concat([values, [1]], 0)[0]
    is_known = is_tiff & (value >= 1) & (value <= 8)
    return tf.where(is_known, tf.cast(value, tf.int32), 1)


def _starts_with(data, prefix):
    """Whether uint8 data begin with these bytes, in a graph."""
    import tensorflow as tf

    size = len(prefix)
    padded = tf.pad(tf.cast(data[:size], tf.int32), [[0, size]])[:size]
    return tf.reduce_all(padded == list(prefix)) & (tf.size(data) >= size)


def _jpeg_exif(data):
    """Where the TIFF data of a JPEG's EXIF begin and end, in a graph."""
    import tensorflow as tf

    def segment(position, head):
        step = tf.gather(_JPEG_STEPS, head[1])
        # Decoders pass over what stands between segments.
        junk = data[position : position + _MOST_JUNK] != 0xFF
        is_junk = tf.concat([junk, [False]], 0)
        step = tf.where(head[0] == 0xFF, step, tf.argmin(is_junk))
        # It counts itself, even where it says less.
        length = 2 + tf.maximum(256 * head[2] + head[3], 2)
        is_exif = tf.reduce_all(
            tf.gather(head, (0, 1, *range(4, 10))) == [0xFF, 0xE1, *_EXIF]
        )
        following = position + tf.where(step == 0, length, step)
        return is_exif, position + 10, following, following

    return _find_exif(data, 2, segment)


def _png_exif(data):
    """The same of a PNG; of any other file, nothing."""
    import tensorflow as tf

    def chunk(position, head):
        length = tf.reduce_sum(head[:4] * [1 << 24, 1 << 16, 1 << 8, 1])
        is_exif = tf.reduce_all(head[4:8] == list(b"eXIf"))
        is_pixels = tf.reduce_all(head[4:8] == list(b"IDAT"))
        stop = position + 8 + length
        following = tf.where(is_pixels, _END, stop + 4)
        return is_exif, position + 8, stop, following

    is_png = _starts_with(data, _PNG)
    return _find_exif(data, tf.where(is_png, len(_PNG), _END), chunk)


def _webp_exif(data):
    """The same of an extended WebP file."""
    import tensorflow as tf

    def chunk(position, head):
        length = tf.reduce_sum(head[4:8] * [1, 1 << 8, 1 << 16, 1 << 24])
        is_exif = tf.reduce_all(head[:4] == list(b"EXIF"))
        stop = position + 8 + length
        # Chunks begin at even positions.
        return is_exif, position + 8, stop, stop + length % 2

    start, stop = _find_exif(data, 12, chunk)
    # Some writers put JPEG's marker before the TIFF data.
    has_marker = _starts_with(data[start:stop], _EXIF)
    return tf.where(has_marker, start + len(_EXIF), start), stop


def _find_exif(data, position, read):
    """Walk the segments of a file from `position` until one has EXIF.

    `read` takes a position and the ten bytes there; it says whether this is
    EXIF, where its TIFF data begin and end, and where the next segment is.
    """
    import tensorflow as tf

    size = tf.size(data, tf.int64)

    def has_more(position, start, stop):
        return (stop == 0) & (position + 10 <= size)

    def advance(position, start, stop):
        head = tf.cast(tf.slice(data, [position], [10]), tf.int64)
        is_exif, start, stop, following = read(position, head)
        is_whole = is_exif & (start < stop) & (stop <= size)
        return (
            following,
            tf.where(is_whole, start, 0),
            tf.where(is_whole, stop, 0),
        )

    nothing = tf.constant(0, tf.int64)
    _, start, stop = tf.while_loop(
        has_more,
        advance,
        (tf.cast(position, tf.int64), nothing, nothing),
        maximum_iterations=_MAX_SEGMENTS,
    )
    return start, stop


def _reversed_axes(orientation):
    """Whether rows and columns are to be reversed, in a graph."""
    import tensorflow as tf

    return tf.gather(_REVERSED, (orientation - 1) % 4)
