"""TFLite: for phones, and for LiteRT anywhere."""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.export import artifact
from keras_resnext.export.saved_model import check_labels
from keras_resnext.export.saved_model import write_saved_model
from keras_resnext.extras import require
from keras_resnext.layers import use_convolution_path


def to_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    preprocessing: str | keras.Layer | None = "imagenet",
    labels: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    tolerance: float = artifact.TOLERANCE,
    overwrite: bool = False,
) -> artifact.Artifact:
    """Export a model to a TFLite file, float32, batch 1, builtin operators.

    The file maps `image`, float32 `(1, height, width, channels)`, to
    `probabilities` (`outputs` if the model does not end in softmax). `labels`
    are attached as `labels.txt`, in the way TFLite attaches files: the file
    is a zip archive too.

    Args:
        model: A `keras.Model` with one image input of fixed size.
        path: File to write.
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
        ExportError: if LiteRT's outputs are not Keras', or an operator is not
            builtin; then there is no file, or the one that was there before.
        ModuleNotFoundError: if ai-edge-litert (extra `export`) is missing.
        ValueError: if an argument is not one of the above.

    Example:

    >>> to_tflite(model, "resnext50.tflite", labels=names).size
    """
    require("ai_edge_litert", extra="export", purpose="The TFLite check")
    labels = check_labels(labels, model)

    def write(new):
        # Whatever this machine can differentiate: CONV_2D has groups.
        with (
            tempfile.TemporaryDirectory() as folder,
            use_convolution_path("native"),
        ):
            saved = Path(folder) / "saved_model"
            write_saved_model(
                artifact.serving_function(model, preprocessing, batch=1),
                [model, preprocessing],
                saved,
            )
            converter = tf.lite.TFLiteConverter.from_saved_model(
                str(saved), signature_keys=["serving_default"]
            )
            new.write_bytes(converter.convert())
        check_operators(new)
        if labels:
            with zipfile.ZipFile(new, "a") as archive:
                archive.writestr("labels.txt", "\n".join(labels) + "\n")

    return artifact.export(
        model,
        path,
        format="tflite",
        write=write,
        open_file=_open,
        preprocessing=preprocessing,
        images=images,
        tolerance=tolerance,
        overwrite=overwrite,
    )


def operators(path: str | os.PathLike) -> list[str]:
    """Names of a TFLite file's operators, with repetition.

    Args:
        path: The file.

    Returns:
        A list of names such as `"CONV_2D"`; a custom operator's own name.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if not name.startswith("_")
    }
    model = schema.ModelT.InitFromObj(
        schema.Model.GetRootAs(bytearray(Path(path).read_bytes()))
    )
    kinds = [
        code.customCode.decode()
        if code.customCode
        # Codes above 127 do not fit the old field, which then says 127.
        else names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for code in model.operatorCodes
    ]
    return [
        kinds[operator.opcodeIndex]
        for graph in model.subgraphs
        for operator in graph.operators
    ]


def check_operators(path: str | os.PathLike) -> None:
    """Refuse a file that a plain TFLite runtime cannot run.

    Args:
        path: The file.

    Raises:
        ExportError: if it has Flex operators, or variables left outside.
    """
    bad = {
        name
        for name in operators(path)
        if name.startswith("Flex") or name == "VAR_HANDLE"
    }
    if bad:
        raise artifact.ExportError(
            "A TFLite file must have builtin operators only; the converter "
            f"wrote {', '.join(sorted(bad))}."
        )


def _open(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=os.cpu_count())
    serve = interpreter.get_signature_runner("serving_default")

    def run(images):
        return np.concatenate(
            [next(iter(serve(image=image[None]).values())) for image in images]
        )

    return run
