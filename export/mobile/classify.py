"""Classify image files with an exported .tflite file.

It needs ai-edge-litert, numpy and Pillow, and nothing else:

    python classify.py photo.jpg --model model.tflite
"""

import argparse
import json
import os
import statistics
import sys
import time
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from PIL import ImageOps

# Longer side by shorter from which only the middle is resized, not the whole,
# which would have 100 times the pixels of a square, or 100,000 times.
LONG = 100


def main():
    """Print the most probable classes of each image; an error is one line."""
    arguments = parse_arguments()
    try:
        if arguments.top < 1:
            raise ValueError(f"`--top` must be 1 or more; got {arguments.top}.")
        if arguments.threads < 1:
            raise ValueError(
                f"`--threads` must be 1 or more; got {arguments.threads}."
            )
        classify, size = open_model(arguments.model, arguments.threads)
        labels = read_labels(arguments.model)
        transform = read_transform(arguments.model)
        pictures = [
            read_image(path, size, **transform) for path in arguments.images
        ]
        for path, pixels in zip(arguments.images, pictures, strict=True):
            print(path)
            print(table(classify(pixels), labels, arguments.top))
        if arguments.time:
            times = [seconds(classify, pictures[0]) for _ in range(55)][5:]
            print(
                f"{1000 * statistics.median(times):.1f} ms an image, median of "
                f"{len(times)}, {arguments.threads} threads"
            )
    except ValueError as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="+", help="image files, such as JPEG")
    parser.add_argument("--model", required=True, help="a .tflite file")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="all, by default"
    )
    parser.add_argument(
        "--time", action="store_true", help="time the first image too"
    )
    return parser.parse_args()


def seconds(classify, pixels):
    """How long one image takes."""
    started = time.perf_counter()
    classify(pixels)
    return time.perf_counter() - started


def open_model(path, threads):
    """Open a .tflite file that `keras-resnext export` wrote, quantised or not.

    Args:
        path: The file.
        threads: Threads that LiteRT may use (its XNNPACK kernels).

    Returns:
        A function from pixels, float32 `(height, width, 3)` of RGB in
        [0, 255], to probabilities, float32 `(classes,)`, and the `(height,
        width)` that it expects, in pixels.

    Raises:
        ValueError: if there is no such file or it is of another kind.
    """
    if not os.path.isfile(path):
        raise ValueError(
            f"`--model` must be a .tflite file; got {path}, which is no file."
        )
    try:
        interpreter = Interpreter(path, num_threads=threads)
        serve = interpreter.get_signature_runner("serving_default")
        image = serve.get_input_details()["image"]
        shape, dtype = tuple(image["shape"].tolist()), image["dtype"]
        serve.get_output_details()["probabilities"]
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            "`--model` must be a .tflite file with a signature from `image` "
            f"to `probabilities`; got {path}: {error}"
        ) from error

    def classify(pixels):
        # Plain pixels, whole numbers, whether as floats or as bytes.
        return serve(image=pixels[None].astype(dtype))["probabilities"][0]

    return classify, shape[1:3]


def read_labels(path):
    """The class names inside a .tflite file, which is a zip archive too.

    Args:
        path: The file.

    Returns:
        A list of names in the order of the outputs; `None` if it has none.
    """
    text = read_member(path, "labels.txt")
    return None if text is None else text.splitlines()


def read_transform(path):
    """How the file's network was evaluated: arguments of `read_image`.

    Args:
        path: The .tflite file.

    Returns:
        A dict with `crop_pct` and `interpolation`, if the file says so.
    """
    text = read_member(path, "transform.json")
    if text is None:
        return {}
    transform = json.loads(text)
    return {
        "crop_pct": transform["image_size"] / transform["resize_size"],
        "interpolation": transform["interpolation"],
    }


def read_member(path, name):
    """The text of a member of a zip archive, or `None`."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        if name not in archive.namelist():
            return None
        return archive.read(name).decode()


def read_image(path, size, crop_pct=1.0, interpolation="bilinear"):
    """Read an image file as the network's input.

    Args:
        path: A file that Pillow reads, such as JPEG or PNG.
        size: `(height, width)` of the result, in pixels.
        crop_pct: See `resize_and_crop`.
        interpolation: See `resize_and_crop`.

    Returns:
        float32 array `(height, width, 3)` of RGB in [0, 255].

    Raises:
        ValueError: if it is not such a file.
    """
    try:
        with Image.open(path) as image:
            # Cameras store their orientation beside the pixels.
            image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"`images` must be image files; got {path}: {error}"
        ) from error
    return resize_and_crop(image, size, crop_pct, interpolation)


def resize_and_crop(image, size, crop_pct=1.0, interpolation="bilinear"):
    """Resize an image and crop its centre, as in evaluation.

    Args:
        image: A `PIL.Image.Image` in mode RGB.
        size: `(height, width)` of the result, in pixels.
        crop_pct: Share of the resized image's shorter side that the crop has;
            of a `size` that is not square, the side that fits tightest.
        interpolation: `"bilinear"` or `"bicubic"`, both antialiased.

    Returns:
        float32 array `(height, width, 3)` of whole numbers in [0, 255].
    """
    height, width = (int(side / crop_pct + 1e-6) for side in size)
    if image.width * height <= image.height * width:
        resized = (width, int(width * image.height / image.width))
    else:
        resized = (int(height * image.width / image.height), height)
    height, width = size
    left = round((resized[0] - width) / 2)
    top = round((resized[1] - height) / 2)
    box = left, top, left + width, top + height
    resampling = Image.Resampling[interpolation.upper()]
    if max(resized) > LONG * min(resized):
        x, y = image.width / resized[0], image.height / resized[1]
        box = box[0] * x, box[1] * y, box[2] * x, box[3] * y
        image = image.resize((width, height), resampling, box)
    else:
        image = image.resize(resized, resampling).crop(box)
    return np.asarray(image, "float32")


def table(probabilities, labels, top):
    """The most probable classes, one a line, in aligned columns.

    Args:
        probabilities: Array `(classes,)`.
        labels: Names of the classes, or `None` for their indices.
        top: How many to name.

    Returns:
        Text, best class first.
    """
    best = np.argsort(-probabilities)[:top]
    names = [labels[i] if labels else str(i) for i in best]
    width = max(map(len, names))
    return "\n".join(
        f"  {name:{width}}  {probabilities[i]:.4f}"
        for name, i in zip(names, best, strict=True)
    )


if __name__ == "__main__":
    main()
