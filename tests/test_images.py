"""Image files: Pillow and TensorFlow read the same, and refuse the same."""

import io
import itertools
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageOps
from sklearn.datasets import load_sample_images

from keras_resnext import exif
from keras_resnext import images
from keras_resnext.transforms import EvalTransform

PHOTO = load_sample_images().images[0]
NOISE = np.random.default_rng(0).integers(0, 256, (187, 251, 3), "uint8")
TRANSFORM = EvalTransform(image_size=224, resize_size=256)

orders = pytest.mark.parametrize("order", ["<", ">"])


def encode(image=PHOTO, kind="JPEG", **options):
    file = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def entry(order, value=6, *, tag=0x0112, kind=3, count=1):
    return struct.pack(f"{order}HHIHH", tag, kind, count, value, 0)


def tiff(order, *entries, offset=8, count=None):
    """A TIFF header and its first directory, which begins at `offset`."""
    count = len(entries) if count is None else count
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"".join(
        (
            head + struct.pack(f"{order}I", offset),
            bytes(max(0, offset - 8)) if offset < 1000 else b"",
            struct.pack(f"{order}H", count),
            *entries,
            bytes(4),
        )
    )


def segment(kind, content):
    return (
        b"\xff" + bytes([kind]) + struct.pack(">H", 2 + len(content)) + content
    )


def exif_segment(content):
    return segment(0xE1, b"Exif\0\0" + content)


def jpeg(*segments, image=PHOTO[:19, :31]):
    """A JPEG file with these segments behind its APP0."""
    plain = encode(image)
    end = 4 + int.from_bytes(plain[4:6], "big")
    return plain[:end] + b"".join(segments) + plain[end:]


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
def graph_orientations(files):
    return tf.map_fn(exif.exif_orientation, files, fn_output_signature=tf.int32)


def orientations(*files):
    return graph_orientations(tf.constant(files)).numpy().tolist()


# ---- files


JPEG_OPTIONS = [
    {"quality": 75},
    {"quality": 95, "subsampling": 0},
    {"progressive": True},
]


def both(file, **options):
    """What both decoders read, the second in a graph too."""
    read = images.read_image(file, **options)
    decode = tf.function(lambda x: images.decode(x, **options))
    for found in images.decode(file, **options), decode(tf.constant(file)):
        assert found.dtype == tf.uint8
        np.testing.assert_array_equal(found, read)
    return read


def refused_by_both(file, message, **options):
    with pytest.raises(ValueError, match=f"must be an image file.*{message}"):
        images.read_image(file, **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?i){message}"):
        images.decode(file, **options)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        *((mode, "JPEG", o) for mode in ("RGB", "L") for o in JPEG_OPTIONS),
        *((m, "PNG", {}) for m in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *(("P", "PNG", {"bits": bits}) for bits in (1, 2, 4)),
        ("P", "PNG", {"transparency": 3}),
        ("RGB", "PNG", {"transparency": (1, 2, 3)}),
        *((mode, "GIF", {}) for mode in ("1", "L", "P", "RGB")),
        ("P", "GIF", {"transparency": 3}),
        ("P", "GIF", {"interlace": 1, "comment": b"x" * 600}),
        *((mode, "BMP", {}) for mode in ("L", "P", "RGB", "RGBA")),
        *((m, "WEBP", {}) for m in ("RGB", "L", "RGBA")),
        *((m, "WEBP", {"lossless": True}) for m in ("RGB", "RGBA")),
    ],
)
def test_both_decoders_agree(mode, kind, options):
    picture = Image.fromarray(PHOTO[:101, :75]).convert(mode)
    if mode == "RGBA":  # opaque, files would have no alpha
        picture.putalpha(Image.fromarray(PHOTO[200:301, :75, 0]))
    if bits := options.get("bits"):
        picture = picture.convert("RGB").quantize(2**bits)
    encoded = encode(picture, kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(both(encoded), expected)


def test_cmyk():
    """Pillow inverts it without Adobe's mark too, TensorFlow does not."""
    inks = np.random.default_rng(0).integers(0, 256, (37, 53, 4), "uint8")
    encoded = encode(Image.fromarray(inks, "CMYK"), quality=95)
    read = images.read_image(encoded).astype(int)
    assert read.std() > 20
    # Each multiplies ink by black, and rounds in its own way.
    found = images.decode(encoded).numpy().astype(int)
    assert np.abs(found - read).max() <= 1
    mark = encoded.index(b"\xff\xee\0\x0eAdobe")
    refused_by_both(encoded[:mark] + encoded[mark + 16 :], "Adobe's mark")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_animation_is_its_first_frame(kind, mode):
    frames = [Image.fromarray(x).convert(mode) for x in (NOISE, NOISE // 2)]
    if mode == "RGBA":
        # At least 1: without, a writer drops the colour.
        frames[0].putalpha(Image.fromarray(NOISE[..., 0] | 1))
    options = {"save_all": True, "append_images": frames[1:], "duration": 100}
    if kind == "WEBP":
        options |= {"lossless": True, "exact": True}
    encoded = encode(frames[0], kind, **options)
    opened = Image.open(io.BytesIO(encoded))
    assert opened.n_frames == 2
    np.testing.assert_array_equal(both(encoded), opened.convert("RGB"))
    if kind != "GIF":
        np.testing.assert_array_equal(both(encoded), NOISE)


# Masks of the channels, with that of a filler or of alpha.
BGRX = 0xFF0000, 0xFF00, 0xFF, 0
RGBX = 0xFF, 0xFF00, 0xFF0000, 0
COLORS = NOISE[0, :256].reshape(-1)[:1024].tobytes().ljust(1024, b"\7")


def bmp(bits, *, compression=0, masks=(), colors=b"", height=4, size=40):
    """A BMP file of four by four pixels."""
    stored = NOISE.reshape(-1)[: 16 * bits // 8].tobytes()
    stored = stored.ljust(4 * max(4, bits // 2), b"\0")
    header = struct.pack(
        "<IiiHHIIiiII", size, 4, height, 1, bits, compression, len(stored),
        *(0, 0, len(colors) // 4, 0),
    )  # fmt: skip
    masks = b"".join(struct.pack("<I", mask) for mask in masks)
    # The newer headers have the masks in them.
    header += masks if size == 40 else masks.ljust(size - 40, b"\0")
    start = 14 + len(header) + len(colors)
    whole = start + len(stored)
    begin = b"BM" + struct.pack("<IHHI", whole, 0, 0, start)
    return begin + header + colors + stored


@pytest.mark.parametrize(
    "file",
    [
        bmp(24),
        bmp(24, height=-4),
        bmp(32),
        bmp(32, compression=3, masks=BGRX[:3]),
        bmp(32, compression=3, masks=BGRX, size=108),
        bmp(32, compression=3, masks=(*BGRX[:3], 0xFF000000), size=124),
        bmp(8, colors=COLORS),
        bmp(8, colors=COLORS, height=-4),
        bmp(8, colors=COLORS, size=124),
        bmp(8, colors=COLORS[:64]),  # fewer than there are indices
    ],
)
def test_kinds_of_bmp(file):
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(both(file), expected)


@pytest.mark.parametrize(
    "file",
    [
        bmp(1, colors=COLORS[:8]),
        bmp(4, colors=COLORS[:64]),
        bmp(16),
        bmp(8, compression=1, colors=COLORS),
        bmp(32, compression=3, masks=RGBX[:3]),
        bmp(32, compression=3, masks=RGBX, size=108),
        bmp(24, size=39),
    ],
)
def test_bmp_files_of_which_one_decoder_knows_nothing(file):
    """It would show other colours, or none."""
    refused_by_both(file, "a BMP file must have 8, 24 or 32 bits a pixel")


def test_a_gif_frame_that_leaves_a_margin():
    """What is there is the decoder's choice, and they choose otherwise."""
    encoded = bytearray(encode(NOISE[:10, :20], "GIF"))
    frame = encoded.index(b",\0\0\0\0\x14\0\x0a\0")
    assert both(bytes(encoded)).shape == (10, 20, 3)
    wider, moved = encoded.copy(), encoded.copy()
    wider[6] = 21
    moved[frame + 1] = 1
    for file in bytes(wider), bytes(moved), bytes(encoded[: frame + 9]):
        with pytest.raises(ValueError, match="must be an image file"):
            images.read_image(file)
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="must fill the picture"
        ):
            images.decode(file)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "PCX", "TGA", "DIB"])
def test_other_formats(kind, tmp_path):
    """Pillow reads dozens, each of them more code for a hostile file."""
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(NOISE[:16, :16], kind))
    with pytest.raises(ValueError, match="x.jpg: unknown format; JPEG, PNG"):
        images.read_image(path)
    refused_by_both(path.read_bytes(), "unknown format")


def test_no_picture_starts_ghostscript(tmp_path, monkeypatch):
    """Pillow hands EPS files, by whatever name, to the first `gs`."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\necho x > {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "x.jpg"
    path.write_bytes(encode(NOISE, "EPS"))
    with pytest.raises(ValueError, match="x.jpg: unknown format"):
        images.read_image(path)
    assert not (tmp_path / "started").exists()


def test_what_is_no_regular_file(tmp_path):
    """To open a pipe waits for ever."""
    os.mkfifo(tmp_path / "x.png")
    for name in "x.png", ".":
        with pytest.raises(ValueError, match="it is not a regular file"):
            images.read_image(tmp_path / name)


def claiming(kind, width, height):
    """A small file of a format that claims to have these sides."""
    options = {"lossless": True} if kind == "WEBP lossless" else {}
    kind, _, _ = kind.partition(" ")
    file = bytearray(encode(NOISE[:9, :9], kind, **options))
    if kind == "JPEG":
        start = file.index(b"\xff\xc0") + 5
        file[start : start + 4] = struct.pack(">HH", height, width)
    elif kind == "PNG":
        file[16:24] = struct.pack(">II", width, height)
        file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    elif kind == "GIF":
        frame = file.index(b",\0\0\0\0\x09\0\x09\0")
        for start in 6, frame + 5:
            file[start : start + 4] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        file[18:26] = struct.pack("<ii", width, -height)
    elif options:
        bits = (width - 1) | (height - 1) << 14
        file[21:25] = struct.pack("<I", bits)
    else:
        file[26:30] = struct.pack("<HH", width, height)
    return bytes(file)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "WEBP lossless"]
)
def test_too_many_pixels(kind):
    """They are refused by what the file says; none is decoded."""
    assert both(claiming(kind, 9, 9), max_pixels=81).shape == (9, 9, 3)
    refused_by_both(claiming(kind, 9, 9), "pixels", max_pixels=80)
    for width, height in ((16383, 16000), (16000, 16383)):
        file = claiming(kind, width, height)
        with pytest.raises(ValueError, match=f"it has {width}x{height} pixels"):
            images.read_image(file)
        refused_by_both(file, "pixels")


def test_an_extended_webp_has_the_size_of_its_canvas():
    file = bytearray(encode(NOISE, "WEBP", exif=tiff("<", entry("<"))))
    assert file[12:16] == b"VP8X"
    assert both(bytes(file)).shape == (251, 187, 3)
    file[24:30] = b"\xff\x3f\0\xff\x3f\0"
    with pytest.raises(ValueError, match="it has 16384x16384 pixels"):
        images.read_image(bytes(file))
    refused_by_both(bytes(file), "pixels")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [*JPEG_OPTIONS, {"subsampling": 2}])
def test_large_jpegs_at_a_fraction_of_their_size(mode, options):
    """512x640 pixels; both decoders leave out the same frequencies."""
    large = np.kron(NOISE[:64, :80], np.ones((8, 8, 1), "uint8"))
    encoded = encode(Image.fromarray(large).convert(mode), **options)
    for shrink_to, side in (
        *((1, 64), (64, 64), (65, 128), (128, 128), (129, 256)),
        *((256, 256), (257, 512), (5000, 512)),
    ):
        picture = images.read_picture(encoded, shrink_to=shrink_to)
        assert picture.size == (side * 5 // 4, side)
        found = images.decode(encoded, shrink_to=shrink_to)
        np.testing.assert_array_equal(found, picture)


def test_a_fraction_is_not_seen_after_the_resize():
    """The mean over a square of eight decoded pixels is that of all.

    But for rounding, which happens twice as often, and for what is clipped at
    0 and 255 before the mean or after it: about half a level.
    """
    transform = EvalTransform(image_size=16, resize_size=20)
    encoded = encode(PHOTO, quality=90)
    assert min(PHOTO.shape[:2]) >= 2 * transform.shrink_to
    whole = transform.pixels(images.read_image(encoded)).astype(int)
    difference = np.abs(transform.pixels(encoded) - whole)
    assert 0 < difference.mean() < 1


def test_16_bits_a_pixel():
    ramp = np.arange(0, 65536, 64, dtype="uint16").reshape(32, 32)
    expected = (ramp >> 8)[..., None].repeat(3, -1)
    encoded = encode(ramp, "PNG")
    np.testing.assert_array_equal(images.read_image(encoded), expected)
    np.testing.assert_array_equal(images.decode(encoded), expected)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "x.png").write_text("hello")
    for name in ("x.png", "none.png"):
        with pytest.raises(ValueError, match=f"must be an image file.*{name}"):
            images.read_image(tmp_path / name)
    whole = encode(kind="PNG")
    damaged = whole.replace(b"IDAT", b"IxAT").replace(b"IEND", b"IxND")
    for content in (b"", b"hello", damaged, whole[:2000], encode()[:2000]):
        for source in (content, io.BytesIO(content)):
            with pytest.raises(
                ValueError, match="must be an image file; the image: [^<>]+$"
            ):
                images.read_image(source)
    for source in (None, 3, PHOTO):
        with pytest.raises(ValueError, match="`source` must be a path"):
            images.read_image(source)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0half"])
def test_what_no_graph_decodes(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(tf.constant(content))
    assert orientations(content) == [1]


# ---- orientation


def oriented(kind):
    """A file of each orientation, and its pixels as Pillow turns them."""
    files = []
    for orientation in range(1, 9):
        content = Image.Exif()
        content[0x0112] = orientation
        files.append(encode(PHOTO[:43, :30], kind, exif=content))
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    return files, [np.asarray(ImageOps.exif_transpose(p)) for p in pictures]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_upright(kind):
    files, expected = oriented(kind)
    assert orientations(*files) == list(range(1, 9))
    data = tf.data.Dataset.from_tensor_slices(files).map(images.decode)
    assert data.element_spec.shape.as_list() == [None, None, 3]
    for file, pixels, found in zip(files, expected, data, strict=True):
        np.testing.assert_array_equal(found, pixels)
        np.testing.assert_array_equal(images.read_image(file), pixels)


@pytest.mark.integration
def test_upright_in_a_served_model(tmp_path):
    """Batches of files of any orientation, through a SavedModel."""

    class Server(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, files):
            return tf.map_fn(
                lambda file: TRANSFORM.pixels_in_graph(images.decode(file)),
                files,
                fn_output_signature=tf.float32,
            )

    files, expected = oriented("JPEG")
    tf.saved_model.save(Server(), tmp_path / "m")
    found = tf.saved_model.load(tmp_path / "m")(tf.constant(files))
    assert found.shape == (8, 224, 224, 3)
    for pixels, image in zip(expected, found, strict=True):
        levels = np.abs(TRANSFORM.pixels(pixels).astype("float32") - image)
        assert levels.max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows(orientation):
    """A crop of the upright image is the crop turned upright."""
    rng = np.random.default_rng(orientation)
    stored = tf.constant(NOISE[:14, :9])
    whole = exif.upright(stored, orientation).numpy()
    shape = exif.upright_shape(stored.shape, orientation).numpy()
    assert tuple(shape) == whole.shape[:2]

    @tf.function
    def crop(window, orientation):
        window = exif.stored_window(window, stored.shape, orientation)
        top, left, height, width = tf.unstack(window)
        part = stored[top : top + height, left : left + width]
        return exif.upright(part, orientation)

    for _ in range(20):
        height, width = rng.integers(1, shape + 1)
        top, left = rng.integers(0, shape - (height, width) + 1)
        found = crop(
            tf.constant([top, left, height, width], tf.int32),
            tf.constant(orientation),
        )
        expected = whole[top : top + height, left : left + width]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.integration
def test_windows_decoded_from_a_jpeg():
    """`decode_and_crop_jpeg` with the window is the upright image's crop.

    Blocks of 8 pixels without chroma subsampling decode on their own.
    """
    image = PHOTO[:48, :64]
    for orientation in range(1, 9):
        content = Image.Exif()
        content[0x0112] = orientation
        encoded = encode(image, exif=content, quality=95, subsampling=0)
        whole = images.decode(encoded)
        found = exif.exif_orientation(encoded)
        window = exif.stored_window(
            (8, 16, 24, 8), tf.io.extract_jpeg_shape(encoded), found
        )
        part = tf.io.decode_and_crop_jpeg(
            encoded, window, channels=3, dct_method=images.JPEG_METHOD
        )
        np.testing.assert_array_equal(
            exif.upright(part, found), whole[8:32, 16:24]
        )


# ---- EXIF, well formed and not


ENTRY_CASES = {
    "alone": (lambda o: tiff(o, entry(o)), 6),
    "last of three": (
        lambda o: tiff(
            o, entry(o, tag=0x0100), entry(o, tag=0x0110), entry(o, 8)
        ),
        8,
    ),
    "the first counts": (lambda o: tiff(o, entry(o, 3), entry(o, 8)), 3),
    "directory further on": (lambda o: tiff(o, entry(o), offset=37), 6),
    "directory in the header": (lambda o: tiff(o, entry(o), offset=4), 1),
    "another tag": (lambda o: tiff(o, entry(o, tag=0x0113)), 1),
    "none": (lambda o: tiff(o), 1),
    "zero": (lambda o: tiff(o, entry(o, 0)), 1),
    "nine": (lambda o: tiff(o, entry(o, 9)), 1),
    "six in the high byte": (lambda o: tiff(o, entry(o, 0x0600)), 1),
    "262": (lambda o: tiff(o, entry(o, 0x0106)), 1),
    "a byte": (lambda o: tiff(o, entry(o, kind=1)), 1),
    "a long": (lambda o: tiff(o, entry(o, kind=4)), 1),
    "unknown type": (lambda o: tiff(o, entry(o, kind=99)), 1),
    "two of them": (lambda o: tiff(o, entry(o, count=2)), 1),
    "none of them": (lambda o: tiff(o, entry(o, count=0)), 1),
    "count too large": (lambda o: tiff(o, entry(o), count=0xFFFF), 6),
    "count too small": (lambda o: tiff(o, entry(o), count=0), 1),
    "offset beyond": (lambda o: tiff(o, entry(o), offset=1000), 1),
    "offset negative": (lambda o: tiff(o, entry(o), offset=0xFFFFFFFF), 1),
    "offset to the end": (lambda o: tiff(o)[:4] + tiff(o, offset=14)[4:14], 1),
    "no TIFF": (lambda o: b"XX" + tiff(o, entry(o))[2:], 1),
    "the other's magic": (
        lambda o: (
            tiff(o, entry(o)).replace(b"*\0", b"\0*", 1)
            if o == "<"
            else tiff(o, entry(o)).replace(b"\0*", b"*\0", 1)
        ),
        1,
    ),
    "empty": (lambda o: b"", 1),
}


# Pillow warns, which reads the resolution in them.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@orders
@pytest.mark.parametrize(
    ("build", "expected"), ENTRY_CASES.values(), ids=ENTRY_CASES
)
def test_directories(order, build, expected):
    content = build(order)
    encoded = jpeg(exif_segment(content))
    assert orientations(encoded) == [expected]
    np.testing.assert_array_equal(
        images.read_image(encoded), images.decode(encoded)
    )


@orders
def test_segments(order):
    six, eight = (exif_segment(tiff(order, entry(order, n))) for n in (6, 8))
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    icc = segment(0xE2, b"ICC_PROFILE\0" + bytes(65000))
    comment = segment(0xFE, b"\xff\xd9" + six)
    plain = encode(PHOTO[:19, :31])
    cases = [
        (jpeg(six), 6),
        (plain[:2] + six + plain[2:], 6),  # before APP0
        (jpeg(xmp, six), 6),
        (jpeg(xmp), 1),
        (jpeg(comment), 1),
        (jpeg(comment, eight), 8),
        (jpeg(icc, icc, six), 6),
        (jpeg(six, eight), 6),
        (jpeg(b"\xff\xff" + six), 6),  # 0xFF may fill
        (jpeg(b"\x00\x11" + six), 6),  # bytes that do not belong there
        (jpeg(segment(0xE1, b"")), 1),
        (jpeg(segment(0xE1, b"Exif\0\0")), 1),
        (jpeg(b"\xff\xe1\0\0" + six), 6),  # no length is below 2
        (jpeg(b"\xff\xe1\0\1" + six), 6),
        (plain[:-2] + six + plain[-2:], 1),  # among the pixels
        (plain + six, 1),
        (b"\xff\xd8\xff\xd9" + six, 1),
        (b"\xff\xd8" + six, 6),
        (b"GIF89a" + six, 1),
        (six, 1),
    ]
    files, expected = zip(*cases, strict=True)
    assert orientations(*files) == list(expected)


def test_pngs():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + bytes(4)

    plain = encode(NOISE, "PNG")
    header, rest = plain[:33], plain[33:]
    six = chunk(b"eXIf", tiff(">", entry(">")))
    cases = [
        (plain, 1),
        (header + six + rest, 6),
        (header + chunk(b"tEXt", six) + rest, 1),
        (header + chunk(b"tEXt", six) + six + rest, 6),
        (plain[:-12] + six + plain[-12:], 1),  # behind the pixels
        (header + b"\xff\xff\xff\xfftEXt" + six + rest, 1),
        (header + b"\x7f\xff\xff\xfftEXt" + six + rest, 1),
        (header + b"\x7f\xff\xff\xff" + six[4:] + rest, 1),
        (b"\x88" + header[1:] + six + rest, 1),
    ]
    files, expected = zip(*cases, strict=True)
    assert orientations(*files) == list(expected)


@orders
def test_webps(order):
    """Pillow's reader says the same, but of a file that ends too soon."""
    content = tiff(order, entry(order))
    plain = encode(NOISE, "WEBP", exif=content)
    start = plain.index(b"EXIF")
    length = struct.pack("<I", len(content))
    marked = struct.pack("<I", len(content) + 6) + b"Exif\0\0"
    odd = b"XYZ " + struct.pack("<I", 3) + b"abc\0"
    unflagged = plain[:20] + b"\0" + plain[21:]
    cases = [
        (plain, 6),
        (plain[:start] + odd + plain[start:], 6),
        (plain[:start] + b"EXIF" + marked + content, 6),
        (unflagged, 1),
        (encode(NOISE, "WEBP"), 1),
    ]
    for file, expected in cases:
        # The header counts all bytes behind it.
        file = file[:4] + struct.pack("<I", len(file) - 8) + file[8:]
        assert orientations(file) == [expected]
        info = Image.open(io.BytesIO(file)).info
        assert exif.read_orientation(info.get("exif", b"")) == expected
    assert plain[start:] == b"EXIF" + length + content + bytes(len(content) % 2)
    ends = range(start - 20, start + len(content) + 8)
    assert orientations(*(plain[:end] for end in ends)) == [1] * len(ends)


@orders
def test_truncated_at_every_byte(order):
    """Nothing is said until the whole segment is there."""
    content = tiff(order, entry(order, tag=0x0100), entry(order))
    length = struct.pack(">I", len(content))
    for whole in (
        jpeg()[:20] + exif_segment(content),
        b"\x89PNG\r\n\x1a\n" + length + b"eXIf" + content,
    ):
        prefixes = [whole[:n] for n in range(len(whole) + 1)]
        assert orientations(*prefixes) == [1] * len(whole) + [6]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@orders
def test_headers_that_lie(order):
    """Both readers say the same of damaged directories, and neither fails."""
    rng = np.random.default_rng(0)
    whole = tiff(order, entry(order, tag=0x0100), entry(order), entry(order, 3))
    damaged = [whole[:n] for n in range(len(whole))]
    for i, byte in itertools.product(range(len(whole)), (0, 1, 3, 13, 255)):
        damaged.append(whole[:i] + bytes([byte]) + whole[i + 1 :])
    for _ in range(200):
        content = bytearray(whole)
        for i in rng.integers(len(whole), size=4):
            content[i] = rng.integers(256)
        damaged.append(bytes(content))
    expected = [exif._tiff_orientation(content) for content in damaged]
    assert set(expected) >= {1, 3, 6}
    files = [jpeg(exif_segment(content)) for content in damaged]
    assert orientations(*files) == expected
    for file, orientation in zip(files, expected, strict=True):
        shape = (19, 31, 3) if orientation < 5 else (31, 19, 3)
        assert images.read_image(file).shape == shape


def test_hostile_files_end_soon():
    """Millions of segments, and random bytes behind every kind of beginning."""
    rng = np.random.default_rng(0)
    end = exif_segment(tiff("<", entry("<")))
    files = [
        b"\xff\xd8" + b"\xff\xe0\0\2" * 500_000 + end,
        b"\xff\xd8" + b"\xff" * 1_000_000 + end,
        b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * 100_000 + b"eXIf",
        b"RIFF1234WEBPVP8X\n\0\0\0\x08" + bytes(2_000_000),
        b"RIFF1234WEBPVP8X\xff\xff\xff\xff\x08" + bytes(100),
    ]
    for _ in range(200):
        start = (b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"\xff\xd8")
        noise = rng.integers(0, 256, 60, "uint8").tobytes()
        files.append(start[rng.integers(3)] + noise + b"Exif\0\0eXIf")
    assert orientations(*files) == [1] * len(files)


_PEAK = """
import sys
import tensorflow as tf
from keras_resnext.images import decode
from keras_resnext.transforms import EvalTransform

transform = EvalTransform(image_size=224, resize_size=256)
read_in_graph = tf.function(
    lambda file: transform.pixels_in_graph(
        decode(file, shrink_to=transform.shrink_to)
    ),
    autograph=False,
    input_signature=[tf.TensorSpec((), tf.string)],
)

def peak():
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmHWM"].split()[0]) * 1024

how, *paths = sys.argv[1:]
read = transform.pixels if how == "pillow" else read_in_graph
for path in paths:
    with open(path, "rb") as file:
        content = file.read()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forgets the peak
    before = peak()
    read(content)
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux' /proc"
)
def test_memory_of_huge_pictures(tmp_path):
    """In units of a byte for each pixel that is decoded."""
    small = tmp_path / "small.png"
    small.write_bytes(encode(PHOTO, "PNG"))
    huge = Image.new("RGB", (12_000, 12_000), (200, 30, 5))
    huge.save(tmp_path / "huge.jpg")
    huge.save(tmp_path / "huge.png")
    frames = [Image.new("P", (3000, 3000), i) for i in range(40)]
    options = {"save_all": True, "append_images": frames[1:]}
    frames[0].save(tmp_path / "many.gif", **options)
    del huge, frames
    names = ("small.png", "huge.jpg", "many.gif", "huge.png")
    pillow, graph = (
        dict(zip(names, map(int, output.split()), strict=True))
        for output in (
            subprocess.run(
                [sys.executable, "-c", _PEAK, how, *names],
                capture_output=True,
                text=True,
                check=True,
                cwd=tmp_path,
            ).stdout
            for how in ("pillow", "graph")
        )
    )
    some = 64e6  # for what does not grow with the picture
    # Pillow has four bytes a pixel; TensorFlow three, and turns them once.
    # 12,000 pixels are decoded as 3000, which is more than 8 times 256.
    assert pillow["huge.jpg"] < 4 * 3000**2 + some
    assert graph["huge.jpg"] < 6 * 3000**2 + some
    # One frame of forty: with its palette, then RGB.
    assert pillow["many.gif"] < 5 * 3000**2 + some
    assert graph["many.gif"] < 7 * 3000**2 + some
    assert 4 * 12_000**2 - some < pillow["huge.png"] < 4 * 12_000**2 + some
    assert graph["huge.png"] < 6 * 12_000**2 + some
