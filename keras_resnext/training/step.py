"""Compiled training and evaluation steps.

Keras 3.15's `fit` fails under multi-worker strategies (keras#20585);
`strategy.run` with the optimizer's `apply` works.
"""

import keras
import tensorflow as tf

from keras_resnext.training.average import MovingAverage
from keras_resnext.training.recipe import Recipe

# The order of the sums that `make_train_steps` returns.
LOSS, CORRECT, IMAGES, WAITED, STOP = range(5)


def make_train_steps(
    strategy,
    model,
    optimizer,
    recipe: Recipe,
    *,
    average: MovingAverage | None = None,
    prepare=lambda images: images,
    class_weights=None,
    time_input: bool = True,
):
    """Build a function that trains for some steps in one call.

    Args:
        strategy: The `tf.distribute.Strategy` that model and optimizer were
            made under.
        model: A `keras.Model` that ends in class probabilities.
        optimizer: A built Keras optimizer.
        recipe: A `Recipe`.
        average: The model's `MovingAverage`. Defaults to `None`.
        prepare: Function from a batch of pixels, float32, to the model's
            input, such as `preprocess_input`. Defaults to the identity.
        class_weights: Weight of each class in the loss, `(classes,)`; of a
            mixed image, the mean by its probabilities. Defaults to `None`,
            which weights all alike.
        time_input: Whether to measure how long steps wait for images, which
            TensorFlow's deterministic mode does not allow. Defaults to `True`.

    Returns:
        A function of a distributed iterator over images, probabilities and
        weights (`training_batches`), a number of steps, and this worker's stop
        flag, 0 or 1. It updates the model and returns sums over all steps and
        replicas, float64 `(5,)`: losses, images classified right, weights,
        seconds that this worker waited for images, and stop flags.
    """
    replica_step = _make_replica_step(
        strategy, model, optimizer, recipe, average, prepare, class_weights
    )

    def now():
        return tf.timestamp() if time_input else tf.zeros((), tf.float64)

    def train_step(iterator, done, stop):
        # In sequence, or the wait would overlap with the last step.
        with tf.control_dependencies([done]):
            before = now()
        with tf.control_dependencies([before]):
            batch = next(iterator)
        arrived = tf.nest.map_structure(
            strategy.experimental_local_results, batch
        )
        with tf.control_dependencies(tf.nest.flatten(arrived)):
            waited = now() - before
        sums = strategy.run(replica_step, args=(*batch, stop))
        loss, correct, images, stop = _summed(strategy, sums)
        return tf.stack([loss, correct, images, waited, stop])

    return _repeated(train_step)


def _summed(strategy, values):
    """Sums over replicas, float64."""
    return [
        tf.cast(strategy.reduce("SUM", value, axis=None), tf.float64)
        for value in values
    ]


def _repeated(step):
    """Build a function that sums a step's results over some steps."""
    nothing = tf.constant(0.0, tf.float64)

    @tf.function
    def once(iterator, *arguments):
        return step(iterator, nothing, *arguments)

    @tf.function
    def many(iterator, count, *arguments):
        totals = step(iterator, nothing, *arguments)
        for _ in tf.range(count - 1):
            totals += step(iterator, totals, *arguments)
        return totals

    def some(iterator, count, *arguments):
        if count == 1:
            return once(iterator, *arguments)
        return many(iterator, tf.constant(count), *arguments)

    return some


def _make_replica_step(
    strategy, model, optimizer, recipe, average, prepare, class_weights
):
    """Build one replica's part of a training step."""
    variables = model.trainable_variables
    replicas = strategy.num_replicas_in_sync
    scales_loss = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    part_size = (
        recipe.batch_size // replicas // recipe.gradient_accumulation_steps
    )

    def differentiate(images, targets, weights):
        with tf.GradientTape() as tape:
            inputs = prepare(tf.cast(images, tf.float32))
            probabilities = model(inputs, training=True)
            losses = keras.losses.categorical_crossentropy(
                targets,
                probabilities,
                label_smoothing=recipe.label_smoothing,
            )
            losses *= tf.cast(weights, losses.dtype)
            if class_weights is not None:
                weight = tf.constant(class_weights, losses.dtype)
                losses *= tf.linalg.matvec(
                    tf.cast(targets, losses.dtype), weight
                )
            # Gradients are summed over replicas, so that each divides by the
            # global batch size, not by its own.
            loss = tf.reduce_sum(losses) / recipe.batch_size
            minimized = optimizer.scale_loss(loss)
        gradients = tape.gradient(minimized, [v.value for v in variables])
        right = tf.argmax(targets, -1) == tf.argmax(probabilities, -1)
        correct = tf.reduce_sum(weights * tf.cast(right, tf.float32))
        return tf.reduce_sum(losses), correct, gradients

    def accumulate(*batch):
        loss = tf.zeros((), model.output.dtype)
        correct = tf.constant(0.0)
        sums = [tf.zeros(v.shape, v.dtype) for v in variables]
        for part in tf.range(recipe.gradient_accumulation_steps):
            first = part * part_size
            images, targets, weights = (
                tf.ensure_shape(
                    value[first : first + part_size],
                    (part_size, *value.shape[1:]),
                )
                for value in batch
            )
            more, right, gradients = differentiate(images, targets, weights)
            loss, correct = loss + more, correct + right
            sums = [s + g for s, g in zip(sums, gradients, strict=True)]
        return loss, correct, sums

    def replica_step(images, targets, weights, stop):
        whole = recipe.gradient_accumulation_steps == 1
        loss, correct, gradients = (differentiate if whole else accumulate)(
            images, targets, weights
        )
        if recipe.global_clipnorm or scales_loss:
            # Keras clips, and checks for overflow, before gradients are summed;
            # both must happen after.
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce("SUM", gradients)
            if recipe.global_clipnorm:
                limit = tf.constant(recipe.global_clipnorm, gradients[0].dtype)
                limit = optimizer.scale_loss(limit)
                gradients, _ = tf.clip_by_global_norm(gradients, limit)
            # The optimizer sums over replicas once more.
            gradients = [g / replicas for g in gradients]
        optimizer.apply(gradients, variables)
        if average:
            average.update(optimizer.iterations)
        # `stop` as a tensor of this replica, which can be summed.
        return loss, correct, tf.reduce_sum(weights), tf.identity(stop)

    return replica_step


def make_sync_batch_stats(strategy, model, average: MovingAverage):
    """Build a function that averages batch-norm statistics over replicas.

    Without synchronisation, batch norm sees its replica's images only. Moving
    statistics matter in evaluation only, so they are averaged just before.

    Args:
        strategy: The `tf.distribute.Strategy` that `model` was made under.
        model: A `keras.Model`.
        average: Its `MovingAverage`.

    Returns:
        A function without arguments or result.
    """
    variables = [v.value for v in model.non_trainable_variables]
    variables += average.averages

    def average_statistics():
        context = tf.distribute.get_replica_context()
        for variable in variables:
            if variable.dtype.is_floating:
                mean = context.all_reduce("MEAN", tf.identity(variable))
                variable.assign(mean)

    @tf.function
    def sync_batch_stats():
        strategy.run(average_statistics)

    if strategy.num_replicas_in_sync == 1:
        return lambda: None
    return sync_batch_stats


def make_classify(model):
    """Build a function that evaluates each image of a batch.

    Args:
        model: A `keras.Model` that ends in class probabilities.

    Returns:
        A function from images and labels, int64 `(batch,)`, to losses,
        `(batch,)`, and probabilities, `(batch, classes)`.
    """

    @tf.function(reduce_retracing=True)
    def classify(images, labels):
        probabilities = model(images, training=False)
        losses = keras.losses.sparse_categorical_crossentropy(
            labels, probabilities
        )
        return losses, probabilities

    return classify


def make_evaluation_steps(strategy, model):
    """Build a function that evaluates for some steps in one call.

    Args:
        strategy: The `tf.distribute.Strategy` that `model` was made under.
        model: A `keras.Model` that ends in class probabilities.

    Returns:
        A function of a distributed iterator over images, labels and weights
        (`evaluation_batches`) and a number of steps. It returns sums over
        steps and replicas, float64 `(4,)`: losses, images classified right,
        weights, and images, including those that could not be decoded.
    """
    classify = make_classify(model)

    def replica_step(images, labels, weights):
        is_image = tf.cast(labels >= 0, tf.float32)  # else padding
        losses, probabilities = classify(images, tf.maximum(labels, 0))
        right = tf.argmax(probabilities, axis=-1) == labels
        right = tf.cast(right, tf.float32)
        losses = tf.cast(losses, tf.float32)
        return (
            tf.reduce_sum(weights * losses),
            tf.reduce_sum(weights * right),
            tf.reduce_sum(weights),
            tf.reduce_sum(is_image),
        )

    def evaluation_step(iterator, done):
        with tf.control_dependencies([done]):
            batch = next(iterator)
        sums = strategy.run(replica_step, args=batch)
        return tf.stack(_summed(strategy, sums))

    return _repeated(evaluation_step)
