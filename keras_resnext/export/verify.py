"""Verification: a file's outputs in its own runtime, compared with Keras'."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from keras_resnext.export.runtimes import OPENERS
from keras_resnext.export.runtimes import in_batches
from keras_resnext.extras import first_line
from keras_resnext.extras import require
from keras_resnext.inspection import classifies
from keras_resnext.inspection import puts_out_probabilities

if TYPE_CHECKING:
    from keras_resnext.export.quantization import LayerError

# Far above what float32 rounds to zero, and far below what counts.
_SMALLEST_PROBABILITY = 1e-30
# Outputs that differ by no more than this share of the largest are constant:
# float32 has 24 bits.
_ROUNDING = 2**-20
# The centred correlation is measured if logits vary between images by more
# than this share of the largest: eight bits alone cause that much.
_CHANGE = 2**-7
_RUNTIMES = {"tflite": "ai_edge_litert", "onnx": "onnxruntime"}
_MEASURES = {
    "correlation": "correlation of logits",
    "centred_correlation": (
        "correlation after subtracting each logit's mean over the images"
    ),
    "top1_agreement": "top-1 agreement",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How closely a file's outputs agree with Keras' on the same images.

    Args:
        max_logit_difference: Largest absolute difference of logits, or of
            features. Logits of probabilities are their logarithms, shifted to
            mean zero for each image.
        mean_logit_difference: Mean absolute difference.
        relative_difference: Largest difference as a share of the largest
            logit, or of 1 if that is more; of features, as a share of the
            largest feature of the same output.
        correlation: Correlation of the logits; if they are constant, 1 if
            they are equal and 0 if not.
        centred_correlation: Correlation after subtracting each logit's mean
            over the images. It is about 0 for a file that ignores its input,
            which the plain correlation hides where some classes are always
            likelier than others. `None` if Keras' logits hardly vary between
            the images.
        top1_agreement: Share of images with the same top class; `None` for
            features.

    Example:

    >>> to_tflite(model, "model.tflite").agreement.top1_agreement
    1.0
    """

    max_logit_difference: float
    mean_logit_difference: float
    relative_difference: float
    correlation: float
    centred_correlation: float | None
    top1_agreement: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a file's outputs may be from Keras' before it is refused.

    Args:
        logit_difference: Maximum `relative_difference`, see `Agreement`.
            Defaults to infinity.
        correlation: Minimum correlation of logits. Defaults to -1.
        centred_correlation: Minimum correlation after subtracting each
            logit's mean over the images. Defaults to -1.
        top1_agreement: Minimum share of images with the same top class.
            Defaults to 0.

    Raises:
        ValueError: if a limit is out of range.

    Example:

    >>> to_tflite(model, "m.tflite", quantize="dynamic",
    ...           limits=Limits(top1_agreement=0.99))
    """

    logit_difference: float = math.inf
    correlation: float = -1.0
    centred_correlation: float = -1.0
    top1_agreement: float = 0.0

    def __post_init__(self):
        for name, least, most in (
            ("logit_difference", 0, math.inf),
            ("correlation", -1, 1),
            ("centred_correlation", -1, 1),
            ("top1_agreement", 0, 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(
                    f"`{name}` must be from {least} to {most}; got {value!r}."
                )

    def violations(self, agreement: Agreement) -> list[str]:
        """The limits that an `Agreement` exceeds, a phrase for each."""
        difference = agreement.relative_difference
        phrases = []
        # Negated comparisons, so that a NaN exceeds every limit.
        if not difference <= self.logit_difference:
            phrases.append(
                "largest difference of logits, as a share of the largest, is "
                f"{difference:.4g}, the limit {self.logit_difference:.4g}"
            )
        for name, words in _MEASURES.items():
            value, limit = getattr(agreement, name), getattr(self, name)
            if value is not None and not value >= limit:
                phrases.append(f"{words} is {value:.4g}, the limit {limit:.4g}")
        return phrases

    def describe(self) -> str:
        """The limits in words, such as "correlation at least 0.99"."""
        words = []
        if math.isfinite(self.logit_difference):
            words.append(
                f"difference at most {self.logit_difference:g} of the largest"
            )
        words += [
            f"{name.replace('_', ' ')} at least {limit:g}"
            for name in _MEASURES
            if (limit := getattr(self, name)) != getattr(Limits, name)
        ]
        return ", ".join(words) or "no limits"


# float32 carries 24 bits. Sums of some thousand terms, in another order and
# with batch norm folded, lose about 10 of them: 2**-14 is 6e-5. A float16
# weight is off by up to 2**-12, which adds up to some 2e-3 over fifty layers.
# Eight bits are off by up to half of 1/127 in each weight and activation, so
# that only the direction remains. Noise of n times the variation between
# images leaves a centred correlation of 1 / sqrt(1 + n * n): n may be a half
# with dynamic ranges and three quarters with fixed ones, which only untrained
# networks come near.
LIMITS = {
    None: Limits(logit_difference=1e-4, correlation=0.99),
    "float16": Limits(logit_difference=1e-2, correlation=0.999),
    "dynamic": Limits(correlation=0.99, centred_correlation=0.9),
    "int8": Limits(correlation=0.99, centred_correlation=0.8),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported file that was verified in its own runtime.

    Args:
        path: The file, or the folder of a SavedModel.
        format: `"savedmodel"`, `"tflite"` or `"onnx"`.
        quantize: `None`, `"float16"`, `"dynamic"` or `"int8"`.
        size: Bytes on disk.
        agreement: How closely its outputs agree with Keras'.
        limits: The limits that `agreement` was held to.
        outputs: The runtime's outputs for the images compared, by name.
        input: What the file takes, in words, such as "RGB pixels in
            [0, 255]; the model normalizes them itself".
        layer_errors: For a TFLite file in dynamic or int8, a
            `keras_resnext.export.quantization.LayerError` for each layer.

    Example:

    >>> artifact = to_onnx(model, "model.onnx")
    >>> run = artifact.open()
    >>> run(pixels)["probabilities"].shape
    (8, 10)
    """

    path: pathlib.Path
    format: str
    quantize: str | None
    size: int
    agreement: Agreement
    limits: Limits
    outputs: dict[str, np.ndarray] = dataclasses.field(repr=False)
    input: str = ""
    layer_errors: tuple["LayerError", ...] = dataclasses.field(
        default=(), repr=False
    )

    @property
    def scores(self) -> np.ndarray:
        """The first output; a classifier has no other."""
        return next(iter(self.outputs.values()))

    def open(
        self, threads: int | None = None
    ) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """Open the file in its own runtime.

        Args:
            threads: Number of threads. Defaults to `None`, the runtime's
                choice.

        Returns:
            A function from pixels, float32 `(images, height, width,
            channels)`, to a dict of outputs by name, each `(images, ...)`.
        """
        return in_batches(OPENERS[self.format](self.path, threads))


class ExportError(RuntimeError):
    """A file could not be written, or does not compute what Keras computes.

    Args:
        message: What is wrong.
        artifact: The file that was refused, which is no longer on disk.
            Defaults to `None`, if there was none to compare.

    Example:

    >>> try:
    ...     to_onnx(model, "model.onnx")
    ... except ExportError as error:
    ...     print(error, error.artifact.agreement)
    """

    def __init__(self, message: str, artifact: Artifact | None = None):
        super().__init__(message)
        self.artifact = artifact


@dataclasses.dataclass(frozen=True)
class Reference:
    """Keras' outputs by name, and what a difference of each is a share of."""

    outputs: dict[str, np.ndarray]
    scales: dict[str, float]


def require_runtime(format: str, quantize: str | None = None) -> None:
    """Refuse a format whose runtime or quantiser is not installed."""
    if format in _RUNTIMES:
        purpose = {"tflite": "A TFLite file", "onnx": "An ONNX file"}[format]
        require(_RUNTIMES[format], extra="export", purpose=purpose)
    if format == "tflite" and quantize:
        require("ai_edge_quantizer", extra="export", purpose="`quantize`")


def check_limits(limits, quantize) -> Limits:
    """The limits of a file: its own or the usual ones."""
    limits = LIMITS[quantize] if limits is None else limits
    if not isinstance(limits, Limits):
        raise ValueError(f"`limits` must be Limits; got {limits!r}.")
    return limits


def verify(
    session, file, path, format, quantize, limits, layer_errors=()
) -> Artifact:
    """Compare a file with Keras, in its own runtime.

    Args:
        session: The `Session` it was made from.
        file: The file.
        path: Where it will be put.
        format: Its format.
        quantize: How it is quantised.
        limits: `Limits`.
        layer_errors: See `Artifact`.

    Returns:
        An `Artifact` of the file in its place.

    Raises:
        ExportError: if the runtime cannot run it or a limit is exceeded.
    """
    reference = session.reference
    try:
        outputs = in_batches(OPENERS[format](file))(session.images)
    except Exception as error:  # each runtime has its own
        raise ExportError(
            f"{path} was not written: its runtime refuses it, "
            f"{first_line(error)}"
        ) from error
    artifact = Artifact(
        path=pathlib.Path(path),
        format=format,
        quantize=quantize,
        size=_size(file),
        agreement=compare(session.model, reference, outputs),
        limits=limits,
        outputs={name: outputs[name] for name in reference.outputs},
        input=session.input_description,
        layer_errors=tuple(layer_errors),
    )
    if violations := limits.violations(artifact.agreement):
        raise ExportError(
            f"{path} was not written: on {len(session.images)} images its "
            f"outputs are not Keras', {'; '.join(violations)}.",
            artifact,
        )
    return artifact


def compare(model, reference, outputs) -> Agreement:
    """How closely outputs agree with Keras'.

    Args:
        model: The model they came from.
        reference: Keras' outputs, a `Reference`.
        outputs: The runtime's outputs by name.

    Returns:
        An `Agreement`.
    """
    scales = list(reference.scales.values())
    pairs = [
        (logits(model, expected), logits(model, outputs[name]))
        for name, expected in reference.outputs.items()
    ]
    # NumPy's extremes, here and below: Python's lose a NaN.
    differences = [np.abs(ours - theirs) for ours, theirs in pairs]
    largest = [difference.max() for difference in differences]
    top1_agreement = None
    if classifies(model):
        ((ours, theirs),) = pairs
        top1_agreement = float(np.mean(ours.argmax(-1) == theirs.argmax(-1)))
    return Agreement(
        max_logit_difference=float(np.max(largest)),
        mean_logit_difference=float(
            np.mean(np.concatenate([d.ravel() for d in differences]))
        ),
        relative_difference=float(np.max(np.divide(largest, scales))),
        correlation=float(np.min(list(map(_correlation, pairs, scales)))),
        centred_correlation=_centred_correlation(pairs, scales),
        top1_agreement=top1_agreement,
    )


def _correlation(pair, scale):
    """Correlation of two arrays; of constant ones, whether they are equal."""
    if min(np.ptp(values) for values in pair) <= _ROUNDING * scale:
        return float(np.allclose(*pair, rtol=0, atol=_ROUNDING * scale))
    return float(np.corrcoef(*map(np.ravel, pair))[0, 1])


def _centred_correlation(pairs, scales):
    """The smallest of the outputs that vary between images, or `None`."""
    correlations = [
        _correlation([values - values.mean(axis=0) for values in pair], scale)
        for pair, scale in zip(pairs, scales, strict=True)
        if pair[0].std(axis=0).max() > _CHANGE * scale
    ]
    return float(np.min(correlations)) if correlations else None


def logits(model, scores):
    """Outputs as logits, so that a difference means the same in all models.

    Softmax hides the differences of unlikely classes. Its inverse is the
    logarithm, up to a constant for each image, chosen here so that the mean
    is zero. Outputs of a model without softmax are left as they are.

    Args:
        model: The model they came from.
        scores: Outputs `(images, classes)`.

    Returns:
        float64 array `(images, classes)`.
    """
    scores = np.asarray(scores, "float64")
    if not puts_out_probabilities(model):
        return scores
    logs = np.log(np.maximum(scores, _SMALLEST_PROBABILITY))
    return logs - logs.mean(axis=-1, keepdims=True)


def _size(path):
    """Bytes on disk of a file or folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
