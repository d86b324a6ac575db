"""Every reader of files, with files that it reads and a second reader."""

import contextlib
import functools
import io
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import h5py
import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

import keras_resnext
from keras_resnext import images
from keras_resnext.classifier import Classifier
from keras_resnext.names import join_paths
from keras_resnext.share.repository import CONFIG_FILE
from keras_resnext.share.repository import read_exports
from keras_resnext.training import Recipe
from keras_resnext.training import Run
from keras_resnext.training.checkpoints import Checkpoints
from keras_resnext.training.fingerprint import Fingerprint
from keras_resnext.training.folders import MadeSplit
from keras_resnext.transforms import EvalTransform
from keras_resnext.weights import convert
from tests import hostile_weights
from tests.conftest import randomize
from tests.fuzz import changes
from tests.fuzz.changes import Parts

MAX_PIXELS = 1 << 18
_LARGEST_SEED = 1 << 20
_LABELS = [f"class {i}" for i in range(10)]


class Reader(NamedTuple):
    """A reader of files.

    Args:
        file: Name of the file in a folder.
        seeds: Makes contents that it reads, and some that it refuses.
        read: Reads the file.
        parts: See `changes.changed`. Defaults to `None`.
        check: Compares with a second reader, after the first has read the
            file; raises `AssertionError`. Defaults to `None`.
        beside: Makes the other files of the folder: a dict from names to
            contents. Defaults to none.
        loads: Whether it loads weights into `model`. Defaults to `False`.
        refusals: Types of errors that say no. Defaults to `ValueError`.
        needs: A module that must be installed. Defaults to `None`.
    """

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[pathlib.Path], Any]
    parts: Parts | None = None
    check: Callable[[pathlib.Path], None] | None = None
    beside: Callable[[], dict[str, bytes]] = dict
    loads: bool = False
    refusals: tuple[type[Exception], ...] = (ValueError,)
    needs: str | None = None

    @property
    def corpus(self) -> str:
        """Name of the folder of files that it, or its twin, failed on."""
        return self.file.replace("graph.", "picture.")


@functools.cache
def model():
    """The model that weights are loaded into: one block, 6,000 values."""
    keras.utils.set_random_seed(0)
    return randomize(
        keras_resnext.ResNeXt(
            (1,),
            *(2, 2),
            filters=16,
            stem="cifar",
            classes=10,
            input_shape=(8, 8, 3),
        )
    )


def restore():
    """Give `model` the weights that it had first."""
    model().set_weights(weights())


def assert_untouched():
    """Fail if `model` has other weights than it had first."""
    _assert_equal(model().get_weights(), weights())


@functools.cache
def weights():
    """The first weights of `model`."""
    return model().get_weights()


def _assert_equal(got, want):
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def _written(name, write):
    """What a function writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name)
        write(path)
        return path.read_bytes()


# --- weights ----------------------------------------------------------------


def _weight_seeds(ending, *writers):
    """What the package and others write, and the traps that are small."""

    def seeds():
        restore()
        found = [_written(f"w{ending}", write) for write in writers]
        for name, write in hostile_weights.TRAPS.items():
            is_h5 = name.endswith(".weights.h5")
            if not name.endswith(ending) or (ending == ".h5" and is_h5):
                continue
            if name.startswith(hostile_weights.COSTLY):
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = write(model(), folder)
                if path.is_file() and path.stat().st_size <= _LARGEST_SEED:
                    found.append(path.read_bytes())
        return found

    return seeds


def _load(path):
    keras_resnext.load_weights(model(), path)


def _save_torch(path, *, archive):
    import torch

    torch.save(
        hostile_weights.tensors(model()),
        path,
        _use_new_zipfile_serialization=archive,
    )


def _same_tensors(tensors):
    """Compare `model` with tensors by torch's names."""
    stored = {x.name: x.get_weights() for x in model().layers if x.weights}
    for name, array in convert.to_torch(join_paths(stored)).items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(
                array, tensors[name].astype(array.dtype), err_msg=name
            )


def _check_safetensors(path):
    from safetensors.torch import load_file  # NumPy has no bfloat16

    _same_tensors({k: x.float().numpy() for k, x in load_file(path).items()})


def _check_pth(path):
    import torch

    state = torch.load(path, weights_only=True)
    state = state.get("state_dict", state)
    _same_tensors(
        {
            name.removeprefix("module."): tensor.detach().float().numpy()
            for name, tensor in state.items()
        }
    )


def _check_h5(path):
    """Against h5py, by the names that the file gives to layers."""
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        for layer in model().layers:
            names = (
                root[layer.name].attrs["weight_names"] if layer.weights else []
            )
            for name, array in zip(names, layer.get_weights(), strict=True):
                stored = root[layer.name][name][()].astype(array.dtype)
                np.testing.assert_array_equal(array, stored)


def _check_keras(path):
    """Against Keras, if it loads the file into the model too."""
    loaded = model().get_weights()
    try:
        model().load_weights(path)
    # It also compares names and counts that the package does without.
    except Exception:
        return
    _assert_equal(model().get_weights(), loaded)


def _classifier():
    return Classifier(
        model(), _LABELS, EvalTransform(image_size=8, resize_size=8)
    )


# --- pictures ---------------------------------------------------------------


def _encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pictures(kind, *options, modes=("RGB",)):
    """Small ones, of every mode with every option, and a turned one."""

    def seeds():
        photo = Image.fromarray(load_sample_images().images[0][:21, :33])
        frames = [photo.transpose(Image.Transpose.ROTATE_180)] * 2
        exif = Image.Exif()
        exif[0x0112] = 6
        extra = [{"exif": exif}] if kind in ("JPEG", "PNG", "WEBP") else []
        if kind in ("GIF", "WEBP"):
            extra.append({"save_all": True, "append_images": frames})
        return [
            _encoded(photo.convert(mode), kind, **chosen)
            for mode in modes
            for chosen in ({}, *options, *extra)
        ]

    return seeds


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def _decoded(content):
    return images.decode(content, max_pixels=MAX_PIXELS)


def _read_image(path):
    return images.read_image(path, max_pixels=MAX_PIXELS)


def _check_image(path):
    """Against TensorFlow's decoders, if they read it too.

    They recover what is left of damaged data in ways of their own, so that
    only the size is the same. Graphs look for EXIF in so many segments only.
    """
    content = path.read_bytes()
    with contextlib.suppress(tf.errors.OpError):
        shapes = [tuple(_decoded(content).shape), _read_image(path).shape]
        if content.count(b"\xff") > 512:
            shapes = [sorted(shape) for shape in shapes]
        assert shapes[0] == shapes[1]


def _read_in_graph(path):
    return _decoded(path.read_bytes())


_PICTURES = (
    ("JPEG", ("RGB", "L", "CMYK"), [{"progressive": True}]),
    ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), []),
    ("GIF", ("L", "P"), [{"interlace": 1}]),
    ("BMP", ("L", "P", "RGB", "RGBA"), []),
    ("WEBP", ("RGB", "RGBA"), [{"lossless": True}]),
)


# --- runs -------------------------------------------------------------------


def _json(value):
    return lambda: [json.dumps(value, indent=1).encode()]


def _recipes():
    recipe = Recipe(dataset="digits", model="resnext29_8x4d")
    return [_written("r.json", recipe.save)]


_ENTRY = {
    "epoch": 1,
    "loss": 2.3,
    "accuracy": 0.1,
    "val_loss": 2.2,
    "val_accuracy": 0.2,
}


def _history():
    entries = [_ENTRY | {"epoch": i} for i in (1, 2, 3)]
    return ["".join(json.dumps(x) + "\n" for x in entries).encode()]


def _read_history(path):
    run = Run(path.parent)
    if run.history:
        return run.best_epoch
    return None


def _read_labels(path):
    return Run(path.parent).labels


@functools.cache
def _checkpoint_files():
    """A checkpoint of two variables, by names of its files."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        Checkpoints(path, keep=1, **_variables(1)).save(step=1)
        return {x.name: x.read_bytes() for x in path.iterdir()}


def _variables(value):
    return {
        "kernel": tf.Variable(tf.fill([3, 5], float(value))),
        "step": tf.Variable(value, dtype=tf.int64),
    }


def _checkpoint_seeds(name):
    return lambda: [_checkpoint_files()[name]]


def _restore_checkpoint(path):
    variables = _variables(7)
    checkpoints = Checkpoints(path.parent, keep=1, **variables)
    try:
        assert checkpoints.restore() == 1
    except RuntimeError:
        for variable in variables.values():
            assert np.all(variable.numpy() == 7), "changed by a refused file"
        raise
    # Its checksums let nothing else pass.
    for variable in variables.values():
        assert np.all(variable.numpy() == 1)


# --- what others share ------------------------------------------------------


@functools.cache
def _repository_files():
    """What a repository of the Hub has, by names of its files."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        restore()
        keras_resnext.export_weights(model(), path / "model.safetensors")
        config = {
            "keras_resnext": {
                "model": keras.saving.serialize_keras_object(model()),
                **_classifier().to_config(),
            }
        }
        (path / CONFIG_FILE).write_text(json.dumps(config))
        return {x.name: x.read_bytes() for x in path.iterdir()}


def _read_repository(path):
    return Classifier.load(path.parent)


_TIMM = {
    "architecture": "resnext50_32x4d",
    "num_classes": 10,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "label_names": _LABELS,
    "model_args": {"layers": [3, 4, 6, 3]},
}


def _configs():
    return [_repository_files()[CONFIG_FILE], json.dumps(_TIMM).encode()]


def _read_exports(path):
    return read_exports(path.parent, _classifier())


def _reports():
    report = {
        "model": model().name,
        "fingerprint": "0" * 64,
        "input": {"shape": [8, 8, 3]},
        "images": 4,
        "files": [
            {
                "path": "model.tflite",
                "passed": True,
                "format": "tflite",
                "quantize": None,
                "bytes": 3,
                "sha256": "0" * 64,
                "limits": {"relative_difference": 1e-4},
                **dict.fromkeys(
                    (
                        *("accuracy", "latency_ms", "peak_bytes"),
                        *("max_logit_difference", "mean_logit_difference"),
                        *("relative_difference", "correlation"),
                        *("centred_correlation", "top1_agreement"),
                    ),
                    1.0,
                ),
            }
        ],
    }
    return [json.dumps(report).encode()]


def _run(**files):
    """What else a run's folder has."""
    return lambda: {"recipe.json": _recipes()[0], **files}


_LABEL_TEXT = "".join(f"{x}\n" for x in _LABELS).encode()

READERS = {
    reader.file: reader
    for reader in (
        Reader(
            "w.safetensors",
            _weight_seeds(
                ".safetensors",
                lambda path: keras_resnext.export_weights(model(), path),
            ),
            _load,
            loads=True,
            parts=changes.SAFETENSORS,
            check=_check_safetensors,
            needs="torch",
        ),
        Reader(
            "w.pth",
            _weight_seeds(
                ".pth",
                functools.partial(_save_torch, archive=True),
                functools.partial(_save_torch, archive=False),
            ),
            _load,
            loads=True,
            parts=changes.ZIP,
            check=_check_pth,
            needs="torch",
        ),
        Reader(
            "w.h5",
            _weight_seeds(
                ".h5",
                lambda path: hostile_weights.save_legacy_h5(model(), path),
            ),
            _load,
            loads=True,
            check=_check_h5,
        ),
        Reader(
            "w.weights.h5",
            _weight_seeds(
                ".weights.h5", lambda path: model().save_weights(path)
            ),
            _load,
            loads=True,
            check=_check_keras,
        ),
        Reader(
            "w.keras",
            _weight_seeds(".keras", lambda path: _classifier().save(path)),
            _load,
            loads=True,
            parts=changes.ZIP,
            check=_check_keras,
        ),
        Reader(
            "classifier.keras",
            _weight_seeds(".keras", lambda path: _classifier().save(path)),
            Classifier.load,
            parts=changes.ZIP,
        ),
        *(
            Reader(
                f"picture.{kind.lower()}",
                _pictures(kind, *options, modes=modes),
                _read_image,
                parts=changes.PNG if kind == "PNG" else None,
                check=_check_image,
            )
            for kind, modes, options in _PICTURES
        ),
        *(
            Reader(
                f"graph.{kind.lower()}",
                _pictures(kind, *options, modes=modes),
                _read_in_graph,
                parts=changes.PNG if kind == "PNG" else None,
                refusals=(tf.errors.OpError,),
            )
            for kind, modes, options in _PICTURES
        ),
        Reader("recipe.json", _recipes, Recipe.load),
        Reader("history.jsonl", _history, _read_history, beside=_run()),
        Reader("labels.json", _json(_LABELS), _read_labels, beside=_run()),
        Reader(
            "labels.txt", lambda: [_LABEL_TEXT], _read_labels, beside=_run()
        ),
        Reader(
            "data.json",
            _json({"version": "", "parts": {"train/cat": [80, "0123abcd"]}}),
            Fingerprint.read,
        ),
        Reader(
            "split.json",
            _json({"validation": ["cat/1.jpg", "dog/2.jpg"]}),
            MadeSplit.read,
        ),
        *(
            Reader(
                name,
                _checkpoint_seeds(name),
                _restore_checkpoint,
                beside=_checkpoint_files,
                refusals=(RuntimeError,),
            )
            for name in ("step-1.index", "step-1.data-00000-of-00001")
        ),
        Reader(
            "model.safetensors",
            lambda: [_repository_files()["model.safetensors"]],
            _read_repository,
            parts=changes.SAFETENSORS,
            beside=_repository_files,
        ),
        Reader(
            CONFIG_FILE,
            _configs,
            _read_repository,
            beside=_repository_files,
        ),
        Reader("report.json", _reports, _read_exports),
    )
}
