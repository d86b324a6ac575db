"""Calibration: how far confidences can be taken at their word."""

import dataclasses
import math

import numpy as np

BINS = 15
# Beyond these a temperature says that there is no minimum, not where it is.
_LOWEST, _HIGHEST = 0.05, 20.0
_ROWS = 4096  # per step, so that float64 copies stay small


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence and accuracy of predictions in bins of equal width.

    Bin `i` of `n` has the confidences in `(i / n, (i + 1) / n]`.

    Args:
        images: Number of images in each bin, int64 `(bins,)`.
        confidence: Their mean confidence, `(bins,)`; NaN in empty bins.
        accuracy: The fraction that is right, `(bins,)`; NaN in empty bins.

    Example:

    >>> reliability(result.probabilities.max(1), right).calibration_error
    0.021
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def calibration_error(self) -> float:
        """The expected calibration error (ECE), in [0, 1].

        The mean difference of accuracy and confidence, bins weighted by their
        number of images.

        Reference:
            C. Guo et al., "On Calibration of Modern Neural Networks", ICML
            2017, equation 3.
        """
        gaps = np.abs(self.accuracy - self.confidence) * self.images
        return float(np.nansum(gaps) / self.images.sum())


def reliability(
    confidences: np.ndarray, right: np.ndarray, bins: int = BINS
) -> Reliability:
    """Sort predictions into bins by their confidence.

    Args:
        confidences: Probability of each predicted class, `(images,)`.
        right: Whether it is the true class, `(images,)`.
        bins: Number of bins between 0 and 1. Defaults to 15.

    Returns:
        A `Reliability`.

    Example:

    >>> reliability(np.array([0.2, 0.9]), np.array([True, True]), bins=2).images
    array([1, 1])
    """
    confidences = np.asarray(confidences, "float64")
    index = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(index, minlength=bins)
    filled = np.where(images, images, np.nan)
    return Reliability(
        images,
        np.bincount(index, weights=confidences, minlength=bins) / filled,
        np.bincount(index, weights=right, minlength=bins) / filled,
    )


class TemperatureScaling:
    """Probabilities as they would be with logits divided by a temperature.

    The logits are read from the probabilities: their logarithms differ from
    the logits by a constant of each image, which the softmax takes out.
    Probabilities below 1e-38, which float32 cannot tell from 0, count as
    1e-38. Predicted classes do not depend on the temperature.

    Args:
        probabilities: Of each class, `(images, classes)`.
        labels: True classes, `(images,)`.

    Example:

    >>> scaling = TemperatureScaling(result.probabilities, result.labels)
    >>> temperature = scaling.fit()
    >>> scaling.loss(1.0), scaling.loss(temperature)
    (0.0512, 0.0441)

    Reference:
        C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
        section 4.2.
    """

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray):
        tiny = np.finfo("float32").tiny
        logits = np.log(np.maximum(probabilities, tiny))
        logits -= logits.max(axis=1, keepdims=True)
        self._logits = logits  # the largest of each image is 0
        self._true = logits[np.arange(len(labels)), labels].astype("float64")

    def confidences(self, temperature: float) -> np.ndarray:
        """Probability of each image's predicted class.

        Args:
            temperature: Divisor of the logits.

        Returns:
            Probabilities, float64 `(images,)`.
        """
        return 1 / self._sums(temperature)

    def loss(self, temperature: float) -> float:
        """Mean cross-entropy (negative log-likelihood), in nats.

        Args:
            temperature: Divisor of the logits.
        """
        losses = np.log(self._sums(temperature)) - self._true / temperature
        return float(losses.mean())

    def fit(self) -> float | None:
        """The temperature that minimises the loss.

        Returns:
            A temperature between 0.05 and 20, or `None` if the loss has no
            minimum there: if every image is classified right, it falls with
            the temperature without end.
        """
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(
            lambda log: self.loss(math.exp(log)),
            bounds=(math.log(_LOWEST), math.log(_HIGHEST)),
            method="bounded",
            options={"xatol": 1e-6},
        )
        temperature = math.exp(found.x)
        at_bound = not 1.001 * _LOWEST < temperature < _HIGHEST / 1.001
        return None if at_bound else temperature

    def _sums(self, temperature):
        """Each image's sum of exponentials, float64 `(images,)`."""
        rows = range(0, len(self._logits), _ROWS)
        parts = (self._logits[i : i + _ROWS].astype("float64") for i in rows)
        return np.concatenate(
            [np.exp(part / temperature).sum(axis=1) for part in parts]
        )
