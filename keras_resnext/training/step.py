"""One step: gradients on every replica, one update, sums over all replicas.

Keras 3.15's own `fit` fails under multi-worker strategies (keras#20585);
`strategy.run` with the optimizer's `apply` does not.
"""

import keras
import tensorflow as tf


def make_train_step(strategy, model, optimizer, *, batch_size, label_smoothing):
    """Build the training step.

    Args:
        strategy: The `tf.distribute.Strategy` that model and optimizer were
            made under.
        model: A `keras.Model` that ends in class probabilities.
        optimizer: A built Keras optimizer.
        batch_size: Images in a step, over all replicas together.
        label_smoothing: Probability spread evenly over all classes.

    Returns:
        A function of a distributed batch (images, labels) that updates the
        model and returns the batch's mean loss and its number of images
        classified right, both scalars.
    """
    variables = model.trainable_variables

    def replica_step(images, labels):
        with tf.GradientTape() as tape:
            probabilities = model(images, training=True)
            loss = tf.reduce_sum(
                keras.losses.categorical_crossentropy(
                    tf.one_hot(labels, probabilities.shape[-1]),
                    probabilities,
                    label_smoothing=label_smoothing,
                )
            )
            # Gradients are summed over replicas, so that each divides by the
            # batch of all of them, not by its own share.
            loss = loss / batch_size
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return loss, _count_correct(labels, probabilities)

    @tf.function
    def train_step(images, labels):
        loss, correct = strategy.run(replica_step, args=(images, labels))
        return (
            strategy.reduce("SUM", loss, axis=None),
            strategy.reduce("SUM", correct, axis=None),
        )

    return train_step


def make_evaluation_step(model):
    """Build the evaluation step.

    Args:
        model: A `keras.Model` that ends in class probabilities.

    Returns:
        A function of a batch (images, labels) that returns the batch's summed
        loss, float32, the predicted classes, int64 `(batch,)`, and whether
        the five most probable have the true one, bool `(batch,)`.
    """

    @tf.function(reduce_retracing=True)
    def evaluation_step(images, labels):
        probabilities = model(images, training=False)
        loss = keras.losses.sparse_categorical_crossentropy(
            labels, probabilities
        )
        # Not `in_top_k`, which counts ties for the better: of a sure network,
        # most probabilities are 0.
        best = tf.math.top_k(probabilities, min(5, probabilities.shape[-1]))
        labels = tf.cast(labels, tf.int32)
        return (
            tf.reduce_sum(loss),
            tf.argmax(probabilities, axis=-1),
            tf.reduce_any(best.indices == labels[:, None], axis=-1),
        )

    return evaluation_step


def _count_correct(labels, probabilities):
    right = tf.equal(tf.argmax(probabilities, axis=-1), labels)
    return tf.reduce_sum(tf.cast(right, tf.int32))
