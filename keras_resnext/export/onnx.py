"""ONNX: for ONNX Runtime on servers, desktops and in browsers."""

import json
import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_resnext.export import artifact
from keras_resnext.export.saved_model import check_labels
from keras_resnext.extras import require
from keras_resnext.layers import use_convolution_path


def to_onnx(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    opset: int = 17,
    preprocessing: str | keras.Layer | None = "imagenet",
    labels: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    tolerance: float = artifact.TOLERANCE,
    overwrite: bool = False,
) -> artifact.Artifact:
    """Export a model to an ONNX file, float32, with any batch.

    The file maps `image`, float32 `(batch, height, width, channels)`, to
    `probabilities` (`outputs` if the model does not end in softmax). `labels`
    are kept in its metadata, as a JSON list under `labels`.

    Args:
        model: A `keras.Model` with one image input of fixed size.
        path: File to write.
        opset: ONNX operator set, from 13 to 18. Defaults to 17, the newest
            that keeps GlobalAveragePool through tf2onnx.
        preprocessing: `"imagenet"` if the file shall take RGB pixels in
            [0, 255], a Keras layer or model from such pixels to the network's
            input, or `None` for the bare network. Defaults to `"imagenet"`.
        labels: Class names, in the order of the outputs. Defaults to `None`.
        images: Inputs to compare on, `(images, height, width, channels)`, in
            [0, 255] unless `preprocessing` says otherwise. Defaults to eight
            images of noise.
        tolerance: Largest difference of logits that passes, relative to the
            largest logit or to 1, whichever is more. Defaults to 1e-4.
        overwrite: Whether to replace what is there. Defaults to `False`.

    Returns:
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if ONNX Runtime's outputs are not Keras'; then there is
            no file, or the one that was there before.
        ModuleNotFoundError: if onnxruntime (extra `export`) is missing.
        ValueError: if an argument is not one of the above.

    Example:

    >>> to_onnx(model, "resnext50.onnx").top1_agreement
    1.0
    """
    require("onnxruntime", extra="export", purpose="The ONNX check")
    if type(opset) is not int or opset not in range(13, 19):
        raise ValueError(f"`opset` must be from 13 to 18; got {opset!r}.")
    labels = check_labels(labels, model)

    def write(new):
        import onnx
        import tf2onnx

        serve = artifact.serving_function(model, preprocessing, batch=None)
        # Whatever this machine can differentiate: Conv has groups.
        with (
            use_convolution_path("native"),
            artifact.quiet("tf2onnx", "tensorflow"),
        ):
            proto, _ = tf2onnx.convert.from_function(
                serve, input_signature=serve.input_signature, opset=opset
            )
        proto.graph.name = model.name
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        if labels:
            onnx.helper.set_model_props(proto, {"labels": json.dumps(labels)})
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, new)

    return artifact.export(
        model,
        path,
        format="onnx",
        write=write,
        open_file=_open,
        preprocessing=preprocessing,
        images=images,
        tolerance=tolerance,
        overwrite=overwrite,
    )


def _open(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )

    return artifact.in_batches(
        lambda batch: session.run(None, {"image": batch})[0]
    )
