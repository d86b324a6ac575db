"""Optimizers by recipe: one kernel a variable, a rate of its own for the head.

Keras applies updates as many products and sums; TensorFlow's kernels do them
in place.
"""

import keras
import tensorflow as tf

from keras_resnext.training.recipe import Recipe

_NOT_DECAYED = ("bias", "beta", "gamma")


class _Rates:
    """An optimizer some of whose variables have rates of their own."""

    def set_rate_factors(self, factors):
        """Multiples of the learning rate, in the order of the variables."""
        self._rate_factors = tuple(factors)

    def _rate(self, variable, learning_rate):
        if not getattr(self, "_rate_factors", None):
            return learning_rate
        factor = self._rate_factors[self._get_variable_index(variable)]
        return learning_rate * factor


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


class RatedSGD(_Rates, SGD):
    """SGD whose weight decay is part of the gradient.

    As in the paper's code and in PyTorch: it goes through the momentum, which
    makes it 1 / (1 - momentum) times as strong as Keras' decay, which is
    taken off the weights themselves.
    """

    def __init__(self, *, l2_weight_decay, **arguments):
        super().__init__(**arguments)
        self.l2_weight_decay = l2_weight_decay

    def update_step(self, gradient, variable, learning_rate):
        """Move one `tf.Variable` along its gradient."""
        if self.l2_weight_decay and self._use_weight_decay(variable):
            gradient += self.l2_weight_decay * tf.cast(variable, gradient.dtype)
        learning_rate = self._rate(variable, learning_rate)
        super().update_step(gradient, variable, learning_rate)


class RatedAdamW(_Rates, keras.optimizers.Adam):
    """AdamW whose weight decay has each variable's rate, as PyTorch's."""

    def __init__(self, *, decoupled_weight_decay, **arguments):
        super().__init__(**arguments)
        self.decoupled_weight_decay = decoupled_weight_decay

    def update_step(self, gradient, variable, learning_rate):
        """Move one `tf.Variable` along its gradient."""
        learning_rate = self._rate(variable, learning_rate)
        if self.decoupled_weight_decay and self._use_weight_decay(variable):
            with tf.control_dependencies([gradient]):
                decay = tf.cast(
                    self.decoupled_weight_decay * learning_rate, variable.dtype
                )
                variable.assign_sub(variable * decay)
        super().update_step(gradient, variable, learning_rate)


def make_optimizer(recipe: Recipe, steps_per_epoch: int, variables):
    """The optimizer that a recipe describes, with its learning rate.

    Args:
        recipe: A `Recipe`.
        steps_per_epoch: Steps in an epoch.
        variables: What it trains, a list of `keras.Variable`. Its own
            variables are made here: made inside the traced step, they would
            belong to that.

    Returns:
        A built Keras optimizer; in mixed float16 it scales the loss.

    Example:

    >>> optimizer = make_optimizer(Recipe(), 44, model.trainable_variables)
    """
    arguments = {
        "learning_rate": _Schedule(
            recipe.peak_lr,
            warmup_steps=round(recipe.warmup_epochs * steps_per_epoch),
            steps=recipe.epochs * steps_per_epoch,
            drop_steps=[e * steps_per_epoch for e in recipe.milestones],
            gamma=recipe.gamma,
        ),
    }
    if recipe.optimizer == "sgd":
        optimizer = RatedSGD(
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            l2_weight_decay=recipe.weight_decay,
            **arguments,
        )
    else:
        optimizer = RatedAdamW(
            beta_1=recipe.momentum,
            decoupled_weight_decay=recipe.weight_decay,
            **arguments,
        )
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay(var_names=list(_NOT_DECAYED))
    if recipe.head_lr_factor != 1:
        optimizer.set_rate_factors(
            recipe.head_lr_factor if v.path.startswith("predictions/") else 1.0
            for v in variables
        )
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Up along a line, then down along a cosine or in steps."""

    def __init__(self, peak, *, warmup_steps, steps, drop_steps, gamma):
        self.peak, self.warmup_steps, self.steps = peak, warmup_steps, steps
        self.drop_steps, self.gamma = drop_steps, gamma

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        if self.drop_steps:
            drops = tf.reduce_sum(tf.cast(step >= self.drop_steps, tf.float32))
            factor = tf.pow(self.gamma, drops)
        else:
            done = step - self.warmup_steps
            share = done / max(1, self.steps - self.warmup_steps)
            share = tf.clip_by_value(share, 0.0, 1.0)
            factor = 0.5 * (1 + tf.cos(3.141592653589793 * share))
        warm = tf.minimum(step / max(1, self.warmup_steps), 1.0)
        return self.peak * tf.where(step < self.warmup_steps, warm, factor)

    def get_config(self):
        return dict(vars(self))
