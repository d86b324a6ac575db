"""The moving average of a model's weights, and of batch norm's statistics."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


class MovingAverage:
    """What is evaluated and saved in the place of the last step's numbers.

    Keras' optimizers average what they train only. Batch norm's statistics
    belong to the weights they were taken with, so that they are averaged
    here as well, as torchvision does. Make it under the strategy's scope.

    Args:
        model: A `keras.Model`.
        decay: Share that the average keeps at each step; 0 for no average.
        begin: Step up to which it takes the model's numbers over instead.

    Example:

    >>> average = MovingAverage(model, 0.999, begin=100)
    >>> average.update(optimizer.iterations)  # in each step, at its end
    >>> with average.swapped_in():
    ...     model.save("model.keras")
    """

    def __init__(self, model: keras.Model, decay: float, begin: int):
        self._decay, self._begin = decay, begin
        self._variables = [
            variable.value
            for variable in (model.variables if decay else ())
            if variable.value.dtype.is_floating
        ]
        self.averages = [
            tf.Variable(variable.numpy(), trainable=False)
            for variable in self._variables
        ]

    def update(self, step) -> None:
        """Move towards the model's variables, or take them over.

        Args:
            step: Number of the step that was just done, from 1.
        """
        share = tf.where(step <= max(1, self._begin), 1.0, 1 - self._decay)
        for average, variable in zip(
            self.averages, self._variables, strict=True
        ):
            # What does not change stays as it is, to the bit.
            difference = variable - average
            average.assign_add(tf.cast(share, variable.dtype) * difference)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The average in the model's variables, as long as this lasts.

        Replicas must have the same numbers: they all get the first one's back.
        """
        kept = [variable.numpy() for variable in self._variables]
        _assign(self._variables, self.averages)
        try:
            yield
        finally:
            _assign(self._variables, kept)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
