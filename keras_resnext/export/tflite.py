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

from keras_resnext.export import artifact
from keras_resnext.export import flatbuffer
from keras_resnext.export.graph import IMAGE
from keras_resnext.export.graph import ExportGraph
from keras_resnext.export.metadata import LABELS_FILE
from keras_resnext.export.metadata import image_classifier_metadata
from keras_resnext.export.quantization import QUANTIZATIONS
from keras_resnext.export.quantization import layer_errors
from keras_resnext.export.quantization import quantize_tflite
from keras_resnext.export.saved_model import write_saved_model
from keras_resnext.extras import require
from keras_resnext.inspection import puts_out_probabilities
from keras_resnext.layers import use_conv_implementation

INPUT_DTYPES = ("float32", "uint8")
_FLATBUFFER_BYTES = 2**31  # offsets are signed
_TRACED_IMAGES = 4  # for the errors of layers


def to_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str | None = None,
    calibration: np.ndarray | None = None,
    exclude: int | Sequence[str] = 0,
    input_dtype: str | None = None,
    preprocessing: str | keras.Layer | None = "imagenet",
    labels: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    limits: artifact.Limits | None = None,
    overwrite: bool = False,
) -> artifact.Artifact:
    """Export a model to a TFLite file: batch 1, builtin operators.

    The signature `serving_default` maps `image`, `(1, height, width,
    channels)`, to `probabilities`, float32 `(1, classes)` (`logits`, `scores`
    or `features` of a model that ends in those; several, and those of a dict,
    by their own names). The file has TFLite metadata,
    with which MediaPipe Tasks opens it, and `labels` as `labels.txt`, in the
    way TFLite attaches files: it is a zip archive too.

    | `quantize` | size | computes in |
    |---|---|---|
    | `None` | 1 | float32 |
    | `"float16"` | 1/2 | float32, or float16 on a GPU |
    | `"dynamic"` | 1/4 | convolutions in int8, ranges found at each call |
    | `"int8"` | 1/4 | int8 with ranges from `calibration`; softmax in float32 |

    Args:
        model: A `keras.Model` with one image input of fixed size.
        path: File to write.
        quantize: One of the table. Defaults to `None`.
        calibration: With int8, images whose activations set the ranges, like
            `images`; some tens, and not those to compare on. Defaults to
            `None`.
        exclude: Layers that stay in float32: their names, or how many of
            those with the largest error of their own, see `layer_errors` of
            what is returned. Defaults to 0.
        input_dtype: `"float32"` or `"uint8"`. Defaults to uint8 with int8,
            else to float32.
        preprocessing: `"imagenet"` if the file shall take RGB pixels in
            [0, 255], a Keras layer or model from such pixels to the network's
            input, or `None` for the bare network, whose input is float32.
            Defaults to `"imagenet"`.
        labels: Class names, in the order of the outputs. Defaults to `None`.
        images: Inputs to compare on, `(images, height, width, channels)`, in
            [0, 255] unless `preprocessing` says otherwise. Defaults to eight
            images of noise.
        limits: What the comparison is held against. Defaults to those of
            `keras_resnext.export.artifact.LIMITS`.
        overwrite: Whether to replace what is there. Defaults to `False`.

    Returns:
        An `Artifact`; with dynamic and int8 it has `layer_errors`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if LiteRT's outputs are not Keras', or an operator is not
            builtin; then there is no file, or the one that was there before.
        ModuleNotFoundError: if ai-edge-litert or, to quantise,
            ai-edge-quantizer (extra `export`) is missing.
        ValueError: if an argument is not one of the above.

    Example:

    >>> to_tflite(model, "resnext50.tflite", labels=names).size
    >>> to_tflite(model, "small.tflite", quantize="int8", calibration=photos)
    """
    require("ai_edge_litert", extra="export", purpose="The TFLite check")
    if quantize:
        require("ai_edge_quantizer", extra="export", purpose="`quantize`")
    artifact.check_place(path, "tflite", overwrite=overwrite)
    calibration = artifact.check_quantization(
        model, quantize, calibration, QUANTIZATIONS
    )
    _check_exclude(exclude, quantize)
    bare = preprocessing is None
    if input_dtype is None:
        input_dtype = "uint8" if quantize == "int8" and not bare else "float32"
    if input_dtype not in INPUT_DTYPES or (bare and input_dtype == "uint8"):
        raise ValueError(
            "`input_dtype` must be float32, or uint8 with `preprocessing`; "
            f"got {input_dtype!r}."
        )
    graph = ExportGraph(model, preprocessing)
    artifact.check_bytes(graph, model, _FLATBUFFER_BYTES, "TFLite")
    labels = artifact.check_labels(labels, model)
    samples = artifact.noise(model) if images is None else images

    def write(new):
        # A quantised input is made of a float one.
        quantized_input = quantize == "int8" and input_dtype == "uint8"
        content = _convert(graph, "float32" if quantized_input else input_dtype)
        errors = []
        if quantize:
            content, errors = _quantize(
                content, quantize, calibration, exclude, samples
            )
        if quantized_input:
            content = _take_pixels(content)
        content = _add_metadata(content, model, graph, labels, preprocessing)
        new.write_bytes(content)
        check_operators(new)
        if labels:
            # Appended, so that positions in the archive are the file's.
            with zipfile.ZipFile(new, "a") as archive:
                archive.writestr(LABELS_FILE, "\n".join(labels) + "\n")
        return {"layer_errors": tuple(errors)}

    return artifact.export(
        model,
        path,
        format="tflite",
        write=write,
        preprocessing=preprocessing,
        images=images,
        quantize=quantize,
        limits=limits,
        overwrite=overwrite,
    )


def _check_exclude(exclude, quantize):
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


def _convert(graph, dtype):
    """The float32 file's content."""
    # Whatever this machine can differentiate: CONV_2D has groups.
    with (
        tempfile.TemporaryDirectory() as folder,
        use_conv_implementation("native"),
    ):
        saved = Path(folder) / "saved_model"
        write_saved_model(graph, saved, batch=1, dtype=dtype)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(saved), signature_keys=["serving_default"]
        )
        # Weights behind the FlatBuffer, where `parse` takes them from; or
        # TensorFlow takes a second to write all of it anew.
        converter._experimental_use_buffer_offset = True
        try:
            return converter.convert()
        except Exception as error:  # the converter's own class, a plain one
            raise artifact.ExportError(
                "`model` must have operations that TFLite has; "
                f"{artifact.first_line(error)}"
            ) from error


def _quantize(content, quantize, calibration, exclude, samples):
    """The quantised content, and the errors of its layers."""
    samples = np.asarray(samples, "float32")[:_TRACED_IMAGES]
    (graph,) = flatbuffer.parse(content).subgraphs
    if not any(graph.inputs[0] in op.inputs for op in graph.operators):
        raise artifact.ExportError(
            "`model` must look at its images; nothing in the file reads them."
        )

    def quantized(names):
        found = quantize_tflite(content, quantize, calibration, names)
        if quantize == "float16":
            return found, []
        return found, layer_errors(content, found, samples)

    if not isinstance(exclude, numbers.Integral):
        return quantized(exclude)
    found, errors = quantized(())
    if not exclude:
        return found, errors
    worst = sorted(errors, key=lambda error: error.own)[-exclude:]
    return quantized([error.name for error in worst])


def _add_metadata(content, model, graph, labels, preprocessing):
    from ai_edge_litert import schema_py_generated as schema

    parsed = flatbuffer.parse(content)
    data = image_classifier_metadata(
        name=model.name,
        description=artifact.describe_input(preprocessing),
        shape=graph.shape,
        pixels=preprocessing is not None,
        input_name=IMAGE,
        output_names=graph.names,
        probabilities=puts_out_probabilities(model),
        has_labels=labels is not None,
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

    The quantiser writes it for floats, with a scale from the images it saw;
    pixels are whole numbers from 0 to 255, so that nothing is rounded.
    """
    from ai_edge_litert import schema_py_generated as schema

    parsed = flatbuffer.parse(content)
    (graph,) = parsed.subgraphs
    (index,) = graph.inputs
    readers = [op for op in graph.operators if index in op.inputs]
    names = [flatbuffer.operator_name(parsed, reader) for reader in readers]
    if names != ["QUANTIZE"]:
        raise artifact.ExportError(
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


def check_operators(path: str | os.PathLike) -> None:
    """Refuse a file that a plain TFLite runtime cannot run.

    Args:
        path: The file.

    Raises:
        ExportError: if it has Flex operators, or variables left outside.
    """
    bad = {
        name
        for name in flatbuffer.operators(path)
        if name.startswith("Flex") or name == "VAR_HANDLE"
    }
    if bad:
        raise artifact.ExportError(
            "A TFLite file must have builtin operators only; the converter "
            f"wrote {', '.join(sorted(bad))}."
        )
