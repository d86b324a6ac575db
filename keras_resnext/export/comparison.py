"""Eight bits after training and in training, beside floating point."""

import dataclasses
import pathlib
import tempfile

import keras
import numpy as np

from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.export.quantization import LayerError
from keras_resnext.export.session import Session
from keras_resnext.export.tflite import to_tflite
from keras_resnext.export.verify import Limits
from keras_resnext.export.verify import require_runtime
from keras_resnext.inspection import check_classifier
from keras_resnext.inspection import is_quantization_aware


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """A network's accuracy and size in one precision.

    Args:
        name: `"float32"`, `"dynamic"`, `"int8"` or `"QAT int8"`.
        accuracy: Share of the images that it classifies correctly.
        agreement: Share of the images with float32's top class.
        bytes: Size of its TFLite file; of float32, of its weights.
        layer_errors: See `Artifact`; none of float32.

    Example:

    >>> for rounding in compare_roundings(model, images, classes, photos):
    ...     print(rounding.name, rounding.agreement)
    float32 1.0
    dynamic ...
    int8 ...
    """

    name: str
    accuracy: float
    agreement: float
    bytes: int
    layer_errors: tuple[LayerError, ...] = ()


def compare_roundings(
    model: keras.Model | Classifier,
    images: np.ndarray,
    classes: np.ndarray,
    calibration: np.ndarray,
    *,
    trained: keras.Model | Classifier | None = None,
) -> list[Rounding]:
    """Run a classifier's TFLite files in eight bits on the same images.

    Dynamic range, int8 after training, and the file of a network of
    `quantization_aware`. No limit is enforced and no file is kept.

    Args:
        model: A `Classifier`, or a `keras.Model` as `to_tflite` takes it.
        images: Pixels `(images, height, width, channels)`.
        classes: Their classes, `(images,)`.
        calibration: Other images, whose activations set the ranges of int8.
        trained: The network after quantisation-aware training. Defaults to
            `None`.

    Returns:
        A `Rounding` each, float32 first.

    Raises:
        ModuleNotFoundError: if a module of the extra `export` is missing.
        ValueError: see `to_tflite`.

    Example:

    >>> rows = compare_roundings(model, images, classes, photos)
    >>> [row.name for row in rows]
    ['float32', 'dynamic', 'int8']
    >>> rows[2].accuracy
    """
    require_runtime("tflite", "int8")
    for argument, value, aware in (
        ("model", model, False),
        ("trained", trained, True),
    ):
        if value is not None:
            _check_kind(argument, as_classifier(value).model, aware)
    if np.shape(classes) != (len(images),):
        raise ValueError(
            f"`classes` must be the {len(images)} images' classes; got shape "
            f"{np.shape(classes)}."
        )
    plain = Session(model, images=images)
    files = [
        ("dynamic", plain, "dynamic", None),
        ("int8", plain, "int8", calibration),
    ]
    if trained is not None:
        session = Session(trained, images=images)
        files.append(("QAT int8", session, "int8", None))
    (scores,) = plain.reference.outputs.values()
    expected = scores.argmax(axis=-1)

    def row(name, scores, size, errors=()):
        predictions = scores.argmax(axis=-1)
        return Rounding(
            name=name,
            accuracy=float(np.mean(predictions == classes)),
            agreement=float(np.mean(predictions == expected)),
            bytes=size,
            layer_errors=tuple(errors),
        )

    rows = [row("float32", scores, plain.graph.bytes)]
    with tempfile.TemporaryDirectory() as folder:
        for name, session, quantize, ranges in files:
            file = to_tflite(
                session,
                pathlib.Path(folder, f"{len(rows)}.tflite"),
                quantize=quantize,
                calibration=ranges,
                limits=Limits(),
            )
            rows.append(row(name, file.scores, file.size, file.layer_errors))
    return rows


def _check_kind(argument, model, aware):
    """Refuse a plain network for a quantised one, and the reverse."""
    check_classifier(model)
    if is_quantization_aware(model) != aware:
        kind = "come" if aware else "not come"
        raise ValueError(
            f"`{argument}` must {kind} from `quantization_aware`; got "
            f"{model.name}."
        )
