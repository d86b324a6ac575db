"""Exported files in their runtimes, with their labels and transform."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from keras_resnext import EvalTransform


@dataclasses.dataclass(frozen=True)
class Network:
    """An exported file, ready to run.

    Args:
        run: A function from pixels of RGB in [0, 255], `(pictures, height,
            width, channels)` of any dtype, to probabilities, float32
            `(pictures, classes)`.
        shape: `(height, width, channels)` of a picture.
        labels: Names of the classes, or their indices where the file has no
            names.
        transform: How image files become pictures of this shape; `None` if
            the file does not say.
    """

    run: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, int, int]
    labels: tuple[str, ...]
    transform: EvalTransform | None


def open_model(path, threads):
    """Open what `keras-resnext export` wrote.

    Args:
        path: An ONNX file or the folder of a SavedModel.
        threads: Threads that one operation may use.

    Returns:
        A `Network`.

    Raises:
        ModuleNotFoundError: if it is a SavedModel and TensorFlow is missing.
        ValueError: if it is neither, or does not map pixels to probabilities.

    Example:

    >>> open_model("runs/serving/model.onnx", threads=2).shape
    (28, 28, 3)
    """
    path = pathlib.Path(path)
    if (path / "saved_model.pb").is_file():
        return _open_saved_model(path, threads)
    if path.is_file():
        return _open_onnx(path, threads)
    raise ValueError(
        "`--model` must be an ONNX file or the folder of a SavedModel; got "
        f"{path}, which is neither."
    )


def _open_onnx(path, threads):
    # ONNX Runtime reads this on import; otherwise it reports to Microsoft.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait would take the cores that decode the next pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of many types, which have no common name
        raise ValueError(
            f"`--model` must be an ONNX file; got {path}: {error}"
        ) from error
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    properties = session.get_modelmeta().custom_metadata_map
    _check_signature(path, inputs, outputs)
    _check_pixels(path, properties.get("input", ""))
    channels_first = properties.get("data_format") == "NCHW"
    shape = inputs["image"][1:]
    if channels_first:
        shape = [*shape[1:], shape[0]]

    def run(pixels):
        pixels = np.asarray(pixels, "float32")
        if channels_first:
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return session.run(["probabilities"], {"image": pixels})[0]

    return _network(
        run,
        shape,
        outputs["probabilities"][-1],
        json.loads(properties.get("labels", "null")),
        json.loads(properties.get("transform", "null")),
    )


def _open_saved_model(path, threads):
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A SavedModel needs TensorFlow; install it with "
            "pip install tensorflow."
        ) from error
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures.get("serving_default")
    if serve is None:
        raise ValueError(
            f"`--model` must have a signature `serving_default`; got {path}."
        )
    inputs = serve.structured_input_signature[1]
    outputs = serve.structured_outputs
    _check_signature(path, inputs, outputs)
    # Only files that take pixels have this signature.
    pixels = "RGB pixels" if "image_uint8" in loaded.signatures else ""
    _check_pixels(path, pixels)

    def run(pixels):
        image = tf.constant(np.asarray(pixels, "float32"))
        return serve(image=image)["probabilities"].numpy()

    run.model = loaded  # or TensorFlow frees its variables
    labels, transform = (
        path / "assets/labels.txt",
        path / "assets/transform.json",
    )
    return _network(
        run,
        inputs["image"].shape[1:],
        outputs["probabilities"].shape[-1],
        labels.read_text("utf-8").splitlines() if labels.exists() else None,
        json.loads(transform.read_text()) if transform.exists() else None,
    )


def _check_signature(path, inputs, outputs):
    """Refuse what does not map images to probabilities."""
    if set(inputs) != {"image"} or "probabilities" not in outputs:
        raise ValueError(
            "`--model` must map `image` to `probabilities`; "
            f"{path} maps {', '.join(inputs)} to {', '.join(outputs)}."
        )


def _check_pixels(path, description):
    """Refuse what takes something else than plain pixels."""
    if not description.startswith("RGB pixels"):
        raise ValueError(
            "`--model` must take RGB pixels in [0, 255]; "
            f"{path} takes {description or 'something else'}."
        )


def _network(run, shape, classes, labels, transform):
    """A `Network` of what a file says."""
    return Network(
        run,
        tuple(int(side) for side in shape),
        tuple(labels or map(str, range(classes))),
        transform and EvalTransform.from_config(transform),
    )
