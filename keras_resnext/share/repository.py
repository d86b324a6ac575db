"""The files of a repository: weights, configuration and exports."""

import json
import os
import pathlib
import shutil
import tempfile
import typing
import zipfile
from typing import Any

import keras
import numpy as np

from keras_resnext.classifier import CONFIG_FILE
from keras_resnext.classifier import Classifier
from keras_resnext.extras import first_line
from keras_resnext.files import file_hash
from keras_resnext.inspection import check_classifier
from keras_resnext.inspection import image_size
from keras_resnext.inspection import input_kind
from keras_resnext.inspection import is_quantization_aware
from keras_resnext.names import CLASSIFIER
from keras_resnext.names import DEFAULT_FILTERS
from keras_resnext.names import STEM
from keras_resnext.names import block_name
from keras_resnext.names import block_numbers
from keras_resnext.names import block_of
from keras_resnext.names import join_shapes
from keras_resnext.names import parse_network
from keras_resnext.names import stage_of
from keras_resnext.names import whole_name
from keras_resnext.resnext import ResNeXt
from keras_resnext.rewrite import to_stock_layers
from keras_resnext.weights import convert
from keras_resnext.weights import export_weights
from keras_resnext.weights.hub import WEIGHTS_FILE
from keras_resnext.weights.timm_config import TimmModel
from keras_resnext.weights.timm_config import TimmNetwork
from keras_resnext.weights.timm_config import to_timm_config

CARD_FILE = "README.md"
# What Keras' own format has, and Keras looks for in a repository.
KERAS_FILES = ("metadata.json", "model.weights.h5")
REPORT_FILE, REPORT_PICTURE = "report.json", "report.png"
_OURS = {
    *(CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, REPORT_FILE, REPORT_PICTURE),
    *KERAS_FILES,
}
# Of a file, in the report that is published: no paths of this machine.
_NUMBERS = (
    *("format", "quantize", "bytes", "sha256", "limits", "accuracy"),
    "latency_ms",
    *("max_logit_difference", "mean_logit_difference", "relative_difference"),
    *("correlation", "centred_correlation", "top1_agreement", "peak_bytes"),
)
EXPORT_SUFFIXES = (".tflite", ".onnx")


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file at the top of a repository is one that we write."""
    name = str(path.name if isinstance(path, pathlib.Path) else path)
    return name in _OURS or ("/" not in name and name.endswith(EXPORT_SUFFIXES))


def check_shareable(classifier: Classifier) -> None:
    """Refuse a classifier that a repository cannot hold.

    Args:
        classifier: The `Classifier`.

    Raises:
        ValueError: if its model is not a network of the builders that ends in
            class probabilities, or normalises pixels itself; if its batch
            norms are folded, or a weight is not finite.
    """
    if not isinstance(classifier, Classifier):
        raise ValueError(
            f"`classifier` must be a Classifier; got {classifier!r}."
        )
    model = classifier.model
    check_classifier(model)
    image_size(model)  # a square, or the error says so
    layers = {layer.name for layer in model.layers}
    if input_kind(model) != "normalized" or not {STEM, CLASSIFIER} <= layers:
        raise ValueError(
            "`classifier` must be a network of this package's builders, with "
            "its top, whose transform normalises; push the network itself, "
            f"without the layers around it; got {model.name}."
        )
    if is_quantization_aware(model):
        raise ValueError(
            "`classifier` must be in floating point; push the run that "
            f"{model.name} was trained on from, and its int8 files elsewhere."
        )
    if "conv1_bn" not in layers:
        raise ValueError(
            "`classifier` must have its batch norms, not folded; "
            f"{model.name} has no conv1_bn."
        )
    for layer in model.layers:
        if layer.weights and not (
            stage_of(layer.name) or layer.name == CLASSIFIER
        ):
            raise ValueError(
                "`classifier` must have no weights but those of the builders' "
                f"layers; {layer.name} has some."
            )
        for array in layer.get_weights():
            if not np.isfinite(np.asarray(array, "float32")).all():
                raise ValueError(
                    "`classifier` must have finite weights; "
                    f"{layer.name} has NaN or infinity."
                )


def _timm_model(classifier):
    """What timm has to know of a classifier; `None` if timm has no such net.

    timm's ResNets have four stages, the ImageNet stem, 256 filters and
    shortcuts.
    """
    model = classifier.model
    layers = {
        whole_name(layer.name): layer for layer in model.layers if layer.weights
    }
    shapes = join_shapes(
        {
            layer.name: [tuple(w.shape) for w in layer.weights]
            for layer in model.layers
            if layer.weights
        }
    )
    network = parse_network(convert.infer_architecture(shapes))
    blocks = {block_numbers(name) for name in shapes if block_of(name)}
    stages = [stage for stage, _ in blocks]
    depths = tuple(stages.count(stage) for stage in sorted(set(stages)))
    if (
        network.filters != DEFAULT_FILTERS
        or len(depths) != 4
        or layers[STEM].kernel_size != (7, 7)
        or f"{block_name(2, 1)}_0_conv" not in layers  # no shortcuts
    ):
        return None
    stride = 4
    for stage in sorted(set(stages)):
        stride *= layers[f"{block_name(stage, 1)}_2_conv"].strides[0]
    return TimmModel(
        TimmNetwork(depths, network.cardinality, network.base_width, stride),
        model.output_shape[-1],
        classifier.labels,
        classifier.require_transform(),
    )


def _computes_the_same(theirs, classifier, weights):
    """Whether the network that timm builds is the classifier's.

    A layer without weights, such as another pooling, is not in its name.
    """
    size = theirs.transform.image_size
    shape = (size, size, 3)
    twin = ResNeXt(
        **theirs.network._asdict(),
        classes=theirs.classes,
        input_shape=shape,
        weights=weights,
    )
    images = np.random.default_rng(0).normal(size=(4, *shape))
    ours, other = (
        np.asarray(m.predict_on_batch(images.astype("float32")), "float32")
        for m in (classifier.model, twin)
    )
    # Rounding adds up to 1e-5 of the largest logit (tests/test_parity.py),
    # and to a few hundredths where layers compute with eight bits.
    exact = classifier.model.layers[1].compute_dtype == "float32"
    return np.abs(ours - other).max() <= (1e-3 if exact else 0.1)


def write_models(classifier: Classifier, folder: pathlib.Path) -> bool:
    """Write the model for plain Keras, timm and this package, and check it.

    Args:
        classifier: A `Classifier` that passed `check_shareable`.
        folder: An existing folder.

    Returns:
        Whether timm opens it.

    Raises:
        RuntimeError: if a written file does not hold the classifier's model.
    """
    stock = to_stock_layers(classifier.model)
    # Without optimizer and loss, which others may not have.
    stock = keras.Model(stock.inputs, stock.outputs, name=stock.name)
    with tempfile.TemporaryDirectory() as temporary:
        archive = pathlib.Path(temporary, "model.keras")
        stock.save(archive)
        with zipfile.ZipFile(archive) as files:
            for name in (CONFIG_FILE, *KERAS_FILES):
                files.extract(name, folder)
    path = folder / CONFIG_FILE
    # One file for three readers, each with keys of its own.
    config = json.loads(path.read_text())
    ours = keras.saving.serialize_keras_object(classifier.model)
    ours["compile_config"] = None  # an optimizer is no part of it
    config["keras_resnext"] = {"model": ours, **classifier.to_config()}
    export_weights(classifier.model, folder / WEIGHTS_FILE)
    theirs = _timm_model(classifier)
    if theirs and not _computes_the_same(
        theirs, classifier, folder / WEIGHTS_FILE
    ):
        theirs = None
    if theirs:
        config |= to_timm_config(theirs)
    path.write_text(json.dumps(config, indent=1) + "\n")
    _check_models(classifier, folder)
    return theirs is not None


def _check_models(classifier, folder):
    """Open what was written, in both ways, and compare."""
    opened = {
        "plain Keras": keras.saving.load_model(folder),
        "this package": Classifier.load(folder).model,
    }
    for reader, model in opened.items():
        for layer in filter(lambda x: x.weights, classifier.model.layers):
            pairs = zip(
                layer.get_weights(),
                model.get_layer(layer.name).get_weights(),
                strict=True,
            )
            if not all(np.array_equal(*pair) for pair in pairs):
                raise RuntimeError(
                    f"The repository must open in {reader} with the weights "
                    f"that were written; those of {layer.name} differ."
                )


class ExportedFile(typing.NamedTuple):
    """A file of `export_files` that goes into the repository.

    Args:
        path: Where it is.
        numbers: Its entry in `report.json`.
    """

    path: pathlib.Path
    numbers: dict[str, Any]


def read_exports(
    folder: str | os.PathLike[str] | None, classifier: Classifier
) -> tuple[dict[str, Any], list[ExportedFile]]:
    """What `export_files` wrote to a folder, and its report.

    Args:
        folder: The folder, or `None` for no files.
        classifier: What the files must be of.

    Returns:
        The report to publish, and the verified `.tflite` and `.onnx` files;
        both empty without a folder.

    Raises:
        ValueError: if the folder has no report or no such files, or they are
            of another model.
    """
    if folder is None:
        return {}, []
    folder = pathlib.Path(folder)
    try:
        report = json.loads((folder / REPORT_FILE).read_text())
        files = [
            ExportedFile(
                folder / pathlib.Path(entry["path"]).name,
                {name: entry[name] for name in _NUMBERS},
            )
            for entry in report["files"]
            if entry["passed"]
        ]
        public = {
            name: report[name]
            for name in ("model", "fingerprint", "input", "images")
        }
    except (
        *(OSError, KeyError, RecursionError),
        *(TypeError, ValueError),
    ) as error:
        raise ValueError(
            "`exports` must be a folder that export_files or `keras-resnext "
            f"export` wrote; {folder} has no report to read "
            f"({first_line(error)})."
        ) from error
    files = [
        file
        for file in files
        if file.path.suffix in EXPORT_SUFFIXES and file.path.is_file()
    ]
    if not files:
        raise ValueError(
            f"`exports` must have verified {' or '.join(EXPORT_SUFFIXES)} "
            f"files; {folder} has none."
        )
    _check_exports(public, files, classifier)
    public["files"] = [
        {"file": file.path.name, **file.numbers} for file in files
    ]
    return public, files


def _check_exports(report, files, classifier):
    """Refuse files of another model, or of this model before more training.

    What they compute was compared when their report was written.
    """
    # Here, because it needs TensorFlow, and sharing a model does not.
    from keras_resnext.export import Session

    if report["fingerprint"] != Session(classifier).fingerprint:
        raise ValueError(
            "`exports` must be of the classifier as it is, with its weights, "
            "preprocessing, class names and transform; those of "
            f"{report['model']} are not. Export it again, without options "
            "that change these."
        )
    for file in files:
        if file_hash(file.path) != file.numbers["sha256"]:
            raise ValueError(
                "Files in `exports` must be unchanged since export_files wrote "
                f"them; {file.path} has changed."
            )


def copy_exports(
    report: dict[str, Any],
    files: list[ExportedFile],
    folder: pathlib.Path,
) -> None:
    """Copy exported files and the picture of their report, and write it.

    Args:
        report: What `read_exports` returned, as `files`.
        files: The files.
        folder: Where they go.
    """
    if not files:
        return
    picture = files[0].path.with_name(REPORT_PICTURE)
    for path in (*(file.path for file in files), picture):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    text = json.dumps(report, indent=1) + "\n"
    (folder / REPORT_FILE).write_text(text)
