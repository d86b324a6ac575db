"""Files beside Keras: limits, and what was measured."""

import dataclasses
import math

import numpy as np

from keras_resnext.inspection import classifies
from keras_resnext.inspection import output_names
from keras_resnext.inspection import puts_out_probabilities

# Far above what float32 rounds to zero, and far below what counts.
_SMALLEST_PROBABILITY = 1e-30


# Outputs are constant if they differ by no more than this, as a share of the
# largest: float32 has 24 bits.
_ROUNDING = 2**-20


# What images change in logits is compared if it is more than what eight bits
# do, as a share of the largest logit.
_CHANGE = 2**-7


class ExportError(RuntimeError):
    """An exported file did not compute what Keras computes.

    Args:
        message: What was wrong.
        measured: Attributes of the `Artifact` it would have been, as far as
            they are known. Defaults to none.

    Example:

    >>> try:
    ...     to_onnx(model, "model.onnx")
    ... except ExportError as error:
    ...     print(error)  # and there is no model.onnx
    """

    def __init__(self, message, measured=None):
        super().__init__(message)
        self.measured = measured or {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a file's outputs may be from Keras' before it is refused.

    Args:
        logit_difference: Largest difference of logits, as a share of the
            largest logit, or of 1 if that is more; of features, as a share of
            the largest of the same output.
        correlation: Smallest correlation of logits.
        centred_correlation: Smallest correlation of what images change in
            them.
        top1_agreement: Smallest share of images with the same best class.

    Raises:
        ValueError: if one of them cannot be met, or not be missed.

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


# float32 carries 24 bits. Sums of some thousand terms, in another order and
# with batch norm folded, lose about 10 of them: 2**-14 is 6e-5. A float16
# weight is off by up to 2**-12, which fifty layers make some 2e-3. Eight bits
# are off by up to a half in 127 in each weight and activation: what is left is
# the direction. Noise of n times what images change leaves a correlation of
# 1 / sqrt(1 + n * n) of that: it may be half of it with dynamic ranges, and
# three quarters with fixed ones, which only untrained networks come near.
LIMITS = {
    None: Limits(logit_difference=1e-4, correlation=0.99),
    "float16": Limits(logit_difference=1e-2, correlation=0.999),
    "dynamic": Limits(correlation=0.99, centred_correlation=0.9),
    "int8": Limits(correlation=0.99, centred_correlation=0.8),
}


def beyond(limits, relative, agreement) -> list[str]:
    """Which limits are not kept, in words.

    Args:
        limits: `Limits`.
        relative: Largest difference of logits, as a share of the largest.
        agreement: Of `compare`.

    Returns:
        A line for each.
    """
    difference = limits.logit_difference
    failed = []
    # Written so that a NaN fails too.
    if not relative <= difference:
        failed.append(
            "largest difference of logits, as a share of the largest, is "
            f"{relative:.4g}, the limit {difference:.4g}"
        )
    for name, what in (
        ("correlation", "correlation of logits"),
        ("centred_correlation", "correlation of what images change in them"),
        ("top1_agreement", "top-1 agreement"),
    ):
        value, limit = agreement[name], getattr(limits, name)
        if value is not None and not value >= limit:
            failed.append(f"{what} is {value:.4g}, the limit {limit:.4g}")
    return failed


def compare(model, expected, found, scales):
    """How two sides' outputs differ.

    Args:
        model: The model they came from.
        expected: Keras' outputs by name.
        found: The others'.
        scales: What a difference of each is a share of.

    Returns:
        A dict of `max_logit_difference`, `mean_logit_difference`,
        `correlation`, `centred_correlation` and `top1_agreement` as `Artifact`
        has them, and the largest difference as a share.
    """
    names = output_names(model)
    pairs = [
        (logits(model, expected[name]), logits(model, found[name]))
        for name in names
    ]
    # NumPy's extremes, here and below: Python's lose a NaN.
    differences = [np.abs(ours - theirs) for ours, theirs in pairs]
    largest = [difference.max() for difference in differences]
    scales = [scales[name] for name in names]
    agreement = None
    if classifies(model):
        ours, theirs = (
            np.argmax(outputs[names[0]], axis=-1)
            for outputs in (expected, found)
        )
        agreement = float(np.mean(ours == theirs))
    return {
        "max_logit_difference": float(np.max(largest)),
        "mean_logit_difference": float(
            np.mean(np.concatenate([d.ravel() for d in differences]))
        ),
        "correlation": float(np.min(list(map(_correlation, pairs, scales)))),
        "centred_correlation": _image_correlation(pairs, scales),
        "top1_agreement": agreement,
    }, float(np.max(np.divide(largest, scales)))


def _correlation(pair, scale):
    if min(np.ptp(values) for values in pair) <= _ROUNDING * scale:
        return float(np.allclose(*pair, rtol=0, atol=_ROUNDING * scale))
    return float(np.corrcoef(*map(np.ravel, pair))[0, 1])


def _image_correlation(pairs, scales):
    found = [
        _correlation([values - values.mean(axis=0) for values in pair], scale)
        for pair, scale in zip(pairs, scales, strict=True)
        if pair[0].std(axis=0).max() > _CHANGE * scale
    ]
    return float(np.min(found)) if found else None


def logits(model, scores):
    """Outputs as logits, so that differences mean the same for all models.

    Softmax hides the differences of unlikely classes. Its inverse is the
    logarithm, up to a constant for each image that is chosen here such that
    the mean is zero. Outputs of a model without softmax are left as they are.

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


def describe_limits(limits) -> str:
    """Limits in words.

    Args:
        limits: `Limits`.

    Returns:
        Such as "difference at most 0.0001 of the largest, correlation at
        least 0.99".
    """
    words = []
    if math.isfinite(limits.logit_difference):
        words.append(
            f"difference at most {limits.logit_difference:g} of the largest"
        )
    for field in dataclasses.fields(limits)[1:]:
        value = getattr(limits, field.name)
        if value != field.default:
            words.append(f"{field.name.replace('_', ' ')} at least {value:g}")
    return ", ".join(words) or "no limits"
