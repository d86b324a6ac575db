"""ONNX: for ONNX Runtime on servers, desktops and in browsers."""

import gc
import json
import os
from collections.abc import Sequence

import keras
import numpy as np

import keras_resnext
from keras_resnext import private
from keras_resnext.classifier import Classifier
from keras_resnext.export.graph import IMAGE
from keras_resnext.export.qdq import calibrate
from keras_resnext.export.qdq import drop_unused
from keras_resnext.export.qdq import quantize_weights
from keras_resnext.export.session import Session
from keras_resnext.export.session import staged_artifact
from keras_resnext.export.verify import Artifact
from keras_resnext.export.verify import ExportError
from keras_resnext.export.verify import Limits
from keras_resnext.export.verify import check_limits
from keras_resnext.export.verify import require_runtime
from keras_resnext.export.verify import verify
from keras_resnext.extras import first_line
from keras_resnext.layers import use_conv_implementation
from keras_resnext.quiet import quiet
from keras_resnext.transforms import EvalTransform

DATA_FORMATS = ("NHWC", "NCHW")
QUANTIZATIONS = (None, "int8")
# Those of tf2onnx that change something in these graphs, once each.
PASSES = (
    "optimize_transpose",
    "fold_constants",
    "global_pool_optimizer",
    "remove_identity",
    "remove_back_to_back",
)
_PROTOBUF_BYTES = 2**31  # a message cannot be larger


def to_onnx(
    model: keras.Model | Classifier | Session,
    path: str | os.PathLike[str],
    *,
    opset: int = 17,
    data_format: str = "NHWC",
    quantize: str | None = None,
    calibration: np.ndarray | None = None,
    preprocessing: str | keras.Layer | None = "auto",
    labels: Sequence[str] | None = None,
    transform: EvalTransform | None = None,
    images: np.ndarray | None = None,
    limits: Limits | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Export a model to an ONNX file, for any batch size.

    The file maps `image`, float32 `(batch, height, width, channels)`, to
    `probabilities`; to `logits`, `scores` or `features` if the model ends in
    those; to several outputs, and those of a dict, by their own names. Batch
    norms are folded, and each convolution is one `Conv`. Its metadata have
    `labels` (a JSON list) and `transform` (a JSON object) as far as they are
    known, `input`, `data_format` and `source`.

    Args:
        model: A `keras.Model` with one image input of fixed size, a
            `Classifier`, or a `Session` that shares work between files and
            has preprocessing, labels, transform and images already.
        path: File to write.
        opset: ONNX operator set, from 13 to 18. Defaults to 17, the newest
            in which tf2onnx writes GlobalAveragePool.
        data_format: `"NHWC"`, or `"NCHW"` for images `(batch, channels, height,
            width)`. Defaults to `"NHWC"`.
        quantize: `"int8"` for weights in signed and activations in unsigned
            eight bits (QDQ), except for the softmax. Defaults to `None`,
            float32.
        calibration: With int8, images whose activations set the ranges, like
            `images`; some tens, and other ones than those to compare on. A
            model of `quantization_aware` has learned its ranges and takes
            none. Defaults to `None`.
        preprocessing: What comes before the model, so that the file takes RGB
            pixels in [0, 255]. `"auto"` adds what it needs: nothing to a model
            that normalises pixels itself, otherwise the normalisation of the
            transform, or ImageNet's for networks of this package's builders.
            `"imagenet"`, or a Keras layer or model from pixels to the model's
            input, says it for others. `None` adds nothing.
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
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if ONNX Runtime's outputs are not Keras', or a layer
            cannot be converted; then `path` is as it was before.
        ModuleNotFoundError: if onnxruntime (extra `export`) is missing.
        ValueError: if an argument is not as described, `"auto"` cannot know
            how the model's images are normalised, or they would be normalised
            twice.

    Example:

    >>> to_onnx(model, "model.onnx").agreement.top1_agreement
    1.0
    """
    require_runtime("onnx")
    session = Session.of(model, preprocessing, labels, transform, images)
    if type(opset) is not int or opset not in range(13, 19):
        raise ValueError(f"`opset` must be from 13 to 18; got {opset!r}.")
    check_data_format(data_format)
    calibration = session.check_quantization(
        quantize, calibration, QUANTIZATIONS
    )
    limits = check_limits(limits, quantize)
    with staged_artifact(path, "onnx", overwrite=overwrite) as new:
        session.check_size(_PROTOBUF_BYTES, "ONNX")
        new.write_bytes(session.once(convert, opset, data_format))
        if quantize and not session.quantization_aware:
            calibrate(new, calibration, data_format)
            _set_properties(new, _properties(session, data_format))
        return verify(session, new, path, "onnx", quantize, limits)


def check_data_format(data_format: str) -> None:
    """Refuse an unknown order of dimensions."""
    if data_format not in DATA_FORMATS:
        raise ValueError(
            f"`data_format` must be NHWC or NCHW; got {data_format!r}."
        )


def convert(session: Session, opset: int, data_format: str) -> bytes:
    """The content of the file before `calibrate`."""
    import onnx

    proto = _optimized(_converted(session.graph, opset, data_format))
    _fold_padding(proto)
    if session.quantization_aware:
        quantize_weights(proto, per_channel=session.per_channel)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    proto.graph.name = session.model.name
    onnx.helper.set_model_props(proto, _properties(session, data_format))
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"`model` must have operations that ONNX has; {first_line(error)}"
        ) from error
    return proto.SerializeToString()


def _properties(session, data_format):
    """The file's metadata."""
    version = keras_resnext.__version__
    properties = {
        "source": f"{session.model.name}, keras_resnext {version}",
        "data_format": data_format,
        "input": session.input_description,
    }
    if session.labels:
        properties["labels"] = json.dumps(session.labels)
    if session.transform:
        properties["transform"] = json.dumps(session.transform.to_config())
    return properties


def _converted(graph, opset, data_format):
    """The graph as one of tf2onnx, not yet optimised."""
    import tensorflow as tf
    from tf2onnx import tfonnx

    # Conv has groups, whatever this machine can differentiate.
    with use_conv_implementation("native"):
        definition, image, outputs = graph.frozen(batch=None)
    gc.collect()  # graphs refer to themselves, and hold all weights
    with quiet("tf2onnx", "tensorflow"), tf.Graph().as_default() as tf_graph:
        tf.import_graph_def(definition, name="")
        del definition
        try:
            return tfonnx.process_tf_graph(
                tf_graph,
                opset=opset,
                input_names=[image],
                output_names=list(outputs.values()),
                inputs_as_nchw=[image] if data_format == "NCHW" else None,
                tensors_to_rename={image: IMAGE}
                | {tensor: name for name, tensor in outputs.items()},
            )
        except (ValueError, RuntimeError, KeyError) as error:
            raise ExportError(
                f"`model` must have operations that ONNX has; {error}"
            ) from error


def _optimized(converted):
    """tf2onnx's graph as an `onnx.ModelProto`, after `PASSES`."""
    passes = private.onnx_passes()
    gc.collect()  # TensorFlow's graph
    with quiet("tf2onnx"):
        for name in PASSES:
            converted = passes[name]().optimize(converted, 0) or converted
        converted.topological_sort(converted.get_nodes())
        proto = converted.make_model("")
    del converted
    gc.collect()
    return proto


def _fold_padding(proto):
    """Move padding into convolutions and pools, where they can do it."""
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
            source = _unrounded(makers, pad.input[0])
            pads = _folded_pads(pad, readers[0], source, constants)
            if pads:
                _set_pads(readers[0], pads)
                readers[0].input[0] = pad.input[0]
                proto.graph.node.remove(pad)
    drop_unused(proto.graph)


def _unrounded(makers, name):
    """The node that makes a tensor, before it is rounded."""
    node = makers.get(name)
    while node and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        node = makers.get(node.input[0])
    return node


def _folded_pads(pad, reader, source, constants):
    """The `pads` of `reader` once it does the work of `pad`, or `None`.

    Args:
        pad: The node.
        reader: The only node that reads it.
        source: The node that `pad` reads; `None` for the graph's input.
        constants: Arrays by name.
    """
    # A pool pads with minus infinity. After a ReLU nothing is below zero, and
    # each window contains a part of the image.
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


def _set_properties(path, properties):
    """Write metadata, which the quantiser drops, and check the file."""
    import onnx

    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, properties)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
