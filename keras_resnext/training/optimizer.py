"""Optimizers: Keras' SGD in one kernel, and PyTorch's SGD and AdamW."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.extras import require_tensorflow
from keras_resnext.names import CLASSIFIER
from keras_resnext.training.recipe import Recipe

require_tensorflow("keras_resnext.training.optimizer")

_NOT_DECAYED = ("bias", "beta", "gamma")


class _Rates:
    """Mixin for optimizers with a learning rate factor for each variable."""

    def set_rate_factors(self, factors):
        """Set the factors, in the order of the variables."""
        self._rate_factors = tuple(factors)

    def _rate(self, variable, learning_rate):
        if not getattr(self, "_rate_factors", None):
            return learning_rate
        factor = self._rate_factors[self._get_variable_index(variable)]
        return learning_rate * factor


@keras.saving.register_keras_serializable(package="keras_resnext")
class SGD(keras.optimizers.SGD):
    """`keras.optimizers.SGD` without its temporary tensors.

    Keras writes the update as products and sums. Those that do not depend on
    the gradient, momentum times velocity and weight decay times weight, are
    computed when a step begins and kept until it ends: each is one more copy
    of all weights. TensorFlow's own kernel updates weight and velocity in
    place. Arguments, variables and results are the same as Keras'.

    It needs the TensorFlow backend.

    Example:

    >>> optimizer = SGD(0.1, momentum=0.9, weight_decay=1e-4)
    """

    _apply_momentum = staticmethod(tf.raw_ops.ResourceApplyKerasMomentum)

    def update_step(self, gradient, variable, learning_rate):
        """Update one `tf.Variable`."""
        if not self.momentum:
            return super().update_step(gradient, variable, learning_rate)
        learning_rate = tf.cast(learning_rate, variable.dtype)
        gradient = tf.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            with tf.control_dependencies([gradient]):
                decay = tf.constant(self.weight_decay, variable.dtype)
                variable.assign_sub(variable * decay * learning_rate)
        velocity = self.momentums[self._get_variable_index(variable)].value
        self._apply_momentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def _apply_weight_decay(self, variables):
        # With momentum, `update_step` does it.
        if not self.momentum:
            super()._apply_weight_decay(variables)


@keras.saving.register_keras_serializable(package="keras_resnext")
class RatedSGD(_Rates, SGD):
    """SGD as the paper's code and PyTorch have it.

    Their velocity is a sum of gradients, which the learning rate multiplies
    when a weight is updated; Keras' has the rate of each step in it. Under a
    schedule these are two algorithms: after a drop of the rate, Keras' goes
    on at the old one for some steps. L2 weight decay is added to the
    gradient, and so is 1 / (1 - momentum) times as strong as Keras' decoupled
    decay.
    """

    _apply_momentum = staticmethod(tf.raw_ops.ResourceApplyMomentum)

    def __init__(self, *, l2_weight_decay, **arguments):
        super().__init__(**arguments)
        self.l2_weight_decay = l2_weight_decay

    def get_config(self):
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "l2_weight_decay": self.l2_weight_decay,
        }

    def update_step(self, gradient, variable, learning_rate):
        """Update one `tf.Variable`."""
        if self.l2_weight_decay and self._use_weight_decay(variable):
            gradient += self.l2_weight_decay * tf.cast(variable, gradient.dtype)
        learning_rate = self._rate(variable, learning_rate)
        super().update_step(gradient, variable, learning_rate)


@keras.saving.register_keras_serializable(package="keras_resnext")
class RatedAdamW(_Rates, keras.optimizers.Adam):
    """AdamW as PyTorch has it.

    Weight decay follows each variable's rate. Epsilon is added to the root of
    the corrected second moment; Keras adds it before the correction, where it
    counts 1 / sqrt(1 - 0.999), 32 times, at the first step.
    """

    def __init__(self, *, decoupled_weight_decay, epsilon=1e-8, **arguments):
        super().__init__(epsilon=epsilon, **arguments)
        self.decoupled_weight_decay = decoupled_weight_decay

    def get_config(self):
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "decoupled_weight_decay": self.decoupled_weight_decay,
        }

    def update_step(self, gradient, variable, learning_rate):
        """Update one `tf.Variable`."""
        dtype = variable.dtype
        learning_rate = tf.cast(self._rate(variable, learning_rate), dtype)
        gradient = tf.cast(gradient, dtype)
        if self.decoupled_weight_decay and self._use_weight_decay(variable):
            with tf.control_dependencies([gradient]):
                decay = tf.constant(self.decoupled_weight_decay, dtype)
                variable.assign_sub(variable * decay * learning_rate)
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, dtype)
        correct_1, correct_2 = (
            # 1 - beta**step; the power itself would be rounded near 1.
            -tf.math.expm1(step * (math.log(beta) if beta else -math.inf))
            for beta in (self.beta_1, self.beta_2)
        )
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.zeros([], dtype),  # corrected here
            beta2_power=tf.zeros([], dtype),
            lr=learning_rate * tf.sqrt(correct_2) / correct_1,
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype) * tf.sqrt(correct_2),
            grad=gradient,
        )


def make_optimizer(
    recipe: Recipe, steps_per_epoch: int, variables, *, head_only: bool = False
):
    """The optimizer that a recipe describes, with its learning rate.

    Args:
        recipe: A `Recipe`.
        steps_per_epoch: Steps in an epoch.
        variables: The `keras.Variable`s to train.
        head_only: Whether it is for the first `head_epochs`, which have a
            learning rate of their own. Defaults to `False`.

    Returns:
        A Keras optimizer, already built, because variables made inside a
        traced step would belong to its graph; in mixed float16 it scales the
        loss.

    Example:

    >>> optimizer = make_optimizer(Recipe(), 44, model.trainable_variables)
    """
    make_schedule = _head_schedule if head_only else _schedule
    schedule = make_schedule(recipe, steps_per_epoch)
    if recipe.optimizer == "sgd":
        optimizer = RatedSGD(
            momentum=recipe.momentum,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            l2_weight_decay=recipe.weight_decay,
            learning_rate=schedule,
        )
    else:
        optimizer = RatedAdamW(
            beta_1=recipe.momentum,
            decoupled_weight_decay=recipe.weight_decay,
            learning_rate=schedule,
        )
    if not recipe.decay_all:
        optimizer.exclude_from_weight_decay(var_names=list(_NOT_DECAYED))
    if recipe.head_lr_factor != 1 and not head_only:
        optimizer.set_rate_factors(
            recipe.head_lr_factor
            if v.path.startswith(f"{CLASSIFIER}/")
            else 1.0
            for v in variables
        )
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def _head_schedule(recipe, steps_per_epoch):
    """The learning rate by step while only the classifier is trained."""
    return keras.optimizers.schedules.CosineDecay(
        _as_floatx(recipe.head_learning_rate),
        recipe.head_epochs * steps_per_epoch,
    )


def _schedule(recipe, steps_per_epoch):
    """The learning rate by step: a linear warm-up, then cosine or steps."""
    warmup_steps = round(recipe.warmup_epochs * steps_per_epoch)
    # This optimizer's steps begin after those of the head alone.
    first = recipe.schedule_start - recipe.head_epochs
    if recipe.schedule == "step":
        milestones = [e * steps_per_epoch for e in recipe.milestones]
        schedule = _Steps(
            recipe.peak_lr, warmup_steps, milestones, recipe.gamma
        )
    else:
        epochs = recipe.epochs - recipe.schedule_start
        schedule = keras.optimizers.schedules.CosineDecay(
            _as_floatx(0.0 if warmup_steps else recipe.peak_lr),
            max(1, epochs * steps_per_epoch - warmup_steps),
            warmup_target=_as_floatx(recipe.peak_lr) if warmup_steps else None,
            warmup_steps=warmup_steps,
        )
    return _Later(schedule, first * steps_per_epoch) if first else schedule


def _as_floatx(rate):
    """As an array, because Keras makes float32 of Python floats."""
    return np.asarray(rate, keras.config.floatx())


class _Later(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that starts at a step other than 0."""

    def __init__(self, schedule, first_step):
        self.schedule, self.first_step = schedule, first_step

    def __call__(self, step):
        step = tf.cast(step, tf.int64) - self.first_step
        return self.schedule(tf.maximum(step, 0))

    def get_config(self):
        return dict(vars(self))


class _Steps(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then drops; Keras has no such schedule."""

    def __init__(self, peak, warmup_steps, milestones, gamma):
        self.peak, self.warmup_steps = peak, warmup_steps
        self.milestones, self.gamma = milestones, gamma

    def __call__(self, step):
        step = tf.cast(step, keras.config.floatx())
        drops = tf.reduce_sum(tf.cast(step >= self.milestones, step.dtype))
        warmup = tf.minimum(step / max(1, self.warmup_steps), 1.0)
        warmup = tf.where(step < self.warmup_steps, warmup, 1.0)
        return self.peak * warmup * tf.pow(self.gamma, drops)

    def get_config(self):
        return dict(vars(self))
