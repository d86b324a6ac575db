"""Moving averages of a model's weights and batch-norm statistics."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf


class MovingAverage:
    """An exponential moving average of a model's floating-point variables.

    Keras' optimizers average trainable variables only. Batch-norm statistics
    belong to the weights that produced them, so they are averaged too, as in
    torchvision. Make it under the strategy's scope.

    Args:
        model: A `keras.Model`.
        decay: Decay per step; 0 for no average.
        begin: Step up to which the average is a copy of the model.

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
        """Update the average.

        Args:
            step: Number of the step that has just ended, from 1.
        """
        weight = tf.where(step <= max(1, self._begin), 1.0, 1 - self._decay)
        for average, variable in zip(
            self.averages, self._variables, strict=True
        ):
            # In this form, constants stay exactly the same.
            difference = variable - average
            average.assign_add(tf.cast(weight, variable.dtype) * difference)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Swap the average into the model within this context.

        All replicas must have the same values; afterwards each gets those of
        the first.
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
