"""ONNX: for ONNX Runtime on servers, desktops and in browsers."""

import gc
import json
import os
from collections.abc import Sequence

import keras
import numpy as np

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.export import artifact
from keras_resnext.export.graph import IMAGE
from keras_resnext.export.graph import ExportGraph
from keras_resnext.extras import require
from keras_resnext.layers import use_conv_implementation

DATA_FORMATS = ("NHWC", "NCHW")
QUANTIZATIONS = (None, "int8")
_PROTOBUF_BYTES = 2**31  # a message cannot be larger
# Those of tf2onnx that find something in these graphs, once each. Its own loop
# runs all of them until none finds anything, copies the graph for each, and
# leaves old weights in memory: 9 GB instead of 2.
_PASSES = (
    "optimize_transpose",
    "fold_constants",
    "global_pool_optimizer",
    "remove_identity",
    "remove_back_to_back",
)
# What eight bits are enough for. Softmax is not among them.
_QUANTIZED_OPERATORS = [
    *("Conv", "MatMul", "Gemm", "Add", "Relu"),
    *("MaxPool", "GlobalAveragePool", "Concat"),
]


def to_onnx(
    model: keras.Model | Classifier,
    path: str | os.PathLike,
    *,
    opset: int = 17,
    data_format: str = "NHWC",
    quantize: str | None = None,
    calibration: np.ndarray | None = None,
    preprocessing: str | keras.Layer | None = "imagenet",
    labels: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    limits: artifact.Limits | None = None,
    overwrite: bool = False,
) -> artifact.Artifact:
    """Export a model to an ONNX file, with any batch.

    The file maps `image`, float32 `(batch, height, width, channels)`, to
    `probabilities` (`logits`, `scores` or `features` of a model that ends in
    those; several, and those of a dict, by their own names).
    Batch norms are folded, and each convolution is one `Conv`. Its metadata
    have `labels` (a JSON list), `input`, `data_format` and `source`.

    Args:
        model: A `keras.Model` with one image input of fixed size.
        path: File to write.
        opset: ONNX operator set, from 13 to 18. Defaults to 17, the newest
            that keeps GlobalAveragePool through tf2onnx.
        data_format: `"NHWC"`, or `"NCHW"` for images `(batch, channels, height,
            width)`. Defaults to `"NHWC"`.
        quantize: `"int8"` for weights in signed and activations in unsigned
            eight bits (QDQ), but for the softmax. Defaults to `None`,
            float32.
        calibration: With int8, images whose activations set the ranges, like
            `images`; some tens, and not those to compare on. Defaults to
            `None`.
        preprocessing: `"imagenet"` if the file shall take RGB pixels in
            [0, 255], a Keras layer or model from such pixels to the network's
            input, or `None` for the bare network. Defaults to `"imagenet"`.
        labels: Class names, in the order of the outputs. Defaults to `None`.
        images: Inputs to compare on, `(images, height, width, channels)`, in
            [0, 255] unless `preprocessing` says otherwise. Defaults to eight
            images of noise.
        limits: What the comparison is held against. Defaults to those of
            `keras_resnext.export.artifact.LIMITS`.
        overwrite: Whether to replace what is there. Defaults to `False`.

    Returns:
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if ONNX Runtime's outputs are not Keras', or a layer
            cannot be converted; then there is no file, or the one that was
            there before.
        ModuleNotFoundError: if onnxruntime (extra `export`) is missing.
        ValueError: if an argument is not one of the above.

    Example:

    >>> to_onnx(model, "resnext50.onnx").top1_agreement
    1.0
    """
    classifier = as_classifier(model, labels)
    model, labels = classifier.model, classifier.labels
    require("onnxruntime", extra="export", purpose="The ONNX check")
    artifact.check_place(path, "onnx", overwrite=overwrite)
    if type(opset) is not int or opset not in range(13, 19):
        raise ValueError(f"`opset` must be from 13 to 18; got {opset!r}.")
    check_data_format(data_format)
    calibration = artifact.check_quantization(
        model, quantize, calibration, QUANTIZATIONS
    )
    graph = ExportGraph(model, preprocessing)
    artifact.check_bytes(graph, model, _PROTOBUF_BYTES, "ONNX")
    properties = {
        "source": f"{model.name}, keras_resnext {keras_resnext.__version__}",
        "data_format": data_format,
        "input": artifact.describe_input(preprocessing),
    }
    if labels := artifact.check_labels(labels, model):
        properties["labels"] = json.dumps(labels)

    def write(new):
        import onnx

        proto = _convert(graph, opset, data_format)
        _fold_padding(proto)
        proto.graph.name = model.name
        onnx.helper.set_model_props(proto, properties)
        try:
            onnx.checker.check_model(proto, full_check=True)
        except onnx.checker.ValidationError as error:
            raise artifact.ExportError(
                "`model` must have operations that ONNX has; "
                f"{artifact.first_line(error)}"
            ) from error
        if quantize is None:
            onnx.save(proto, new)
        else:
            _quantize(proto, calibration, data_format, new)

    return artifact.export(
        model,
        path,
        format="onnx",
        write=write,
        preprocessing=preprocessing,
        images=images,
        quantize=quantize,
        limits=limits,
        overwrite=overwrite,
    )


def check_data_format(data_format: str) -> None:
    """Refuse what is no data_format of images.

    Raises:
        ValueError: if it is none of `DATA_FORMATS`.
    """
    if data_format not in DATA_FORMATS:
        raise ValueError(
            f"`data_format` must be NHWC or NCHW; got {data_format!r}."
        )


def _convert(graph, opset, data_format):
    """The graph as an `onnx.ModelProto`."""
    import tensorflow as tf
    from tf2onnx import optimizer
    from tf2onnx import tfonnx

    passes = optimizer._get_optimizers()
    # Whatever this machine can differentiate: Conv has groups.
    with use_conv_implementation("native"):
        definition, image, outputs = graph.frozen(batch=None)
    gc.collect()  # graphs refer to themselves, and hold all weights
    with artifact.quiet("tf2onnx", "tensorflow"), tf.Graph().as_default() as g:
        tf.import_graph_def(definition, name="")
        del definition
        try:
            converted = tfonnx.process_tf_graph(
                g,
                opset=opset,
                input_names=[image],
                output_names=list(outputs.values()),
                inputs_as_nchw=[image] if data_format == "NCHW" else None,
                tensors_to_rename={image: IMAGE}
                | {tensor: name for name, tensor in outputs.items()},
            )
        except (ValueError, RuntimeError, KeyError) as error:
            raise artifact.ExportError(
                f"`model` must have operations that ONNX has; {error}"
            ) from error
    del g
    gc.collect()
    with artifact.quiet("tf2onnx"):
        for name in _PASSES:
            converted = passes[name]().optimize(converted, 0) or converted
        converted.topological_sort(converted.get_nodes())
        proto = converted.make_model(graph.names[0])
    del converted
    gc.collect()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto


def _fold_padding(proto):
    """Let convolutions and pools pad by themselves, as far as they can."""
    import onnx

    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
    }
    users, makers = {}, {}
    for node in proto.graph.node:
        makers.update(dict.fromkeys(node.output, node))
        for name in node.input:
            users.setdefault(name, []).append(node)
    for output in proto.graph.output:
        users.setdefault(output.name, []).append(None)
    for pad in [n for n in proto.graph.node if n.op_type == "Pad"]:
        readers = users.get(pad.output[0], [])
        if len(readers) == 1 and readers[0] is not None:
            source = makers.get(pad.input[0])
            pads = _folded_pads(pad, readers[0], source, constants)
            if pads:
                _set_pads(readers[0], pads)
                readers[0].input[0] = pad.input[0]
                proto.graph.node.remove(pad)
    used = {name for node in proto.graph.node for name in node.input}
    for tensor in list(proto.graph.initializer):
        if tensor.name not in used:
            proto.graph.initializer.remove(tensor)


def _folded_pads(pad, reader, source, constants):
    """What `reader` would pad if it did what `pad` does; `None` if it cannot.

    Args:
        pad: The node.
        reader: The only one that reads it.
        source: What `pad` reads; `None` for the graph's input.
        constants: Arrays by name.
    """
    # A pool pads with what is below everything. Behind a ReLU nothing is
    # below zero, and each window has something of the image.
    pools = (
        reader.op_type == "MaxPool"
        and source is not None
        and source.op_type == "Relu"
    )
    if not pools and reader.op_type != "Conv":
        return None
    amounts = constants.get(pad.input[1], np.zeros(0)).tolist()
    value = constants.get(pad.input[2]) if len(pad.input) > 2 else None
    if len(amounts) != 8 or any(amounts[i] for i in (0, 1, 4, 5)):
        return None
    if value is not None and value.any():
        return None
    attributes = {a.name: a for a in reader.attribute}
    automatic = attributes.get("auto_pad")
    if automatic is not None and automatic.s not in (b"NOTSET", b"VALID"):
        return None
    before = attributes["pads"].ints if "pads" in attributes else [0] * 4
    more = [*amounts[2:4], *amounts[6:8]]
    pads = [a + b for a, b in zip(before, more, strict=True)]
    kernel = [*attributes["kernel_shape"].ints] * 2
    if pools and any(p >= k for p, k in zip(pads, kernel, strict=True)):
        return None
    return pads


def _set_pads(node, pads):
    import onnx

    for attribute in list(node.attribute):
        if attribute.name in ("pads", "auto_pad"):
            node.attribute.remove(attribute)
    node.attribute.append(onnx.helper.make_attribute("pads", pads))


def _quantize(proto, calibration, data_format, path):
    """Write the graph with quantised weights and activations."""
    import onnx
    from onnxruntime import quantization

    inputs = calibration
    if data_format == "NCHW":
        inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._images = iter(inputs)

        def get_next(self):
            image = next(self._images, None)
            return None if image is None else {IMAGE: image[None]}

    properties = {p.key: p.value for p in proto.metadata_props}
    with artifact.quiet("root"):
        quantization.quantize_static(
            proto,
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_QUANTIZED_OPERATORS,
            per_channel=True,
            # Signed activations are fused badly: twice the time.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # x86 without VNNI adds two products of unsigned and signed bytes
            # in 16 bits, and cuts off what is above 2**15. Weights of 7 bits
            # cannot get there, 2 * 255 * 64 < 2**15, so that a file verified
            # here computes the same elsewhere. Unsigned weights are as safe
            # and a quarter slower.
            reduce_range=True,
        )
    quantized = onnx.load(path)
    onnx.helper.set_model_props(quantized, properties)
    onnx.checker.check_model(quantized, full_check=True)
    onnx.save(quantized, path)
