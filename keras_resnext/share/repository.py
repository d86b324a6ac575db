"""The files of a repository: weights, configurations, exports and card."""

import json
import pathlib
import shutil
import tempfile
import typing
import zipfile

import keras
import numpy as np

from keras_resnext.classifier import CONFIG_FILE
from keras_resnext.classifier import Classifier
from keras_resnext.inspection import check_classifier
from keras_resnext.inspection import image_size
from keras_resnext.inspection import input_kind
from keras_resnext.names import CLASSIFIER
from keras_resnext.names import DEFAULT_FILTERS
from keras_resnext.names import STEM
from keras_resnext.names import block_name
from keras_resnext.names import block_numbers
from keras_resnext.names import block_of
from keras_resnext.names import join_shapes
from keras_resnext.names import parse_network
from keras_resnext.names import whole_name
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
EXPORT_SUFFIXES = (".tflite", ".onnx")


def check_shareable(classifier: Classifier) -> None:
    """Refuse a classifier that a repository cannot hold.

    Args:
        classifier: The `Classifier`.

    Raises:
        ValueError: if its model is not a network of the builders that ends in
            class probabilities, or normalises pixels itself.
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


def timm_model(classifier: Classifier) -> TimmModel | None:
    """What timm has to know of a classifier; `None` if timm has no such net.

    Args:
        classifier: A `Classifier` that passed `check_shareable`.

    Returns:
        A `TimmModel`, or `None`: timm's ResNets have four stages, the
        ImageNet stem, 256 filters and shortcuts.
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


def write_models(classifier: Classifier, folder: pathlib.Path) -> None:
    """Write the model for plain Keras, timm and this package, and check it.

    Args:
        classifier: A `Classifier` that passed `check_shareable`.
        folder: An existing folder.

    Raises:
        RuntimeError: if a written file does not hold the classifier's model.
    """
    stock = to_stock_layers(classifier.model)
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
    if theirs := timm_model(classifier):
        config |= to_timm_config(theirs)
    path.write_text(json.dumps(config, indent=1) + "\n")
    export_weights(classifier.model, folder / WEIGHTS_FILE)
    _check_models(classifier, folder)


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
    numbers: dict


def read_exports(
    folder: pathlib.Path | None, classifier: Classifier
) -> tuple[dict, list[ExportedFile]]:
    """What `export_files` wrote to a folder, and its report.

    Args:
        folder: The folder, or `None` for no files.
        classifier: What the files must be of.

    Returns:
        The content of `report.json`, and the verified `.tflite` and `.onnx`
        files.

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
            ExportedFile(folder / pathlib.Path(entry["path"]).name, entry)
            for entry in report["files"]
            if entry["passed"]
        ]
        about = report["model"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "`exports` must be a folder that export_files or `keras-resnext "
            f"export` wrote; {folder} has no report to read ({error})."
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
    if about != classifier.model.name:
        raise ValueError(
            f"`exports` must be of {classifier.model.name}; the files in "
            f"{folder} are of {about}."
        )
    _check_exports(files, classifier)
    return report, files


def _check_exports(files, classifier):
    """Run the files again: an older model's must not go with this one."""
    # Here, because it needs TensorFlow, and sharing a model does not.
    from keras_resnext.export import Limits
    from keras_resnext.export import Session
    from keras_resnext.export.runtimes import OPENERS
    from keras_resnext.export.runtimes import in_batches
    from keras_resnext.export.verify import compare
    from keras_resnext.export.verify import require_runtime

    session = Session(classifier)
    for file in files:
        format = file.numbers["format"]
        require_runtime(format)
        outputs = in_batches(OPENERS[format](file.path))(session.images)
        agreement = compare(session.model, session.reference, outputs)
        known = {k: v for k, v in file.numbers["limits"].items() if v}
        if violations := Limits(**known).violations(agreement):
            raise ValueError(
                f"`exports` must be files of the classifier; {file.path} is "
                f"not: {'; '.join(violations)}."
            )


def copy_exports(
    files: list[ExportedFile], source: pathlib.Path, folder: pathlib.Path
) -> None:
    """Copy exported files, their report and its picture.

    Args:
        files: The files.
        source: The folder they are in.
        folder: Where they go.
    """
    if not files:
        return
    for file in files:
        shutil.copyfile(file.path, folder / file.path.name)
    for name in (REPORT_FILE, REPORT_PICTURE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
