"""Evaluation images, beside torchvision, timm and Pillow."""

import importlib
import io
import itertools
import json
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageOps
from sklearn.datasets import load_sample_images

from keras_resnext import exif
from keras_resnext import transforms
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from keras_resnext.transforms import EvalTransform

PHOTO = load_sample_images().images[0]
NOISE = np.random.default_rng(0).integers(0, 256, (187, 251, 3), "uint8")
TRANSFORM = EvalTransform(image_size=224, resize_size=256)

# Down- and upscaling, even and odd, portrait and landscape.
IMAGES = {
    "landscape": PHOTO,
    "portrait": PHOTO.transpose(1, 0, 2),
    "odd": PHOTO[:333, :211],
    "small": PHOTO[100:199, 100:177],
    "noise": NOISE,
    "large": np.asarray(Image.fromarray(PHOTO).resize((1999, 1501))),
    "as resized": PHOTO[:256, :301],
    "one pixel wide": PHOTO[:40, :1],
    "one pixel high": PHOTO[:1, :40],
    "one pixel": PHOTO[:1, :1],
}

images = pytest.mark.parametrize(
    "image", [pytest.param(image, id=name) for name, image in IMAGES.items()]
)
interpolations = pytest.mark.parametrize(
    "interpolation", ["bilinear", "bicubic"]
)
sizes = pytest.mark.parametrize(
    ("resize_size", "image_size"), [(256, 224), (232, 224), (329, 288)]
)
orders = pytest.mark.parametrize("order", ["<", ">"])


def encode(image=PHOTO, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
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


# ---- EvalTransform


def imported(name):
    """A module that imports torchvision, or the test is skipped."""
    pytest.importorskip("torch", reason="torch is not installed (make peers)")
    # Makes torchvision importable beside PyTorch's CPU build.
    importlib.import_module("tests.torch_reference")
    return pytest.importorskip(name)


@pytest.mark.parametrize(
    ("shape", "resize_size", "size", "corner"),
    [
        # 256 * 640 / 427 = 383.7; (383 - 224) / 2 = 79.5, to the even 80.
        ((427, 640), 256, (383, 256), (80, 16)),
        ((640, 427), 256, (256, 383), (16, 80)),
        # 232 * 333 / 211 = 366.1, (366 - 224) / 2 = 71.
        ((333, 211), 232, (232, 366), (4, 71)),
        ((300, 300), 225, (225, 225), (0, 0)),  # 0.5, to the even 0
    ],
)
@interpolations
def test_as_pillow(shape, resize_size, size, corner, interpolation):
    """Side and corner worked out by hand from torchvision's source."""
    image = np.asarray(Image.fromarray(PHOTO).resize(shape[::-1]))
    filters = {"bilinear": 2, "bicubic": 3}
    resized = Image.fromarray(image).resize(size, filters[interpolation])
    left, top = corner
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    transform = EvalTransform(
        image_size=224, resize_size=resize_size, interpolation=interpolation
    )
    np.testing.assert_array_equal(transform.pixels(image), expected)
    expected = expected.astype("float64") / 255
    expected = (expected - MEAN) / STD
    # Values up to 2.7 after three roundings and a division by 0.22.
    np.testing.assert_allclose(transform(image), expected, atol=2e-6)


@pytest.mark.integration
@images
@interpolations
@sizes
def test_as_torchvision(image, resize_size, image_size, interpolation):
    """Bit for bit, pixels and normalised."""
    theirs = imported("torchvision.transforms")
    steps = [
        theirs.Resize(resize_size, theirs.InterpolationMode(interpolation)),
        theirs.CenterCrop(image_size),
        theirs.ToTensor(),
        theirs.Normalize(MEAN, STD),
    ]
    transform = EvalTransform(
        image_size=image_size,
        resize_size=resize_size,
        interpolation=interpolation,
    )
    picture = Image.fromarray(image)
    expected = np.asarray(theirs.Compose(steps[:2])(picture))
    found = transform.pixels(image)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    expected = theirs.Compose(steps)(picture).numpy().transpose(1, 2, 0)
    found = transform(image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.integration
@interpolations
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 224 / 235, 1.0])
def test_as_timm(crop_pct, interpolation):
    factory = imported("timm.data.transforms_factory")
    theirs = factory.transforms_imagenet_eval(
        224, crop_pct=crop_pct, interpolation=interpolation
    )
    transform = EvalTransform.from_crop_pct(
        224, crop_pct, interpolation=interpolation
    )
    expected = theirs(Image.fromarray(PHOTO)).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(transform(PHOTO), expected)


@images
@interpolations
@sizes
def test_the_graph_agrees_with_pillow(
    image, resize_size, image_size, interpolation
):
    """Both round to whole levels after each pass.

    TensorFlow's float32 weights and Pillow's fixed-point ones part where the
    exact value lies midway between two levels. Few do: most where the ratio is
    simple, so that exact ties are common. From 256 to 232, 32:29, it is 0.8%
    of the values, elsewhere 0.25% at most.
    """
    transform = EvalTransform(
        image_size=image_size,
        resize_size=resize_size,
        interpolation=interpolation,
    )
    expected = transform.pixels(image).astype("float32")
    found = transform.pixels_in_graph(tf.constant(image))
    assert found.dtype == tf.float32
    assert found.shape == (image_size, image_size, 3)
    np.testing.assert_array_equal(found, np.round(found))
    levels = np.abs(found - expected)
    assert levels.max() <= 1
    assert np.mean(levels > 0) < 0.01


def test_long_images_are_not_resized_whole():
    """(256, 512000, 3) float32 would take 1.5 GB."""
    image = np.tile(NOISE[:, :1], (11, 1, 1))[:2000]
    found = TRANSFORM.pixels_in_graph(tf.constant(image)).numpy()
    # The middle 224 rows of 512000 lie between two rows of the image.
    middle = image[999:1001, 0]
    assert found.shape == (224, 224, 3)
    assert np.all(found >= middle.min(0))
    assert np.all(found <= middle.max(0))


def test_normalising_in_the_graph():
    """Values up to 2.7 after three roundings and a division by 0.22."""
    pixels = TRANSFORM.pixels(PHOTO)
    found = TRANSFORM.normalize_in_graph(tf.constant(pixels))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, TRANSFORM(PHOTO), atol=2e-6)


def test_other_statistics():
    transform = EvalTransform(
        image_size=8, resize_size=8, mean=(0, 0.5, 1), std=[1, 0.5, 2]
    )
    white = np.full((8, 8, 3), 255, "uint8")
    np.testing.assert_array_equal(transform(white)[0, 0], [1, 1, 0])
    found = transform.normalize_in_graph(tf.constant(white))
    np.testing.assert_allclose(found[0, 0], [1, 1, 0], atol=1e-6)


def test_kinds_of_images(tmp_path):
    """Path, bytes, file, picture and array: the same pixels."""
    content = Image.Exif()
    content[0x0112] = 6
    encoded = encode(exif=content)
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded)
    expected = TRANSFORM.pixels(transforms.read_image(encoded))
    for image in (
        path,
        str(path),
        encoded,
        bytearray(encoded),
        io.BytesIO(encoded),
        Image.open(path),
        ImageOps.exif_transpose(Image.open(path)),
        transforms.decode(encoded),
    ):
        np.testing.assert_array_equal(TRANSFORM.pixels(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        PHOTO.astype("float32"),
        PHOTO[None],
        PHOTO[..., :1],
        PHOTO[:0],
        [[1, 2]],
        None,
    ],
)
def test_what_is_no_array_of_pixels(image):
    with pytest.raises(ValueError, match="`image` must be uint8"):
        TRANSFORM.pixels(image)


def test_config_survives_json():
    for transform in (
        TRANSFORM,
        EvalTransform(
            image_size=np.int64(288),
            resize_size=329,
            interpolation="bicubic",
            mean=np.float32([0.5] * 3),
            std=(1, 2, 3),
        ),
    ):
        config = json.loads(json.dumps(transform.to_config()))
        assert config == transform.to_config()
        assert EvalTransform.from_config(config) == transform
        assert hash(EvalTransform.from_config(config)) == hash(transform)


def test_bad_configs():
    config = TRANSFORM.to_config()
    for bad in (
        config | {"crop": 1},
        {key: config[key] for key in list(config)[:-1]},
        {},
        None,
    ):
        with pytest.raises(ValueError, match="`config` must be a dict with"):
            EvalTransform.from_config(bad)
    with pytest.raises(ValueError, match="`image_size` must be a positive"):
        EvalTransform.from_config(config | {"image_size": "224"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size` must be a positive integer; got 0."),
        ({"image_size": True}, "`image_size` must be a positive integer"),
        ({"image_size": 2.0}, "`image_size` must be a positive integer"),
        ({"resize_size": None}, "`resize_size` must be a positive integer"),
        ({"resize_size": 7}, "`resize_size` must be `image_size` or more"),
        ({"interpolation": "nearest"}, '`interpolation` must be "bilinear" or'),
        ({"interpolation": []}, '`interpolation` must be "bilinear" or'),
        ({"mean": (0, 0)}, "`mean` must be three finite numbers; got"),
        ({"mean": 0.5}, "`mean` must be three finite numbers"),
        ({"mean": (0, 0, float("nan"))}, "`mean` must be three finite numbers"),
        ({"std": ("a", 1, 1)}, "`std` must be three finite numbers"),
        ({"std": (1, 1, float("inf"))}, "`std` must be three finite numbers"),
        ({"std": (1, 0, 1)}, "`std` must be above 0; got"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EvalTransform(**({"image_size": 8, "resize_size": 8} | arguments))


def test_crop_pct():
    assert EvalTransform.from_crop_pct(224).resize_size == 224
    assert EvalTransform.from_crop_pct(224, 0.875).resize_size == 256
    assert EvalTransform.from_crop_pct(224, 0.95).resize_size == 235
    assert TRANSFORM.crop_pct == 0.875
    for image_size in (32, 224, 288):
        for resize_size in range(image_size, 2 * image_size):
            transform = EvalTransform.from_crop_pct(
                image_size, image_size / resize_size
            )
            assert transform.resize_size == resize_size
    for crop_pct in (0, -1, 1.01, "1", None, float("nan")):
        with pytest.raises(ValueError, match=r"`crop_pct` must be in \(0, 1\]"):
            EvalTransform.from_crop_pct(224, crop_pct)


# ---- preprocess_input


def test_pixels_for_a_model_that_normalises_them_itself():
    transform = EvalTransform.from_crop_pct(8, 0.5, mean=None, std=None)
    assert not transform.normalizes
    assert TRANSFORM.normalizes
    config = json.loads(json.dumps(transform.to_config()))
    assert (config["mean"], config["std"]) == (None, None)
    assert EvalTransform.from_config(config) == transform
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")
    pixels = transform.pixels(image)
    for same in (
        transform(image),
        transform.normalize(pixels),
        transform.normalize_in_graph(pixels).numpy(),
    ):
        assert same.dtype == "float32"
        np.testing.assert_array_equal(same, pixels)
    others = [(None, (1, 1, 1)), ((0, 0, 0), None)]
    for mean, std in others:
        with pytest.raises(ValueError, match="must both be None, or neither"):
            EvalTransform.from_crop_pct(8, mean=mean, std=std)
    assert [
        t.normalization
        for t in (
            transform,
            TRANSFORM,
            EvalTransform.from_crop_pct(8, mean=(0, 0, 0), std=(1, 1, 1)),
        )
    ] == ["none", "imagenet", "mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0)"]


def test_preprocessing_is_that_of_keras_applications():
    image = NOISE.astype("float32")
    expected = keras.applications.imagenet_utils.preprocess_input(
        image.copy(), mode="torch"
    )
    found = transforms.preprocess_input(image)
    assert isinstance(found, np.ndarray)
    assert found.dtype == "float32"
    # Values up to 2.7, a handful of float32 roundings each.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(image, NOISE)
    np.testing.assert_allclose(found, TRANSFORM.normalize(NOISE), atol=2e-6)
    found = transforms.preprocess_input(tf.constant(NOISE))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    first = transforms.preprocess_input(
        NOISE.transpose(2, 0, 1).tolist(), data_format="channels_first"
    )
    np.testing.assert_allclose(first.transpose(1, 2, 0), expected, atol=2e-6)


def test_bad_preprocessing_arguments():
    with pytest.raises(ValueError, match="`x` must have three channels"):
        transforms.preprocess_input(NOISE[..., :1])
    with pytest.raises(ValueError, match="`data_format` must be None"):
        transforms.preprocess_input(NOISE, data_format="NHWC")


# ---- files


JPEG_OPTIONS = [
    {"quality": 75},
    {"quality": 95, "subsampling": 0},
    {"progressive": True},
]


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        *((mode, "JPEG", o) for mode in ("RGB", "L") for o in JPEG_OPTIONS),
        *((mode, "PNG", {}) for mode in ("RGB", "L", "RGBA", "P")),
        *((mode, "BMP", {}) for mode in ("RGB", "L", "P")),
        *((m, "WEBP", {}) for m in ("RGB", "L", "RGBA")),
        *((m, "WEBP", {"lossless": True}) for m in ("RGB", "RGBA")),
    ],
)
def test_both_decoders_agree(mode, kind, options):
    picture = Image.fromarray(PHOTO[:101, :75]).convert(mode)
    if mode == "RGBA":  # opaque, files would have no alpha
        picture.putalpha(Image.fromarray(PHOTO[200:301, :75, 0]))
    file = io.BytesIO()
    picture.save(file, kind, **options)
    expected = np.asarray(Image.open(file).convert("RGB"))
    np.testing.assert_array_equal(
        transforms.read_image(file.getvalue()), expected
    )
    for decode in (transforms.decode, tf.function(transforms.decode)):
        found = decode(tf.constant(file.getvalue()))
        assert found.dtype == tf.uint8
        np.testing.assert_array_equal(found, expected)


def test_a_gif_is_its_first_frame():
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    expected = np.full((4, 5, 3), [255, 0, 0])
    for decode in (transforms.read_image, transforms.decode):
        np.testing.assert_array_equal(decode(file.getvalue()), expected)


def test_an_animated_webp_is_its_first_frame_or_refused():
    """TensorFlow decodes those with alpha only, and Pillow all."""

    def animated(mode, alpha, **options):
        frames = [Image.fromarray(x).convert(mode) for x in (NOISE, NOISE // 2)]
        if alpha:
            frames[0].putalpha(alpha)
        file = io.BytesIO()
        options |= {"append_images": frames[1:], "duration": 100}
        frames[0].save(file, "WEBP", save_all=True, **options)
        return file.getvalue()

    encoded = animated("RGBA", 100, lossless=True, exact=True)
    np.testing.assert_array_equal(transforms.read_image(encoded), NOISE)
    np.testing.assert_array_equal(transforms.decode(encoded), NOISE)
    encoded = animated("RGB", None)
    assert transforms.read_image(encoded).shape == NOISE.shape
    with pytest.raises(tf.errors.InvalidArgumentError, match="Animation"):
        transforms.decode(encoded)


def test_16_bits_a_pixel():
    ramp = np.arange(0, 65536, 64, dtype="uint16").reshape(32, 32)
    expected = (ramp >> 8)[..., None].repeat(3, -1)
    encoded = encode(ramp, "PNG")
    np.testing.assert_array_equal(transforms.read_image(encoded), expected)
    np.testing.assert_array_equal(transforms.decode(encoded), expected)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "x.png").write_text("hello")
    for name in ("x.png", "none.png"):
        with pytest.raises(ValueError, match=f"must be an image file.*{name}"):
            transforms.read_image(tmp_path / name)
    whole = encode(kind="PNG")
    damaged = whole.replace(b"IDAT", b"IxAT").replace(b"IEND", b"IxND")
    for content in (b"", b"hello", damaged, whole[:2000], encode()[:2000]):
        for source in (content, io.BytesIO(content)):
            with pytest.raises(
                ValueError, match="must be an image file; the image: [^<>]+$"
            ):
                transforms.read_image(source)
    for source in (None, 3, PHOTO):
        with pytest.raises(ValueError, match="`source` must be a path"):
            transforms.read_image(source)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0half"])
def test_what_no_graph_decodes(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        transforms.decode(tf.constant(content))
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
    data = tf.data.Dataset.from_tensor_slices(files).map(transforms.decode)
    assert data.element_spec.shape.as_list() == [None, None, 3]
    for file, pixels, found in zip(files, expected, data, strict=True):
        np.testing.assert_array_equal(found, pixels)
        np.testing.assert_array_equal(transforms.read_image(file), pixels)


@pytest.mark.integration
def test_upright_in_a_served_model(tmp_path):
    """Batches of files of any orientation, through a SavedModel."""

    class Server(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, files):
            return tf.map_fn(
                lambda file: TRANSFORM.pixels_in_graph(transforms.decode(file)),
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


def test_windows_decoded_from_a_jpeg():
    """`decode_and_crop_jpeg` with the window is the upright image's crop.

    Blocks of 8 pixels without chroma subsampling decode on their own.
    """
    image = PHOTO[:48, :64]
    for orientation in range(1, 9):
        content = Image.Exif()
        content[0x0112] = orientation
        encoded = encode(image, exif=content, quality=95, subsampling=0)
        whole = transforms.decode(encoded)
        found = exif.exif_orientation(encoded)
        window = exif.stored_window(
            (8, 16, 24, 8), tf.io.extract_jpeg_shape(encoded), found
        )
        part = tf.io.decode_and_crop_jpeg(
            encoded, window, channels=3, dct_method=transforms.JPEG_METHOD
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
        transforms.read_image(encoded), transforms.decode(encoded)
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
        (jpeg(b"\xff\xe1\0\0" + six), 1),  # no length is below 2
        (jpeg(b"\xff\xe1\0\1" + six), 1),
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
        assert transforms.read_image(file).shape == shape


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
