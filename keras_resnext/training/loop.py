"""The outer loop: epochs, checkpoints, history. It knows no architecture."""

import dataclasses
import math
import os
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.extras import require
from keras_resnext.files import staged
from keras_resnext.preprocessing import check_classifier
from keras_resnext.preprocessing import image_size
from keras_resnext.resnext import build
from keras_resnext.training import plots
from keras_resnext.training.data import evaluation_batches
from keras_resnext.training.data import locate
from keras_resnext.training.data import open_dataset
from keras_resnext.training.data import training_batches
from keras_resnext.training.optimizer import SGD
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.step import make_evaluation_step
from keras_resnext.training.step import make_train_step
from keras_resnext.training.strategy import make_strategy
from keras_resnext.training.workdir import Run


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where training stands, handed to `on_step` after every step.

    Args:
        epoch: Number of the epoch, from 1.
        step: Steps done in all epochs so far.
        steps: Steps in the whole run.
        loss: Mean training loss in this epoch so far.
        accuracy: Training accuracy in this epoch so far.
        images_per_second: Training speed in this epoch so far.

    Example:

    >>> train(recipe, "runs/x", on_step=lambda p: print(p.step, p.loss))
    """

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model does on a whole split.

    Args:
        split: Name of the split.
        loss: Mean cross-entropy, in nats.
        labels: True classes, int64 `(examples,)`.
        predictions: Predicted classes, int64 `(examples,)`.
        in_top5: Whether the true class is among the five most probable, bool
            `(examples,)`.

    Example:

    >>> evaluate(model, "digits").accuracy
    0.9944444444444445
    """

    split: str
    loss: float
    labels: np.ndarray
    predictions: np.ndarray
    in_top5: np.ndarray

    @property
    def examples(self):
        """Number of images seen."""
        return len(self.labels)

    @property
    def accuracy(self):
        """Share of images classified right."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def top5_accuracy(self):
        """Share of images whose class is among the five most probable."""
        return float(np.mean(self.in_top5))


def train(
    recipe: Recipe,
    workdir: str | os.PathLike,
    *,
    strategy: str = "auto",
    data_dir: str | os.PathLike | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict], None] | None = None,
) -> Run:
    """Train what a recipe says, or go on where it stopped.

    After each epoch the model, the optimizer and the epoch are saved; started
    again with the same recipe and folder, training goes on after the last
    epoch saved, with the data in the order it would have had. The seeds of
    Python, NumPy and TensorFlow are set to `recipe.seed`.

    Args:
        recipe: A `Recipe`.
        workdir: Folder of the run, see `keras_resnext.training.workdir.Run`.
        strategy: Name of a `tf.distribute` strategy, see
            `keras_resnext.training.strategy.make_strategy`. Defaults to
            `"auto"`.
        data_dir: Where TFDS keeps its data sets. Defaults to TFDS' own.
        on_step: Called with a `Progress` after every step.
        on_epoch: Called with the epoch's line of the history, a dict.

    Returns:
        The finished `Run`.

    Raises:
        ValueError: if the recipe cannot work, or `workdir` holds another run
            or one of other classes, which is left untouched.
        RuntimeError: if the loss is no longer finite; the last checkpoint
            stays.
        ModuleNotFoundError: if matplotlib (extra `train`) is missing.

    Example:

    >>> run = train(Recipe(epochs=30), "runs/digits")
    >>> run.load_model().predict(images)
    """
    run = Run(workdir)
    recipe = dataclasses.replace(recipe, dataset=locate(recipe.dataset))
    run.check(recipe)
    if run.finished:
        return run
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Training needs image_data_format channels_last (keras.json); "
            f"got {keras.config.image_data_format()}."
        )
    require("matplotlib", extra="train", purpose="The learning curves")
    strategy = make_strategy(strategy)
    if recipe.batch_size % strategy.num_replicas_in_sync:
        raise ValueError(
            f"`batch_size` must be a multiple of the number of replicas, "
            f"{strategy.num_replicas_in_sync}; got {recipe.batch_size}."
        )
    data = open_dataset(recipe.dataset, data_dir)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope():
        model = build(
            recipe.model,
            form=recipe.form,
            classes=len(data.labels),
            input_shape=(recipe.image_size, recipe.image_size, 3),
        )
    data.prepare()
    run.check_labels(data.labels)  # some are known only now
    held_out = data.held_out_split
    steps_per_epoch = data.num_examples("train") // recipe.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            "`batch_size` must be at most the number of training images, "
            f"{data.num_examples('train')}; got {recipe.batch_size}."
        )
    run.start(recipe, data.labels)

    with strategy.scope():
        optimizer = _make_optimizer(recipe, steps_per_epoch)
        # Made here: created inside the traced step they would belong to it.
        optimizer.build(model.trainable_variables)
    epochs_done = tf.Variable(0, dtype=tf.int64, trainable=False)
    checkpoints = tf.train.CheckpointManager(
        tf.train.Checkpoint(
            model=model, optimizer=optimizer, epochs_done=epochs_done
        ),
        str(run.checkpoints),
        max_to_keep=2,
    )
    if checkpoints.latest_checkpoint:
        checkpoints.checkpoint.restore(
            checkpoints.latest_checkpoint
        ).assert_existing_objects_matched()
    first_epoch = int(epochs_done)
    history = [e for e in run.history if e["epoch"] <= first_epoch]

    train_step = make_train_step(
        strategy,
        model,
        optimizer,
        batch_size=recipe.batch_size,
        label_smoothing=recipe.label_smoothing,
    )
    evaluation_step = make_evaluation_step(model)
    for epoch in range(first_epoch, recipe.epochs):
        batches = strategy.experimental_distribute_dataset(
            training_batches(data, recipe, epoch)
        )
        loss_sum = correct = 0.0
        started = time.perf_counter()
        for step, (images, labels) in enumerate(batches, start=1):
            loss, right = train_step(images, labels)
            loss_sum, correct = loss_sum + float(loss), correct + int(right)
            if not math.isfinite(loss_sum):
                raise RuntimeError(
                    f"The loss is not finite in step {step} of epoch "
                    f"{epoch + 1}; a lower base_lr may help. {run.path} keeps "
                    "the last checkpoint."
                )
            seen = step * recipe.batch_size
            progress = Progress(
                epoch=epoch + 1,
                step=epoch * steps_per_epoch + step,
                steps=recipe.epochs * steps_per_epoch,
                loss=loss_sum / step,
                accuracy=correct / seen,
                images_per_second=seen / (time.perf_counter() - started),
            )
            if on_step:
                on_step(progress)
        batches = evaluation_batches(
            data, held_out, recipe.image_size, recipe.batch_size
        )
        result = _evaluate(evaluation_step, data, held_out, batches)
        history.append(
            {
                "epoch": epoch + 1,
                "learning_rate": float(optimizer.learning_rate),
                "loss": progress.loss,
                "accuracy": progress.accuracy,
                "held_out_loss": result.loss,
                "held_out_accuracy": result.accuracy,
                "images_per_second": progress.images_per_second,
            }
        )
        run.write_history(history)
        epochs_done.assign(epoch + 1)
        checkpoints.save(checkpoint_number=epoch + 1)
        if on_epoch:
            on_epoch(history[-1])

    with staged(run.learning_curves, overwrite=True) as new:
        plots.learning_curves(history, new)
    with staged(run.model_file, overwrite=True) as new:
        model.save(new)
    return run


def evaluate(
    model: keras.Model,
    dataset: str | os.PathLike,
    *,
    split: str | None = None,
    batch_size: int = 64,
    data_dir: str | os.PathLike | None = None,
    transform: Callable | None = None,
) -> Evaluation:
    """Classify every image of a split once.

    Args:
        model: A `keras.Model` that ends in class probabilities, for images
            that went through `keras_resnext.preprocess_input`, or through
            `transform`.
        dataset: Name or folder of a data set, see
            `keras_resnext.training.data.open_dataset`.
        split: Name of the split. Defaults to the one that is not trained on.
        batch_size: Images in a batch. Defaults to 64.
        data_dir: Where TFDS keeps its data sets. Defaults to TFDS' own.
        transform: What makes the model's input of a stored image, such as a
            weights record's `transform()`. Defaults to `None`: the largest
            centred square, resized, and `preprocess_input`.

    Returns:
        An `Evaluation` of exactly the split's images.

    Raises:
        ValueError: if there is no such data set or split, or the model has
            another number of classes.
        RuntimeError: if the images seen are not as many as the split has.

    Example:

    >>> evaluate(Run("runs/digits").load_model(), "digits").examples
    360
    """
    data = open_dataset(dataset, data_dir)
    check_classifier(model)
    classes, size = model.output_shape[-1], image_size(model)
    if classes != len(data.labels):
        raise ValueError(
            f"`dataset` must have the model's {classes} classes; {dataset} "
            f"has {len(data.labels)}."
        )
    data.prepare()
    split = split or data.held_out_split
    batches = evaluation_batches(data, split, size, batch_size, transform)
    return _evaluate(make_evaluation_step(model), data, split, batches)


def _evaluate(step, data, split, batches):
    loss_sum, labels, predictions, in_top5 = 0.0, [], [], []
    for batch in batches:
        batch_loss, batch_predictions, batch_in_top5 = step(*batch)
        loss_sum += float(batch_loss)
        labels.append(batch[1].numpy())
        predictions.append(batch_predictions.numpy())
        in_top5.append(batch_in_top5.numpy())
    labels = np.concatenate(labels)
    if len(labels) != data.num_examples(split):
        raise RuntimeError(
            f"Expected the {data.num_examples(split)} images of the split "
            f"{split}; saw {len(labels)}."
        )
    return Evaluation(
        split,
        loss_sum / len(labels),
        labels,
        np.concatenate(predictions),
        np.concatenate(in_top5),
    )


def _make_optimizer(recipe, steps_per_epoch):
    warmup_steps = round(recipe.warmup_epochs * steps_per_epoch)
    optimizer = SGD(
        keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if warmup_steps else recipe.peak_lr,
            decay_steps=max(1, recipe.epochs * steps_per_epoch - warmup_steps),
            warmup_target=recipe.peak_lr if warmup_steps else None,
            warmup_steps=warmup_steps,
        ),
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer
