"""A classifier as one value: a model, its class names and its transform."""

import collections
import concurrent.futures
import copy
import dataclasses
import functools
import json
import math
import os
import pathlib
import textwrap
import zipfile
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from collections.abc import Sized
from typing import Any

import keras
import numpy as np

from keras_resnext import imagenet
from keras_resnext.extras import printable
from keras_resnext.files import staged
from keras_resnext.images import IMAGE_SUFFIXES
from keras_resnext.images import MAX_PIXELS
from keras_resnext.images import check_max_pixels
from keras_resnext.inspection import check_classifier
from keras_resnext.inspection import classifies
from keras_resnext.inspection import image_size
from keras_resnext.inspection import input_kind
from keras_resnext.names import CLASSIFIER
from keras_resnext.names import NetworkName
from keras_resnext.names import join_shapes
from keras_resnext.resnext import ResNeXt
from keras_resnext.transforms import EvalTransform
from keras_resnext.variants import build
from keras_resnext.weights import convert
from keras_resnext.weights import gate
from keras_resnext.weights import get_weights
from keras_resnext.weights import load_weights
from keras_resnext.weights.hub import WEIGHTS_FILE
from keras_resnext.weights.hub import fetch_repository
from keras_resnext.weights.hub import is_repository
from keras_resnext.weights.hub import parse_repository
from keras_resnext.weights.hub import pin
from keras_resnext.weights.load import fetch_source
from keras_resnext.weights.read import open_weights
from keras_resnext.weights.read import reader_of
from keras_resnext.weights.registry import WeightsRecord
from keras_resnext.weights.timm_config import from_timm_config

# In a repository: Keras' description of the model, timm's, and ours.
CONFIG_FILE = "config.json"
_FEATURES = 2048  # of the networks that timm has


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Args:
        name: Path of the image, the name of its file object, or its number
            in what was passed in.
        probabilities: Of each class, float32 `(classes,)`; `None` if the
            image could not be read.
        labels: Class names, or `None` if the classifier knows none.
        error: Why the image could not be read; `None` if it could.

    Example:

    >>> prediction = Prediction("pond.jpg", np.array([0.75, 0.25]),
    ...                         labels=["tench", "eel"])
    >>> prediction.label, prediction.top(2)
    ('tench', [('tench', 0.75), ('eel', 0.25)])
    """

    name: str
    probabilities: np.ndarray | None
    labels: Sequence[str] | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities, best first.

        Args:
            count: How many, as far as there are so many. Defaults to 5.

        Raises:
            ValueError: if the image could not be read.
        """
        if self.probabilities is None:
            raise ValueError(self.error)
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [
            (
                self.labels[i] if self.labels else str(i),
                float(self.probabilities[i]),
            )
            for i in best
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A Keras model that knows its class names and its evaluation transform.

    Everything that classifies images takes one: `predict` here,
    `keras_resnext.training.evaluate` and the exporters. It is saved as one
    `.keras` file, which `keras.saving.load_model` opens as well.

    Args:
        model: A `keras.Model` for images that went through `transform`.
        labels: Class names, in the order of the outputs. Defaults to `None`.
        transform: What turns a photograph into the model's input. Defaults to
            `None`: for a model of square RGB images, the largest centred
            square, resized; then, for networks of this package's builders,
            ImageNet's normalisation, and none for a model that normalises
            pixels itself (see `keras_resnext.inspection.input_kind`). If the
            layers do not tell these apart, there is no default, and `predict`
            raises an error that asks for this argument.
        record: The published weights it was loaded with, if any. Of those on
            the Hugging Face Hub, `record.revision` is the commit.

    Raises:
        ValueError: if labels or transform do not fit the model; so does a
            transform that would normalise twice, or not at all.

    Example:

    >>> classifier = Classifier.load("resnext50", weights="imagenet")
    >>> classifier.predict("photo.jpg")[0].top(3)
    >>> classifier.labels[:2], classifier.transform.image_size
    (['tench', 'goldfish'], 224)
    """

    model: keras.Model
    labels: Sequence[str] | None = None
    transform: EvalTransform | None = None
    record: WeightsRecord | None = None

    def __post_init__(self):
        if not isinstance(self.model, keras.Model):
            raise ValueError(
                f"`model` must be a keras.Model; got {self.model!r}."
            )
        self._check_labels()
        size, kind = _square_side(self.model), input_kind(self.model)
        if self.transform is None:
            if size and kind != "unknown":
                normalization = (
                    {"mean": None, "std": None} if kind == "pixels" else {}
                )
                transform = EvalTransform.from_crop_pct(size, **normalization)
                object.__setattr__(self, "transform", transform)
            return
        if size not in (None, getattr(self.transform, "image_size", None)):
            raise ValueError(
                f"`transform` must be an EvalTransform to the model's {size} "
                f"pixels; got {self.transform!r}."
            )
        if isinstance(self.transform, EvalTransform):
            self._check_normalization(kind)

    def _check_normalization(self, kind):
        """Refuse a transform that would normalise twice, or not at all."""
        if kind == "pixels" and self.transform.normalizes:
            raise ValueError(
                "`transform` must have mean and std None, because "
                f"{self.model.name} normalises pixels itself, and they would "
                f"be normalised twice; got {self.transform!r}."
            )
        if kind == "normalized" and not self.transform.normalizes:
            raise ValueError(
                f"`transform` must have mean and std, because {self.model.name}"
                " takes normalised pixels; got None. (Of a network trained on "
                "plain pixels they are 0 and 1 / 255.)"
            )

    def require_transform(self) -> EvalTransform:
        """The transform, or an error that says why there is none.

        Raises:
            ValueError: if there is none.

        Example:

        >>> Classifier(keras_resnext.ResNeXt50(weights=None)) \\
        ...     .require_transform().image_size
        224
        """
        if self.transform is not None:
            return self.transform
        image_size(self.model)  # refuses what no transform is for
        raise ValueError(
            '`transform` must be given (or `preprocessing`, "imagenet" or '
            f"None, to load a file): the layers of {self.model.name} do not "
            "say whether it takes plain or normalised pixels."
        )

    def _check_labels(self):
        """Refuse labels that are not one name for each class."""
        labels = self.labels
        if labels is None:
            return
        if isinstance(labels, str) or not isinstance(labels, Iterable):
            raise ValueError(
                f"`labels` must be a list of names; got {labels!r}."
            )
        labels = list(labels)
        count = self.model.output_shape[-1] if classifies(self.model) else 0
        if len(labels) != count or not all(isinstance(x, str) for x in labels):
            raise ValueError(
                f"`labels` must be the model's {count} class names; got "
                f"{labels[:20]}."
            )
        object.__setattr__(self, "labels", labels)

    @property
    def input_description(self) -> str:
        """How images become the model's input, in words."""
        transform = self.require_transform()
        pixels = f"RGB pixels, {transform.image_size}x{transform.image_size}"
        if transform.normalizes:
            return f"{pixels}, normalized ({transform.normalization})"
        if input_kind(self.model) == "pixels":
            return f"{pixels}; the model normalizes them itself"
        return f"{pixels}, not normalized"

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        weights: str | os.PathLike[str] | None = None,
        *,
        preprocessing: str | None = "auto",
    ) -> "Classifier":
        """Load a classifier, whatever it is stored as.

        Labels and transform are those in the file, of the run, of the
        repository or of the published weights. Where none are stored, as in
        `.keras` files written by Keras and in files of weights, the transform
        is the default one, see `Classifier`, and 1000 classes are taken for
        ImageNet's.

        Args:
            source: The folder of a training run, a `.keras` file, the name of
                a model, see `list_models`, or a repository of the Hugging
                Face Hub, `"hf://user/name"` or `"hf://user/name@revision"`,
                that `push_to_hub` or timm wrote; or the folder of a dry run
                of `push_to_hub`.
            weights: With a model's name, a tag of its published weights, see
                `list_weights`, or a file of weights, see `load_weights`.
                Defaults to `None`, which means `"imagenet"` there.
            preprocessing: How pixels are normalised before the model:
                `"imagenet"`, `None` if it takes them as they are, or `"auto"`
                for what file and model say. Defaults to `"auto"`.

        Returns:
            A `Classifier`.

        Raises:
            ValueError: if `source` is none of these; if the run is not
                finished; if a file is damaged, or refused for what it
                declares (see `keras_resnext.weights.gate`); if `weights` is
                given and `source` is no name; if `preprocessing` contradicts
                the model.
            ConnectionError: if published weights or a repository cannot be
                fetched.
            PermissionError: if a file may not be read, or the Hub refuses the
                token.
            MemoryError: if there is too little memory to read a file.

        Example:

        >>> Classifier.load("runs/digits").labels[:2]
        ['0', '1']
        >>> Classifier.load("hf://timm/resnext50_32x4d.a1h_in1k").labels[0]
        'tench'
        >>> Classifier.load("resnext50", weights="my.safetensors").labels[0]
        'tench'
        """
        if preprocessing not in ("auto", "imagenet", None):
            raise ValueError(
                '`preprocessing` must be "auto", "imagenet" or None; got '
                f"{preprocessing!r}."
            )
        classifier = cls._load(source, weights)
        if preprocessing == "auto":
            return classifier
        check_normalizes_once(classifier.model, preprocessing)
        normalization = {"mean": None, "std": None}
        if preprocessing == "imagenet":
            normalization = {"mean": imagenet.MEAN, "std": imagenet.STD}
        transform = classifier.transform or EvalTransform.from_crop_pct(
            image_size(classifier.model)
        )
        transform = dataclasses.replace(transform, **normalization)
        return dataclasses.replace(classifier, transform=transform)

    @classmethod
    def _load(cls, source, weights):
        """What `load` does before `preprocessing`."""
        if is_repository(source) and weights is None:
            return cls._load_repository(
                fetch_repository(
                    parse_repository(source), CONFIG_FILE, WEIGHTS_FILE
                ),
                source,
            )
        path = pathlib.Path(source)
        if not (path.exists() or path.suffix or path.name != str(source)):
            if weights and (
                is_repository(weights)
                or reader_of(weights)
                or os.path.exists(weights)
            ):
                return cls._load_weights(str(source), weights)
            return cls._load_published(str(source), str(weights or "imagenet"))
        if weights is not None:
            raise ValueError(
                "`weights` must be None unless `source` is a model's name; got "
                f"{weights!r} with {source}."
            )
        if (path / CONFIG_FILE).is_file():
            return cls._load_repository(path, path)
        if path.is_dir():
            return cls._load_run(path)
        return cls._load_file(path)

    @classmethod
    def _load_run(cls, folder):
        """The classifier that a training run left."""
        if not (folder / "recipe.json").is_file():
            raise ValueError(
                "`source` must be the folder of a training run, a .keras file "
                f"or a model's name; the folder {folder} has no recipe.json."
            )
        path = folder / "model.keras"
        if not path.is_file():
            raise ValueError(
                f"`source` must be a finished run; {folder} has no {path.name} "
                "yet. Start the same training again to finish it."
            )
        return cls._load_file(path)

    @classmethod
    def _load_file(cls, path):
        """A `.keras` file, with what this package wrote into it."""
        if path.suffix != ".keras" or not path.is_file():
            what = f"got {path}" if path.exists() else f"there is no {path}"
            raise ValueError(
                "`source` must be the folder of a training run, a .keras file "
                f"or a model's name; {what}."
            )
        try:
            gate.check_keras(path)
            # Its loss and optimizer may be the user's, or those of another
            # backend.
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            return _name_imagenet(cls(model, **_read_metadata(path)))
        except (ImportError, PermissionError):
            raise
        except MemoryError as error:
            raise _too_little_memory(path) from error
        except Exception as error:  # of any type on damaged files
            raise ValueError(
                f"{path} is not a .keras file of a classifier: {_reason(error)}"
            ) from error

    @classmethod
    def _load_repository(cls, folder, name):
        """What `push_to_hub`, or timm, wrote for the Hugging Face Hub."""
        try:
            gate.check_description(folder / CONFIG_FILE)
            config = json.loads((folder / CONFIG_FILE).read_bytes())
            with open_weights(folder / WEIGHTS_FILE) as stored:
                shapes = stored.shapes
            if "keras_resnext" in config:
                config = config["keras_resnext"]
                metadata = _read_config(config)
                gate.check_described(
                    copy.deepcopy(config["model"]), _count_values(shapes)
                )
                model = keras.saving.deserialize_keras_object(
                    {**config["model"], "compile_config": None}
                )
            else:
                theirs = from_timm_config(config)
                _check_network(shapes, theirs)
                size = theirs.transform.image_size
                model = ResNeXt(
                    **theirs.network._asdict(),
                    classes=theirs.classes,
                    input_shape=(size, size, 3),
                )
                metadata = {
                    "labels": theirs.labels,
                    "transform": theirs.transform,
                }
            _check_complete(model, shapes)
            load_weights(model, folder / WEIGHTS_FILE)
            return _name_imagenet(cls(model, **metadata))
        except (ImportError, PermissionError):
            raise
        except MemoryError as error:
            raise _too_little_memory(name) from error
        except Exception as error:  # a stranger's file may lead to any
            raise ValueError(
                f"{name} is not a repository of this package or of timm's "
                f"ResNets: {_reason(error)}"
            ) from error

    @classmethod
    def _load_weights(cls, name, path):
        """A model by name, with the weights and the classes of a file."""
        if is_repository(path):
            path = fetch_source(parse_repository(path))
        if not os.path.exists(path):
            raise ValueError(
                "`weights` must be a tag of `list_weights` or an existing "
                f"file; got {str(path)!r}."
            )
        with open_weights(path) as file:
            shapes = file.shapes
        head = shapes.get(CLASSIFIER)
        if not head or len(head[0]) != 2:
            raise ValueError(
                f"`weights` must have a classifier; {path} has "
                f"{head or 'none'}."
            )
        classes = head[0][-1]
        stored = _count_values(shapes)
        needed = gate.count_values(lambda: build(name, classes=classes))
        if needed > gate.most_values(stored):
            raise ValueError(
                f"`weights` must fit {name}, which has {needed} values; {path} "
                f"has {stored}."
            )
        model = build(name, weights=path, classes=classes)
        return _name_imagenet(cls(model))

    @classmethod
    def _load_published(cls, name, weights):
        """A model by name, with published weights and what they go with."""
        record = pin(get_weights(name, weights))
        size = record.image_size
        model = build(name, weights=record, input_shape=(size, size, 3))
        return cls(model, record.labels, record.transform, record)

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False
    ) -> None:
        """Write model, class names and transform into one `.keras` file.

        Args:
            path: A path that ends in `.keras`.
            overwrite: Whether to replace an existing file. Defaults to
                `False`.

        Raises:
            ValueError: if `path` ends otherwise.
            FileExistsError: if `path` exists and `overwrite` is false.

        Example:

        >>> classifier.save("digits.keras")
        """
        if pathlib.Path(path).suffix != ".keras":
            raise ValueError(f"`path` must end in .keras; got {str(path)!r}.")
        with staged(path, overwrite=overwrite) as new:
            self.model.save(new)
            # A .keras file is a zip archive; Keras reads the other members.
            with zipfile.ZipFile(new, "a") as archive:
                archive.writestr(
                    gate.METADATA_MEMBER, json.dumps(self.to_config())
                )

    def to_config(self) -> dict[str, Any]:
        """Labels and transform as plain values that JSON can hold.

        Returns:
            A dict with `labels` and `transform`, each `None` if there is none.

        Example:

        >>> classifier.to_config()["labels"][:2]
        ['0', '1']
        """
        return {
            "labels": None if self.labels is None else list(self.labels),
            "transform": self.transform and self.transform.to_config(),
        }

    def predict(
        self,
        images: Any,
        batch_size: int = 32,
        *,
        on_bad_image: str = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: Path of an image file or of a folder, whose images are
                taken in order, those in folders below it too; or an array of
                images, uint8 `(images, height, width, 3)`; or a list of
                paths, binary file objects, Pillow images, or arrays `(height,
                width, 3)` of any size.
            batch_size: Images that the model sees at once. Defaults to 32.
            on_bad_image: `"error"`, or `"skip"` to go on after a file that
                cannot be read; its `Prediction` says why. Defaults to
                `"error"`.
            max_pixels: Most pixels that an image file may have, see
                `keras_resnext.images`. Decoding takes about 4 bytes for each,
                of as many files at once as there are cores. Defaults to
                178,956,970.

        Returns:
            A list with a `Prediction` for each image, in order.

        Raises:
            ValueError: if the model does not end in class probabilities, there
                are no images, or one cannot be read.

        Example:

        >>> for prediction in classifier.predict("photos/"):
        ...     print(prediction.name, prediction.label)
        """
        return list(
            self.iter_predictions(
                images,
                batch_size,
                on_bad_image=on_bad_image,
                max_pixels=max_pixels,
            )
        )

    def iter_predictions(
        self,
        images: Any,
        batch_size: int = 32,
        *,
        on_bad_image: str = "error",
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[Prediction]:
        """What `predict` returns, one image after another; see there.

        Memory holds two batches, however many images there are.
        """
        check_classifier(self.model)
        self.require_transform()
        if batch_size < 1:
            raise ValueError(
                f"`batch_size` must be 1 or more; got {batch_size}."
            )
        check_on_bad_image(on_bad_image)
        check_max_pixels(max_pixels)
        read = functools.partial(self.transform, max_pixels=max_pixels)
        batches = read_ahead(read, named_images(images), batch_size)
        return self._predict(batches, on_bad_image)

    def _predict(self, batches, on_bad_image):
        """Classify batches while the next one is being read."""
        for names, inputs in batches:
            errors = [x if isinstance(x, Exception) else None for x in inputs]
            if on_bad_image == "error":
                for error in filter(None, errors):
                    raise error
            readable = [
                x for x, e in zip(inputs, errors, strict=True) if e is None
            ]
            rows = iter(())
            if readable:
                rows = iter(self.model.predict_on_batch(np.stack(readable)))
            for name, error in zip(names, errors, strict=True):
                if error is None:
                    yield Prediction(name, next(rows), self.labels)
                else:
                    yield Prediction(name, None, self.labels, str(error))


def as_classifier(
    model: keras.Model | Classifier,
    labels: Sequence[str] | None = None,
    transform: EvalTransform | None = None,
) -> Classifier:
    """A model, or a classifier, as a classifier.

    Args:
        model: A `keras.Model` or a `Classifier`.
        labels: Class names that replace the classifier's. Defaults to `None`.
        transform: A transform that replaces the classifier's. Defaults to
            `None`.

    Returns:
        A `Classifier`.

    Raises:
        ValueError: see `Classifier`.

    Example:

    >>> as_classifier(keras_resnext.ResNeXt50(weights=None)).labels is None
    True
    """
    if not isinstance(model, Classifier):
        return Classifier(model, labels, transform)
    return dataclasses.replace(
        model,
        labels=model.labels if labels is None else labels,
        transform=transform or model.transform,
    )


def check_normalizes_once(
    model: keras.Model, preprocessing: str | None
) -> None:
    """Refuse to normalise for a model that does it itself.

    Raises:
        ValueError: if `preprocessing` is `"imagenet"` and it does.
    """
    if preprocessing == "imagenet" and input_kind(model) == "pixels":
        raise ValueError(
            f'`preprocessing` must not be "imagenet", because {model.name} '
            "normalises pixels itself, and they would be normalised twice. "
            '"auto" adds nothing to it.'
        )


def check_on_bad_image(value: str) -> None:
    """Refuse an unknown way to treat images that cannot be read.

    Raises:
        ValueError: if it is neither `"error"` nor `"skip"`.
    """
    if value not in ("error", "skip"):
        raise ValueError(
            f'`on_bad_image` must be "error" or "skip"; got {value!r}.'
        )


def list_images(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The image files of a folder and of those below it, in order.

    Args:
        folder: The folder. Hidden files and folders are left out.

    Returns:
        Sorted paths with one of the endings in `IMAGE_SUFFIXES`.

    Example:

    >>> list_images("photos")[0].name
    'cat.jpg'
    """
    folder = pathlib.Path(folder)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(
            part.startswith(".") for part in path.relative_to(folder).parts
        )
    )


def _name_imagenet(classifier):
    """The same with ImageNet's names if it has 1000 classes and no names."""
    is_imagenet = (
        classifier.labels is None
        and classifies(classifier.model)
        and classifier.model.output_shape[-1] == len(imagenet.labels())
    )
    if not is_imagenet:
        return classifier
    return dataclasses.replace(classifier, labels=imagenet.labels())


def _square_side(model):
    """Side of the square RGB images that a model takes, or `None`."""
    try:
        return image_size(model)
    except (AttributeError, ValueError):
        return None


def _too_little_memory(source):
    return MemoryError(f"There is too little memory for {source}.")


def _reason(error):
    """What Keras says, in one line; it wraps errors once for each layer."""
    said = isinstance(error, (TypeError, ValueError)) and str(error)
    *_, innermost = (said or repr(error)).split("Exception encountered: ")
    return printable(textwrap.shorten(innermost, 300))


def _read_metadata(path):
    """Labels and transform in a `.keras` file; none in one from elsewhere."""
    with zipfile.ZipFile(path) as archive:
        if gate.METADATA_MEMBER not in archive.namelist():
            return {}
        return _read_config(json.loads(archive.read(gate.METADATA_MEMBER)))


def _count_values(shapes):
    """How many values weights have."""
    return sum(math.prod(s) for layer in shapes.values() for s in layer)


def _check_network(shapes, theirs):
    """Refuse, before a network is built, the weights of another."""
    network = theirs.network
    depth = 3 * sum(network.depths) + 2
    described = str(NetworkName(depth, *network[1:3]))
    classes = theirs.classes
    found = convert.infer_architecture(shapes)
    if described != found:
        raise ValueError(
            f"{WEIGHTS_FILE} must have the weights of {described}, which "
            f"{CONFIG_FILE} describes; it has those of {found}."
        )
    head = shapes.get(CLASSIFIER)
    if head != [(_FEATURES, classes), (classes,)]:
        raise ValueError(
            f"{WEIGHTS_FILE} must have a classifier of the {classes} classes "
            f"that {CONFIG_FILE} names; it has {head or 'none'}."
        )


def _check_complete(model, actual):
    """Refuse weights that would leave some of the model's at random."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"{CONFIG_FILE} must describe a model; got {model!r}.")
    expected = join_shapes(
        {
            layer.name: [tuple(w.shape) for w in layer.weights]
            for layer in model.layers
            if layer.weights
        }
    )
    if expected != actual:
        different = sorted(
            name
            for name in {*expected, *actual}
            if expected.get(name) != actual.get(name)
        )
        raise ValueError(
            f"{WEIGHTS_FILE} must have the weights of all of the model's "
            f"layers, and no others; {', '.join(different[:3])} differ."
        )


def _read_config(config):
    """Labels and transform of `to_config`."""
    transform = config["transform"]
    return {
        "labels": config["labels"],
        "transform": transform and EvalTransform.from_config(transform),
    }


def named_images(images):
    """Pairs of a name and an image for whatever `predict` takes."""
    if isinstance(images, (str, os.PathLike)):
        folder = pathlib.Path(images)
        images = list_images(folder) if folder.is_dir() else [folder]
        if not images:
            raise ValueError(
                "`images` must be image files or a folder with some; "
                f"{folder} has none that end in {', '.join(IMAGE_SUFFIXES)}."
            )
    if not isinstance(images, Iterable) or (
        isinstance(images, Sized) and not len(images)
    ):
        raise ValueError(
            f"`images` must be image files, a folder or arrays; got {images!r}."
        )
    return [
        (_name_of(image, number), image) for number, image in enumerate(images)
    ]


def _name_of(image, number):
    """What an image is called in predictions."""
    if isinstance(image, (str, os.PathLike)):
        return str(image)
    if hasattr(image, "read"):
        return str(getattr(image, "name", number))
    return str(number)


def read_ahead(transform, items, batch_size):
    """Names and inputs by batch; the next is read while one is in use."""

    def read(image):
        try:
            return transform(image)
        except (OSError, ValueError) as error:
            return error

    batches = [
        items[i : i + batch_size] for i in range(0, len(items), batch_size)
    ]
    # Pillow decodes and resizes outside of Python's lock.
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        waiting = collections.deque()
        for batch in batches:
            names = [name for name, _ in batch]
            futures = [pool.submit(read, image) for _, image in batch]
            waiting.append((names, futures))
            if len(waiting) > 1:
                names, futures = waiting.popleft()
                yield names, [future.result() for future in futures]
        for names, futures in waiting:
            yield names, [future.result() for future in futures]
    finally:
        # Not waiting for its threads: one that nobody reads to the end may be
        # closed by the garbage collector, and that in the middle of another
        # thread's start, which holds a lock that waiting needs.
        pool.shutdown(wait=False, cancel_futures=True)
