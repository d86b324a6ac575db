"""TFLite, the file for phones and small boards: static, builtin, labelled."""

import numbers
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnext import private
from keras_resnext.classifier import Classifier
from keras_resnext.export import flatbuffer
from keras_resnext.export.graph import IMAGE
from keras_resnext.export.metadata import image_classifier_metadata
from keras_resnext.export.quantization import QUANTIZATIONS
from keras_resnext.export.quantization import layer_errors
from keras_resnext.export.quantization import quantize_tflite
from keras_resnext.export.saved_model import write_saved_model
from keras_resnext.export.session import Session
from keras_resnext.export.session import staged_artifact
from keras_resnext.export.verify import Artifact
from keras_resnext.export.verify import ExportError
from keras_resnext.export.verify import Limits
from keras_resnext.export.verify import check_limits
from keras_resnext.export.verify import require_runtime
from keras_resnext.export.verify import verify
from keras_resnext.extras import first_line
from keras_resnext.inspection import puts_out_probabilities
from keras_resnext.layers import use_conv_implementation
from keras_resnext.transforms import EvalTransform

INPUT_DTYPES = ("float32", "uint8")
_FLATBUFFER_BYTES = 2**31  # offsets are signed
_TRACED_IMAGES = 4  # for the errors of layers


def to_tflite(
    model: keras.Model | Classifier | Session,
    path: str | os.PathLike[str],
    *,
    quantize: str | None = None,
    calibration: np.ndarray | None = None,
    exclude: int | Sequence[str] = 0,
    input_dtype: str | None = None,
    preprocessing: str | keras.Layer | None = "auto",
    labels: Sequence[str] | None = None,
    transform: EvalTransform | None = None,
    images: np.ndarray | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Export a model to a TFLite file: batch 1, builtin operators.

    The signature `serving_default` maps `image`, `(1, height, width,
    channels)`, to `probabilities`, float32 `(1, classes)`; to `logits`,
    `scores` or `features` if the model ends in those; to several outputs, and
    those of a dict, by their own names. The file has TFLite metadata, with
    which MediaPipe Tasks opens it. It is a zip archive too, as TFLite attaches
    files, with `labels.txt` and `transform.json` as far as they are known.

    | `quantize` | size | computes in |
    |---|---|---|
    | `None` | 1 | float32 |
    | `"float16"` | 1/2 | float32, or float16 on a GPU |
    | `"dynamic"` | 1/4 | convolutions in int8, ranges taken at each call |
    | `"int8"` | 1/4 | int8 with ranges from `calibration`; softmax in float32 |

    Args:
        model: A `keras.Model` with one image input of fixed size, a
            `Classifier`, or a `Session` that shares work between files and
            has preprocessing, labels, transform and images already.
        path: File to write.
        quantize: One of the table. Defaults to `None`.
        calibration: With int8, images whose activations set the ranges, like
            `images`; some tens, and other ones than those to compare on. A
            model of `quantization_aware` has learned its ranges and takes
            none. Defaults to `None`.
        exclude: Layers to leave in float32: their names, or how many of those
            with the largest error of their own, see `layer_errors` of the
            result. Defaults to 0.
        input_dtype: `"float32"` or `"uint8"`. Defaults to uint8 with int8,
            and to float32 otherwise.
        preprocessing: What comes before the model, so that the file takes RGB
            pixels in [0, 255]. `"auto"` adds what it needs: nothing to a model
            that normalises pixels itself, otherwise the normalisation of the
            transform, or ImageNet's for networks of this package's builders.
            `"imagenet"`, or a Keras layer or model from pixels to the model's
            input, says it for others. `None` adds nothing; the input of a
            bare network is float32.
            Defaults to `"auto"`.
        labels: Class names, in the order of the outputs. Defaults to `None`,
            the labels of the `Classifier`.
        transform: How photographs become the file's input, stored for its
            readers. Defaults to `None`, the transform of the `Classifier`;
            for a plain model of square RGB images, the largest centred square.
        images: Inputs to compare on, `(images, height, width, channels)`, in
            [0, 255] unless `preprocessing` says otherwise. Defaults to eight
            drawn ones, see `drawings`.
        limits: How far the outputs may be from Keras'. Defaults to those of
            `keras_resnext.export.verify.LIMITS`.
        overwrite: Whether to replace an existing file. Defaults to `False`.

    Returns:
        An `Artifact`; with dynamic and int8 it has `layer_errors`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if LiteRT's outputs are not Keras', or an operator is not
            builtin; then `path` is as it was before.
        ModuleNotFoundError: if ai-edge-litert or, to quantise,
            ai-edge-quantizer (extra `export`) is missing.
        ValueError: if an argument is not as described, `"auto"` cannot know
            how the model's images are normalised, or they would be normalised
            twice.

    Example:

    >>> file = to_tflite(model, "model.tflite", labels=names)
    >>> small = to_tflite(model, "small.tflite", quantize="int8",
    ...                   calibration=photos)
    >>> small.size < file.size / 2
    True
    """
    require_runtime("tflite", quantize)
    session = Session.of(model, preprocessing, labels, transform, images)
    calibration = session.check_quantization(
        quantize, calibration, QUANTIZATIONS
    )
    _check_exclude(exclude, quantize, session)
    if not session.per_channel:
        raise ValueError(
            "`model` must have weights rounded by channel, as TensorFlow's "
            f"converter does it; {session.model.name} was trained with "
            "`per_channel` false, which ONNX takes."
        )
    input_dtype = _check_input_dtype(session, input_dtype, quantize)
    limits = check_limits(limits, quantize)
    with staged_artifact(path, "tflite", overwrite=overwrite) as new:
        session.check_size(_FLATBUFFER_BYTES, "TFLite")
        content, errors = _content(
            session, quantize, calibration, exclude, input_dtype
        )
        new.write_bytes(_add_metadata(content, session))
        check_operators(new)
        # Appended, so that positions in the archive are the file's.
        with zipfile.ZipFile(new, "a") as archive:
            for name, text in session.attachments.items():
                archive.writestr(name, text)
        return verify(session, new, path, "tflite", quantize, limits, errors)


def _check_exclude(exclude, quantize, session):
    counts = type(exclude) is not bool and isinstance(exclude, numbers.Integral)
    names = isinstance(exclude, Sequence) and not isinstance(exclude, str)
    if counts and exclude < 0:
        raise ValueError(f"`exclude` must be 0 or more; got {exclude}.")
    if not counts and not (
        names and all(isinstance(name, str) for name in exclude)
    ):
        raise ValueError(
            "`exclude` must be a number of layers or a list of their names; "
            f"got {exclude!r}."
        )
    if exclude and quantize not in ("dynamic", "int8"):
        raise ValueError(
            "`exclude` needs `quantize` dynamic or int8; got "
            f"{exclude!r} with {quantize!r}."
        )
    if exclude and session.quantization_aware:
        raise ValueError(
            "`exclude` must be 0 for a model of `quantization_aware`, which "
            f"rounds in all layers; got {exclude!r}."
        )


def _check_input_dtype(session, input_dtype, quantize):
    """The input's data type, or the usual one for `None`."""
    bare = not session.takes_pixels
    if input_dtype is None:
        return "uint8" if quantize == "int8" and not bare else "float32"
    if input_dtype not in INPUT_DTYPES or (bare and input_dtype == "uint8"):
        raise ValueError(
            "`input_dtype` must be float32, or uint8 with `preprocessing`; "
            f"got {input_dtype!r}."
        )
    return input_dtype


def _content(session, quantize, calibration, exclude, input_dtype):
    """The file without metadata, and the errors of its layers."""
    if session.quantization_aware:
        content = session.once(convert, input_dtype)
        plain = session.unrounded.once(convert, "float32")
        samples = session.images[:_TRACED_IMAGES]
        return content, layer_errors(plain, content, samples)
    if quantize is None:
        return session.once(convert, input_dtype), []
    # A quantised input is made from a float one.
    quantized_input = quantize == "int8" and input_dtype == "uint8"
    content, errors = _quantize(
        session.once(convert, "float32" if quantized_input else input_dtype),
        quantize,
        calibration,
        exclude,
        session.images[:_TRACED_IMAGES],
    )
    return _take_pixels(content) if quantized_input else content, errors


def convert(session: Session, dtype: str) -> bytes:
    """The content of an unquantised file, for images of `dtype`."""
    # Whatever this machine can differentiate: CONV_2D has groups.
    with (
        tempfile.TemporaryDirectory() as folder,
        use_conv_implementation("native"),
    ):
        saved = Path(folder) / "saved_model"
        write_saved_model(session.graph, saved, batch=1, dtype=dtype)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(saved), signature_keys=["serving_default"]
        )
        if session.quantization_aware:  # with the ranges in the graph
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        private.use_buffer_offset(converter)  # `flatbuffer.parse` reads both
        try:
            return converter.convert()
        except Exception as error:  # the converter's own class, a plain one
            raise ExportError(
                "`model` must have operations that TFLite has; "
                f"{first_line(error)}"
            ) from error


def _quantize(content, quantize, calibration, exclude, samples):
    """The quantised content, and the errors of its layers."""
    (graph,) = flatbuffer.parse(content).subgraphs
    if not any(graph.inputs[0] in op.inputs for op in graph.operators):
        raise ExportError(
            "`model` must look at its images; nothing in the file reads them."
        )

    def quantized(names):
        result = quantize_tflite(content, quantize, calibration, names)
        if quantize == "float16":
            return result, []
        return result, layer_errors(content, result, samples)

    if not isinstance(exclude, numbers.Integral):
        return quantized(exclude)
    result, errors = quantized(())
    if not exclude:
        return result, errors
    worst = sorted(errors, key=lambda error: error.own)[-exclude:]
    return quantized([error.name for error in worst])


def _add_metadata(content, session):
    """The content with TFLite metadata."""
    from ai_edge_litert import schema_py_generated as schema

    parsed = flatbuffer.parse(content)
    data = image_classifier_metadata(
        name=session.model.name,
        description=session.input_description,
        shape=session.shape,
        pixels=session.takes_pixels,
        input_name=IMAGE,
        output_names=session.output_names,
        probabilities=puts_out_probabilities(session.model),
        has_labels=session.labels is not None,
    )
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, "uint8")
    entry = schema.MetadataT()
    entry.name, entry.buffer = "TFLITE_METADATA", len(parsed.buffers)
    parsed.buffers.append(buffer)
    parsed.metadata = [*(parsed.metadata or ()), entry]
    return flatbuffer.pack(parsed, len(content) + len(data))


def _take_pixels(content):
    """Let the first operator turn unsigned pixels into signed ones.

    The quantiser writes it for floats, with a scale from the calibration
    images. Pixels are whole numbers from 0 to 255: nothing is rounded.
    """
    from ai_edge_litert import schema_py_generated as schema

    parsed = flatbuffer.parse(content)
    (graph,) = parsed.subgraphs
    (index,) = graph.inputs
    readers = [op for op in graph.operators if index in op.inputs]
    names = [flatbuffer.operator_name(parsed, reader) for reader in readers]
    if names != ["QUANTIZE"]:
        raise ExportError(
            "`input_dtype` must be float32 for a model whose first layer stays "
            "in float32."
        )
    for tensor, kind, zero in (
        (graph.tensors[index], schema.TensorType.UINT8, 0),
        (graph.tensors[readers[0].outputs[0]], schema.TensorType.INT8, -128),
    ):
        tensor.type = kind
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.float32([1])
        tensor.quantization.zeroPoint = np.int64([zero])
    return flatbuffer.pack(parsed, len(content))


def check_operators(path: str | os.PathLike[str]) -> None:
    """Refuse a file that a plain TFLite runtime cannot run.

    Args:
        path: The file.

    Raises:
        ExportError: if it has Flex operators or reads variables.
    """
    bad = {
        name
        for name in flatbuffer.operators(path)
        if name.startswith("Flex") or name == "VAR_HANDLE"
    }
    if bad:
        raise ExportError(
            "A TFLite file must have builtin operators only; the converter "
            f"wrote {', '.join(sorted(bad))}."
        )
