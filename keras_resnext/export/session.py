"""An export session: a model is validated, folded and run in Keras once."""

import contextlib
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnext import private
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.classifier import check_normalizes_once
from keras_resnext.export.drawings import drawn_images
from keras_resnext.export.graph import IMAGE
from keras_resnext.export.graph import ExportGraph
from keras_resnext.export.graph import named_outputs
from keras_resnext.export.runtimes import in_batches
from keras_resnext.export.verify import Reference
from keras_resnext.export.verify import logits
from keras_resnext.files import staged
from keras_resnext.inspection import changes_nothing
from keras_resnext.inspection import classifies
from keras_resnext.inspection import grey_images
from keras_resnext.inspection import image_shape
from keras_resnext.inspection import input_kind
from keras_resnext.inspection import is_quantization_aware
from keras_resnext.inspection import layers_of
from keras_resnext.inspection import output_names
from keras_resnext.inspection import puts_out_probabilities
from keras_resnext.rewrite.quantization import for_export
from keras_resnext.transforms import EvalTransform
from keras_resnext.transforms import preprocess_input

# What TensorFlow and Keras write into the folder of a SavedModel.
_SAVED_MODEL = {
    *("saved_model.pb", "fingerprint.pb", "keras_metadata.pb"),
    *("variables", "assets", "assets.extra"),
}


class Session:
    """A model to export, and what all of its files have in common.

    The arguments are checked at once. The folded graph, Keras' reference
    outputs and conversions that several files start from are computed when
    they are first needed, and kept.

    Args:
        model: A `keras.Model` with one image input of fixed size, or a
            `Classifier`.
        preprocessing: See `to_saved_model`. Defaults to `"auto"`.
        labels: Class names. Defaults to those of the `Classifier`.
        transform: An `EvalTransform`. Defaults to that of the `Classifier`;
            of a plain model of square RGB images, to its default.
        images: Inputs to compare on, `(images, height, width, channels)`.
            Defaults to eight drawn ones, see `drawings`.

    Raises:
        ValueError: if an argument is not as described, the model does not
            compute in float32, or `preprocessing` cannot be chosen or would
            normalise twice.

    Example:

    >>> session = Session(model, labels=names)
    >>> to_tflite(session, "model.tflite")
    >>> to_tflite(session, "small.tflite", quantize="dynamic")
    """

    def __init__(
        self,
        model: keras.Model | Classifier,
        preprocessing: str | keras.Layer | None = "auto",
        labels: Sequence[str] | None = None,
        transform: EvalTransform | None = None,
        images: np.ndarray | None = None,
    ):
        classifier = as_classifier(model, labels, transform)
        self.model = classifier.model
        self.shape = image_shape(self.model)
        self.output_names = output_names(self.model)
        _check_model(self.model, self.output_names)
        self.input_kind = input_kind(self.model)
        self.quantization_aware = is_quantization_aware(self.model)
        self.transform = self._check_transform(classifier.transform)
        self.preprocessing = self._choose(preprocessing)
        if self.transform is None:
            self.transform = self._default_transform()
        self.classifies = classifies(self.model)
        self.labels = self._check_labels(classifier.labels)
        if images is None:
            images = drawn_images(self.shape)
        self.images = self.check_images(images)
        self._results = {}

    @classmethod
    def of(
        cls, model: "keras.Model | Classifier | Session", *arguments: Any
    ) -> "Session":
        """`model` if it is a session, otherwise one of these arguments."""
        if not isinstance(model, cls):
            return cls(model, *arguments)
        preprocessing, *others = arguments
        given = any(x is not None for x in others)
        if given or not (
            isinstance(preprocessing, str) and preprocessing == "auto"
        ):
            raise ValueError(
                "`preprocessing`, `labels`, `transform` and `images` must be "
                "given to the `Session`, not with it."
            )
        return model

    @functools.cached_property
    def graph(self) -> ExportGraph:
        """The folded network behind its preprocessing."""
        return ExportGraph(self.model, self.preprocessing)

    @property
    def per_channel(self) -> bool:
        """Whether each filter of a quantised network has its own step."""
        return all(
            getattr(x, "per_channel", True) for x in layers_of(self.model)
        )

    @functools.cached_property
    def unrounded(self) -> "Session":
        """A session of a `quantization_aware` model in floating point."""
        chosen = isinstance(self.preprocessing, EvalTransform)
        return Session(
            for_export(self.model, rounded=False),
            "auto" if chosen else self.preprocessing,
            self.labels,
            self.transform,
            self.images,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides what the files compute and carry.

        That is layers and weights, the shape of the images, what is done to
        them, class names and transform; neither names nor dtypes of layers.
        """
        about = [
            *(self.shape, self.input_description, self.attachments),
            *map(_settings, layers_of(self.model)),
        ]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for weight in self.model.weights:
            values = keras.ops.convert_to_numpy(weight)
            digest.update(str(values.shape).encode())
            digest.update(np.ascontiguousarray(values, "float32").data)
        return digest.hexdigest()

    @functools.cached_property
    def reference(self) -> Reference:
        """What Keras puts out for `images`."""
        probe = _softmax_probe(self.model)
        if probe is None:
            outputs = self._run_keras(self.model)
            least = 1.0 if self.classifies else 1e-30
            scales = {
                name: max(least, float(np.abs(logits(self.model, value)).max()))
                for name, value in outputs.items()
            }
            return Reference(outputs, scales)
        # The probabilities of a network that is sure of everything, such as
        # an untrained one, show the logits of few classes. Rounding depends
        # on the largest, so that the logits are taken before the softmax.
        before, probabilities = self._run_keras(probe).values()
        last = _last_layer(self.model)
        if isinstance(last, keras.layers.Dense):
            kernel, *bias = last.get_weights()
            before = before.astype("float64") @ kernel + sum(bias)
        largest = np.abs(before - before.mean(axis=-1, keepdims=True)).max()
        (name,) = self.output_names
        return Reference(
            {name: probabilities}, {name: max(1.0, float(largest))}
        )

    def once(self, convert: Callable[..., Any], *arguments: Any) -> Any:
        """`convert(self, *arguments)`, computed at the first call only."""
        key = convert, *arguments
        if key not in self._results:
            self._results[key] = convert(self, *arguments)
        return self._results[key]

    @property
    def takes_pixels(self) -> bool:
        """Whether the files take plain pixels in [0, 255]."""
        return (
            self.input_kind == "pixels"
            or self.preprocessing is not None
            or bool(self.transform and not self.transform.normalizes)
        )

    @property
    def input_description(self) -> str:
        """What a file takes, in words, for its metadata."""
        if not self.takes_pixels:
            return "what the bare network takes; nothing is normalized in here"
        pixels = "RGB pixels in [0, 255]"
        if self.preprocessing is None and self.input_kind == "pixels":
            return f"{pixels}; the model normalizes them itself"
        if self.preprocessing is None:
            return f"{pixels}; nothing is normalized in here"
        kind = self.preprocessing
        if isinstance(kind, EvalTransform):
            kind = kind.normalization
        elif isinstance(kind, keras.Layer):
            kind = "own"
        return f"{pixels}; normalization ({kind}) is in here"

    @property
    def attachments(self) -> dict[str, str]:
        """Files that accompany the model: their content by name."""
        files = {}
        if self.labels:
            files["labels.txt"] = "\n".join(self.labels) + "\n"
        if self.transform:
            config = json.dumps(self.transform.to_config(), indent=1)
            files["transform.json"] = config + "\n"
        return files

    def check_images(self, images, argument="images") -> np.ndarray:
        """Images as float32, or ValueError if they do not fit the model."""
        images = np.asarray(images, "float32")
        fits = images.ndim == 4 and images.shape[1:] == self.shape
        if not fits or not len(images):
            raise ValueError(
                f"`{argument}` must have shape (images, "
                f"{', '.join(map(str, self.shape))}); got {images.shape}."
            )
        if not np.isfinite(images).all():
            raise ValueError(f"`{argument}` must be finite; some are not.")
        return images

    def check_quantization(self, quantize, calibration, choices):
        """Calibration images as float32; `None` unless `quantize` is int8."""
        if quantize not in choices:
            raise ValueError(
                f"`quantize` must be one of {', '.join(map(str, choices))}; "
                f"got {quantize!r}."
            )
        if self.quantization_aware:
            self._check_learned_ranges(quantize, calibration)
            return None
        if (calibration is None) == (quantize == "int8"):
            raise ValueError(
                "`calibration` must be images with `quantize` int8, and None "
                f"otherwise; `quantize` is {quantize!r}, and `calibration` is "
                f"{'None' if calibration is None else 'given'}."
            )
        if calibration is None:
            return None
        return self.check_images(calibration, "calibration")

    def check_not_rounded(self) -> None:
        """Refuse a model of `quantization_aware`, for a float file's sake."""
        if self.quantization_aware:
            raise ValueError(
                "`model` must not come from `quantization_aware` for a format "
                f"that computes in float32; {self.model.name} does. ONNX and "
                "TFLite take it with `quantize` int8."
            )

    def _check_learned_ranges(self, quantize, calibration):
        """Refuse another precision than the one a model was trained for."""
        if quantize != "int8":
            raise ValueError(
                "`quantize` must be int8 for a model of `quantization_aware`; "
                f"got {quantize!r}."
            )
        if calibration is not None:
            raise ValueError(
                "`calibration` must be None for a model of "
                "`quantization_aware`, which has learned its ranges."
            )
        bits = {
            layer.bits
            for layer in layers_of(self.model)
            if hasattr(layer, "bits")
        }
        if bits != {8}:
            raise ValueError(
                "`model` must be trained for 8 bits, which runtimes have; "
                f"{self.model.name} is for {', '.join(map(str, sorted(bits)))}."
            )

    def check_size(self, most, format) -> None:
        """Refuse weights of more than nine tenths of `most` bytes."""
        if self.graph.bytes > 0.9 * most:
            raise ValueError(
                f"`model` must have at most {0.9 * most / 1e9:.2f} GB of "
                f"weights for {format}; {self.model.name} has "
                f"{self.graph.bytes / 1e9:.2f} GB."
            )

    def _choose(self, preprocessing):
        """What goes before the model: see `ExportGraph`."""
        if isinstance(preprocessing, keras.Layer):
            self._check_layer(preprocessing)
            return preprocessing
        if preprocessing not in ("auto", "imagenet", None):
            raise ValueError(
                '`preprocessing` must be "auto", "imagenet", None, or a Keras '
                "layer or model from pixels to the network's input; got "
                f"{preprocessing!r}."
            )
        check_normalizes_once(self.model, preprocessing)
        known = self.transform and self.transform.normalization
        if preprocessing == "imagenet" and known not in (None, "imagenet"):
            raise ValueError(
                "`preprocessing` must be a layer that normalises as "
                f'`transform` does; got "imagenet" and {self.transform!r}.'
            )
        return self._auto() if preprocessing == "auto" else preprocessing

    def _auto(self):
        """What the transform does, or what the layers of the model say."""
        if self.transform is not None:
            return self.transform if self.transform.normalizes else None
        if self.input_kind == "pixels":
            return None
        if self.input_kind == "normalized" and self.shape[-1] == 3:
            return "imagenet"
        raise ValueError(
            '`preprocessing` must be given, "imagenet" or None or a layer: '
            f"the layers of {self.model.name} do not say how its images are "
            "normalised."
        )

    def _check_layer(self, layer):
        """Refuse to change pixels for a model that normalises them itself."""
        if self.input_kind == "pixels" and not changes_nothing(
            layer(grey_images(self.shape))
        ):
            raise ValueError(
                "`preprocessing` must leave grey levels as they are, because "
                f"{self.model.name} normalises pixels itself; {layer.name} "
                "changes them."
            )

    def _check_labels(self, labels):
        """Labels of one line each, as files store them."""
        if not all(label.splitlines() == [label] for label in labels or ()):
            raise ValueError(
                "`labels` must be class names of one line each; got "
                f"{labels[:20]}."
            )
        return labels or None

    def _check_transform(self, transform):
        """The transform, if its images are the model's."""
        if transform is None:
            return None
        square = (getattr(transform, "image_size", None),) * 2
        if not isinstance(transform, EvalTransform) or self.shape != (
            *square,
            3,
        ):
            raise ValueError(
                "`transform` must be an EvalTransform to the model's images, "
                f"{self.shape}; got {transform!r}."
            )
        return transform

    def _default_transform(self):
        """The largest centred square, where `preprocessing` was given."""
        height, width, channels = self.shape
        if height != width or channels != 3 or self.preprocessing is None:
            return None
        if self.preprocessing == "imagenet":
            return EvalTransform.from_crop_pct(height)
        return EvalTransform.from_crop_pct(height, mean=None, std=None)

    def _called(self, images):
        """Pixels as the model's users pass them to it.

        Not through `ExportGraph`, whose mistakes verification must find.
        """
        if self.preprocessing is None:
            return images
        if isinstance(self.preprocessing, EvalTransform):
            return self.preprocessing.normalize(images)
        if isinstance(self.preprocessing, keras.Layer):
            return self.preprocessing(images)
        return preprocess_input(images, "channels_last")

    def _run_keras(self, model):
        """Keras' outputs for `images`, by name."""
        names = output_names(model)
        (image,) = model.inputs
        # Not through `predict`: TensorFlow counts its traces over all models
        # of a process, and warns from the fifth on.
        spec = tf.TensorSpec((None, *image.shape[1:]), tf.float32)
        predict = tf.function(
            lambda x: named_outputs(names, model(x, training=False)),
            input_signature=[spec],
            autograph=False,
        ).get_concrete_function()

        def run(images):
            pixels = tf.cast(self._called(images), tf.float32)
            return {k: v.numpy() for k, v in predict(pixels).items()}

        return in_batches(run)(self.images)


def _settings(layer):
    """Class and numbers of a layer, as far as it tells them."""
    config = {}
    if not isinstance(layer, keras.Model):  # its own layers say theirs
        with contextlib.suppress(NotImplementedError):  # a layer of the user's
            config = layer.get_config()
    return [type(layer).__name__] + [
        [name, value if isinstance(value, (list, tuple)) else repr(value)]
        for name, value in config.items()
        if name not in {"name", "dtype", "trainable"}
        and isinstance(value, (int, float, str, list, tuple))
    ]


def check_path(path, format) -> None:
    """Refuse to replace what is not a file of this format.

    Raises:
        ValueError: if no file of this format can be read from there.
        FileExistsError: if there is something else.
    """
    path = pathlib.Path(path)
    if format == "savedmodel" and {"[", "\\"} & {*path.as_posix()}:
        raise ValueError(
            "`path` must not have [ or \\, because TensorFlow takes them for "
            f"a pattern and cannot load a SavedModel from there; got {path}."
        )
    if path.exists() and path.is_dir() != (format == "savedmodel"):
        raise FileExistsError(
            f"`path` must be free or hold {format} to replace; {path} is a "
            f"{'folder' if path.is_dir() else 'file'}."
        )
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        other = sorted(names - _SAVED_MODEL)
        if other or "saved_model.pb" not in names:
            raise FileExistsError(
                "`path` must be free or hold savedmodel to replace; the "
                f"folder {path} holds "
                f"{', '.join(other[:3]) or 'no saved_model.pb'}."
            )


@contextlib.contextmanager
def staged_artifact(path, format, *, overwrite):
    """`files.staged` for a path that `check_path` accepts."""
    check_path(path, format)
    with staged(path, overwrite=overwrite) as new:
        yield new


def _check_model(model, names):
    """Refuse an output with the input's name, and lower precision."""
    if IMAGE in names:
        raise ValueError(
            f"`model` must not have an output called {IMAGE}, which is the "
            "input's name."
        )
    dtypes = {layer.compute_dtype for layer in layers_of(model)} - {"float32"}
    if dtypes:
        raise ValueError(
            "`model` must compute in float32; it has layers in "
            f"{', '.join(sorted(dtypes))}. Build it under the policy float32 "
            "and give it the same weights."
        )


def _last_layer(model):
    return private.keras_history(model.outputs[0])[0]


def _softmax_probe(model):
    """The model with what its final softmax layer reads as first output.

    `None` if it ends in no such layer, or the layer was first called on
    another model's tensors.
    """
    last = _last_layer(model)
    if puts_out_probabilities(model) and isinstance(
        last, (keras.layers.Dense, keras.layers.Softmax)
    ):
        with contextlib.suppress(ValueError):
            return keras.Model(model.inputs, [last.input, *model.outputs])
    return None
