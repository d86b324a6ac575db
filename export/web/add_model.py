"""Put a classifier into this page: its ONNX file, and what the page must know.

It needs keras_resnext with its extra `export`; the page itself does not:

    python add_model.py
    python add_model.py runs/demo
    python add_model.py resnext50 --weights imagenet --samples photos/*.jpg

Without arguments it is the demo, a small network for Fashion-MNIST.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import sys
import urllib.parse

import numpy as np

FOLDER = pathlib.Path(__file__).absolute().parent
DEMO = "resnext29_8x4d_f64", "fashion_mnist"

# Whole numbers, so that JavaScript draws the same bytes: steps of the golden
# pictures' waves across and down, as in golden.js.
STEPS = ((1, 2), (7, 3))

# As a share of the largest logit: ten times what the exporter allows ONNX
# Runtime on this machine, because WebGPU allows less exact exponentials and
# quotients. A wrong normalisation or kernel is off by tenths and more.
TOLERANCE = 1e-3

# Pictures between two self-checks.
CHECK_EVERY = 10

_SMALLEST = 1e-30  # far above what float32 rounds to zero, as in golden.js


def main():
    """Write the model's folder; an error is one line."""
    arguments = parse_arguments()
    try:
        source, weights, samples = chosen(arguments)
        from keras_resnext.cli.console import start_tensorflow
        from keras_resnext.quiet import limit_tensorflow_log

        limit_tensorflow_log("3")
        start_tensorflow()
        from keras_resnext import Classifier

        classifier = Classifier.load(source, weights)
        manifest = write_model(
            classifier,
            FOLDER / "model",
            # Of a file, not where it is on this machine.
            name=" ".join(
                (classifier.model.name, pathlib.Path(weights or "").name)
            ).strip(),
            samples=samples,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"Error: {' '.join(str(error).split())}")
    size = manifest["transform"]["image_size"]
    print(
        f"Wrote {FOLDER / 'model'}: {manifest['name']}, "
        f"{manifest['bytes'] / 1e6:.2f} MB, {size}x{size} pixels, "
        f"{manifest['output']['classes']} classes."
    )


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "source",
        nargs="?",
        help="folder of a run, .keras file, model's name or hf://user/name; "
        "by default the demo",
    )
    parser.add_argument(
        "--weights", help="with a model's name: a tag, or a file of weights"
    )
    parser.add_argument(
        "--samples",
        nargs="+",
        type=pathlib.Path,
        default=[],
        help="pictures to try on the page, called as their files are",
    )
    return parser.parse_args()


def chosen(arguments):
    """Source, weights and samples: the demo's, if nothing is said.

    Args:
        arguments: See `parse_arguments`.

    Returns:
        A name or path, a tag or `None`, and a list of paths.

    Raises:
        ValueError: if there are weights, but no model.

    Example:

    >>> chosen(parse_arguments())[0]
    'resnext29_8x4d_f64'
    """
    source, weights = arguments.source, arguments.weights
    if source is None and weights is not None:
        raise ValueError(
            f"`--weights` must come with a model's name; got {weights!r} alone."
        )
    if source is None:
        source, weights = DEMO
    bundled = sorted((FOLDER / "samples").glob("*.png"))
    is_demo = (source, weights) == DEMO and not arguments.samples
    return source, weights, bundled if is_demo else arguments.samples


def write_model(classifier, folder, *, name, samples=()):
    """Write what the page loads, in place of what is there.

    The ONNX file is verified in ONNX Runtime on the golden pictures and some
    others before any of it is put in place.

    Args:
        classifier: A `keras_resnext.Classifier`.
        folder: The folder to write.
        name: What the page calls the model.
        samples: Paths of pictures to try. Defaults to none.

    Returns:
        The content of `model.json`.

    Raises:
        ValueError: if the model is no classifier of square pictures, or a
            sample is no picture.
        keras_resnext.export.ExportError: if the file does not compute what
            Keras computes.

    Example:

    >>> write_model(classifier, pathlib.Path("model"), name="mine")["bytes"]
    1441792
    """
    from keras_resnext.export import Session
    from keras_resnext.export import to_onnx
    from keras_resnext.export.drawings import drawn_images
    from keras_resnext.files import staged
    from keras_resnext.inspection import check_classifier
    from keras_resnext.inspection import image_size

    check_classifier(classifier.model)
    size = image_size(classifier.model)
    golden = [golden_picture(number, size) for number in range(len(STEPS))]
    images = np.concatenate([golden, drawn_images((size, size, 3))])
    session = Session(classifier, images=images)
    transform = session.transform
    with staged(folder, overwrite=True) as new:
        new.mkdir()
        shown = copy_samples(samples, new / "samples", transform)
        artifact = to_onnx(session, new / "model.onnx")
        scores = classifier.model.predict(
            transform.normalize(golden), verbose=0
        )
        manifest = {
            "format": 1,
            "name": name,
            **described(new / "model.onnx"),
            "input": {
                "name": "image",
                "shape": [1, size, size, 3],
                "description": artifact.input,
            },
            "output": {"name": "probabilities", "classes": scores.shape[1]},
            "labels": classifier.labels,
            "transform": transform.to_config(),
            "check": {**golden_check(scores), "every": CHECK_EVERY},
            "samples": shown,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (new / "model.json").write_text(f"{text}\n", encoding="utf-8")
    return manifest


def golden_picture(number, size):
    """A picture that golden.js draws too, byte by byte: triangle waves.

    Args:
        number: Which, from 0 on.
        size: Its side in pixels.

    Returns:
        uint8 array `(size, size, 3)` of RGB.

    Example:

    >>> golden_picture(0, 28)[0, 1]
    array([ 18, 188, 153], dtype=uint8)
    """
    across, down = STEPS[number]
    y, x = np.mgrid[:size, :size]
    phase = (x * across + y * down) * 512 // size
    value = (phase[..., None] + 170 * np.arange(3)) % 512
    return np.minimum(value, 511 - value).astype("uint8")


def golden_check(probabilities):
    """Keras' answers for the golden pictures, as the page compares them.

    Args:
        probabilities: Array `(pictures, classes)`.

    Returns:
        A dict with `logits`, shifted to mean zero for each picture, because
        softmax hides how wrong an unlikely class is; and `tolerance`, how far
        each may be off.

    Example:

    >>> golden_check(np.array([[0.5, 0.5]]))
    {'logits': [[0.0, 0.0]], 'tolerance': 0.001}
    """
    logits = np.log(np.maximum(np.asarray(probabilities, "float64"), _SMALLEST))
    logits -= logits.mean(axis=1, keepdims=True)
    return {
        "logits": logits.round(6).tolist(),
        "tolerance": TOLERANCE * max(1.0, float(np.abs(logits).max())),
    }


def described(path):
    """A file's name, size and hash, as `model.json` has them.

    Args:
        path: The file.

    Returns:
        A dict with `file`, `bytes` and `sha256`.

    Example:

    >>> described(pathlib.Path("model/model.onnx"))["file"]
    'model.onnx'
    """
    content = path.read_bytes()
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def copy_samples(paths, folder, transform):
    """Copy pictures to try into the model's folder.

    Args:
        paths: The pictures.
        folder: Where they go.
        transform: The `EvalTransform`, which reads each once.

    Returns:
        A list of dicts, with `file` from the page's folder on, and `text`.

    Raises:
        ValueError: if one is no picture, or two have the same name.

    Example:

    >>> copy_samples([pathlib.Path("ankle-boot.png")], folder, transform)
    [{'file': 'model/samples/ankle-boot.png', 'text': 'Ankle boot'}]
    """
    names = [path.name for path in paths]
    if len({*names}) < len(names):
        raise ValueError(
            f"`--samples` must have different names; got {', '.join(names)}."
        )
    folder.mkdir()
    for path in paths:
        transform.pixels(path)
        shutil.copyfile(path, folder / path.name)
    return [
        {
            "file": f"model/samples/{urllib.parse.quote(path.name)}",
            "text": title(path.stem),
        }
        for path in paths
    ]


def title(stem):
    """What a file's name says, beginning with a capital.

    Args:
        stem: The name without its suffix.

    Example:

    >>> title("ankle-boot")
    'Ankle boot'
    """
    text = stem.replace("-", " ").replace("_", " ")
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    main()
