"""SGD whose update is one kernel a variable."""

import keras
import tensorflow as tf


class SGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` without its temporary tensors.

    Keras writes the update as products and sums. Those that need no gradient,
    momentum times velocity and weight decay times weight, are computed when a
    step begins and kept until it ends: one more copy of all weights for each.
    TensorFlow's own kernel updates weight and velocity in place once the
    gradient is there. Arguments, variables and results are Keras'.

    Call it as `keras.optimizers.SGD`; it needs the TensorFlow backend.

    Example:

    >>> optimizer = SGD(0.1, momentum=0.9, weight_decay=1e-4)
    """

    def update_step(self, gradient, variable, learning_rate):
        """Move one `tf.Variable` along its gradient."""
        if not self.momentum:
            return super().update_step(gradient, variable, learning_rate)
        learning_rate = tf.cast(learning_rate, variable.dtype)
        gradient = tf.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            with tf.control_dependencies([gradient]):
                decay = tf.cast(self.weight_decay, variable.dtype)
                variable.assign_sub(variable * decay * learning_rate)
        velocity = self.momentums[self._get_variable_index(variable)].value
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def _apply_weight_decay(self, variables):
        # In `update_step`, where it waits for the gradient.
        if not self.momentum:
            super()._apply_weight_decay(variables)
