"""The outer loop: epochs, checkpoints, history. It knows no architecture."""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.classifier import Classifier
from keras_resnext.classifier import check_on_bad_image
from keras_resnext.extras import require
from keras_resnext.files import staged
from keras_resnext.training import plots
from keras_resnext.training import step as steps
from keras_resnext.training.average import MovingAverage
from keras_resnext.training.checkpoints import Checkpoints
from keras_resnext.training.datasets import locate
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.evaluation import NO_IMAGE_DECODED
from keras_resnext.training.optimizer import make_optimizer
from keras_resnext.training.pipeline import BadImages
from keras_resnext.training.pipeline import InputShard
from keras_resnext.training.pipeline import evaluation_batches
from keras_resnext.training.pipeline import training_batches
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.run import Run
from keras_resnext.training.strategy import is_chief
from keras_resnext.training.strategy import make_strategy
from keras_resnext.training.strategy import worker_name
from keras_resnext.transforms import preprocess_input
from keras_resnext.variants import build


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where training stands, handed to `on_step` after each call of steps.

    Args:
        epoch: Number of the epoch, from 1.
        step: Steps done in all epochs so far.
        steps: Steps in the whole run.
        last_loss: Mean training loss of the steps since the last call.
        loss: Mean training loss in this epoch so far.
        accuracy: Training accuracy in this epoch so far.
        images_per_second: Training speed since this process entered the
            epoch.
        input_wait: Share of that time in which steps waited for images; `None`
            with `deterministic`, which forbids to measure it.

    Example:

    >>> train(recipe, "runs/x", on_step=lambda p: print(p.step, p.loss))
    """

    epoch: int
    step: int
    steps: int
    last_loss: float
    loss: float
    accuracy: float
    images_per_second: float
    input_wait: float | None


class TrainingStoppedError(RuntimeError):
    """Training was asked to stop (SIGTERM), and has saved where it was."""

    exit_status = 128 + signal.SIGTERM  # as of a process that the signal ends


def train(
    recipe: Recipe,
    workdir: str | os.PathLike,
    *,
    strategy: str | tf.distribute.Strategy = "auto",
    data_dir: str | os.PathLike | None = None,
    steps_per_execution: int = 0,
    save_every_steps: int = 0,
    keep: int = 2,
    on_bad_image: str = "error",
    deterministic: bool = False,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict], None] | None = None,
) -> Run:
    """Train what a recipe says, or go on where it stopped.

    Model, optimizer, moving averages and sums of the epoch are saved after
    each epoch, and in between if asked for. Started again with the same
    recipe and folder, training goes on after the last step saved, with the
    images in the order they would have had. SIGTERM saves and stops. The seeds
    of Python, NumPy and TensorFlow are set to `recipe.seed`.

    Args:
        recipe: A `Recipe`.
        workdir: Folder of the run, see `keras_resnext.training.run.Run`.
            Several workers share it.
        strategy: Name of a `tf.distribute` strategy, see
            `keras_resnext.training.strategy.make_strategy`, or a strategy.
            Defaults to `"auto"`.
        data_dir: Where TFDS keeps its data sets. Defaults to TFDS' own.
        steps_per_execution: Steps that run inside TensorFlow's graph before
            Python sees the loss. Defaults to 0: 1 on CPUs, 10 on GPUs and TPUs.
        save_every_steps: Steps between checkpoints within an epoch. Defaults
            to 0: at its end only.
        keep: How many of the newest checkpoints are kept. Defaults to 2.
        on_bad_image: `"error"`, or `"skip"` to leave out images that cannot
            be decoded; the run's `bad_images.txt` names them. Defaults to
            `"error"`.
        deterministic: Whether operations give the same bits each time, which
            may be slower. It holds for the rest of the process. Defaults to
            `False`.
        on_step: Called with a `Progress` after each call of steps.
        on_epoch: Called with the epoch's line of the history, a dict.

    Returns:
        The finished `Run`.

    Raises:
        ValueError: if the recipe cannot work, or `workdir` holds another run
            or one of other classes, which is left untouched; or if an image
            cannot be decoded.
        RuntimeError: if the loss is no longer finite; the last checkpoint
            stays.
        TrainingStoppedError: after SIGTERM.
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
    _check_options(steps_per_execution, save_every_steps, keep, on_bad_image)
    require("matplotlib", extra="train", purpose="The learning curves")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if not isinstance(strategy, tf.distribute.Strategy):
        strategy = make_strategy(strategy)
    steps_per_execution = _steps_per_execution(steps_per_execution, strategy)
    parts = strategy.num_replicas_in_sync * recipe.gradient_accumulation_steps
    if recipe.batch_size % parts:
        raise ValueError(
            f"`batch_size` must be a multiple of the number of replicas, "
            f"{strategy.num_replicas_in_sync}, times "
            "`gradient_accumulation_steps`, "
            f"{recipe.gradient_accumulation_steps}; got {recipe.batch_size}."
        )
    data = open_dataset(recipe.dataset, data_dir)
    keras.utils.set_random_seed(recipe.seed)
    with strategy.scope():
        model = _build_model(recipe, len(data.labels))
    _prepare(data, strategy)
    run.check_labels(data.labels)  # some are known only now
    if not data.num_examples("train") // recipe.batch_size:
        raise ValueError(
            "`batch_size` must be at most the number of training images, "
            f"{data.num_examples('train')}; got {recipe.batch_size}."
        )
    if is_chief(strategy):
        run.start(recipe, data.labels)
    training = _Training(
        recipe,
        run,
        strategy,
        data,
        model,
        keep=keep,
        bad=BadImages(on_bad_image == "skip"),
        deterministic=deterministic,
    )
    with _stop_requested() as stop:
        training.run_epochs(
            stop=stop,
            steps_per_execution=steps_per_execution,
            save_every_steps=save_every_steps,
            on_step=on_step or (lambda progress: None),
            on_epoch=on_epoch or (lambda entry: None),
        )
    _barrier(strategy)  # or the run would not yet have what others write
    return run


def _check_options(steps_per_execution, save_every_steps, keep, on_bad_image):
    for name, value, least in (
        ("steps_per_execution", steps_per_execution, 0),
        ("save_every_steps", save_every_steps, 0),
        ("keep", keep, 1),
    ):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}.")
    check_on_bad_image(on_bad_image)
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Training needs image_data_format channels_last (keras.json); "
            f"got {keras.config.image_data_format()}."
        )


def _steps_per_execution(wanted, strategy):
    gpus = tf.config.list_logical_devices("GPU")
    if gpus or isinstance(strategy, tf.distribute.TPUStrategy):
        return wanted or 10
    if wanted > 1 and len(tf.config.list_logical_devices("CPU")) > 1:
        # Loops over several of them hang once TensorFlow's graph optimizer
        # has been over their dependencies.
        raise ValueError(
            "`steps_per_execution` must be 0 or 1 with several logical CPUs; "
            f"got {wanted}."
        )
    return wanted or 1


def _build_model(recipe, classes):
    """The network to train, under the strategy's scope."""
    size = recipe.image_size
    if recipe.final_image_size != size:
        size = None  # it is trained and evaluated at different ones
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.precision)
    try:
        model = build(
            recipe.model,
            form=recipe.form,
            residual=recipe.residual,
            drop_path_rate=recipe.drop_path_rate,
            classes=classes,
            input_shape=(size, size, 3),
            weights=recipe.weights or None,
        )
    finally:
        keras.config.set_dtype_policy(policy)
    _freeze(model, recipe.freeze_until)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = recipe.sync_batch_norm
    return model


def _freeze(model, last):
    """Stop training all layers up to and with those of one part."""
    parts = dict.fromkeys(
        layer.name.partition("_")[0]
        for layer in model.layers
        if layer.weights and layer.name != "predictions"
    )
    if last and last not in parts:
        raise ValueError(
            f"`freeze_until` must be empty or one of {', '.join(parts)}; "
            f"got {last!r}."
        )
    frozen = list(parts)[: list(parts).index(last) + 1] if last else ()
    for layer in model.layers:
        if layer.name.partition("_")[0] in frozen:
            layer.trainable = False


def _prepare(data, strategy):
    """Download and write the data set, by one worker first."""

    if is_chief(strategy):
        data.prepare()
    _barrier(strategy)
    if not is_chief(strategy):
        data.prepare()


def _barrier(strategy):
    """Wait until all workers are here."""

    @tf.function
    def meet():
        one = strategy.run(lambda: tf.constant(1.0))
        return strategy.reduce("SUM", one, axis=None)

    meet()


@contextlib.contextmanager
def _stop_requested():
    """A function that tells whether SIGTERM has come."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals go to the main thread
        return
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_scalar(name, value):
    """`tf.summary.scalar`, which needs TensorBoard installed, without it."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)


class _Training:
    """A run in progress: what `train` prepared, and where it stands."""

    def __init__(
        self, recipe, run, strategy, data, model, *, keep, bad, deterministic
    ):
        self.recipe, self.run, self.strategy = recipe, run, strategy
        self.data, self.model, self.bad = data, model, bad
        self.writes = is_chief(strategy)
        self.steps_per_epoch = data.num_examples("train") // recipe.batch_size
        with strategy.scope():
            self.optimizer = make_optimizer(
                recipe, self.steps_per_epoch, model.trainable_variables
            )
            self.average = MovingAverage(
                model,
                recipe.ema_decay,
                begin=round(recipe.warmup_epochs * self.steps_per_epoch),
            )
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Of the epoch so far, see `make_train_steps`.
        self.totals = tf.Variable(tf.zeros(5, tf.float64), trainable=False)
        self.best = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self.checkpoints = Checkpoints(
            run.checkpoints,
            keep=keep,
            model=model,
            optimizer=self.optimizer,
            averages=self.average.averages,
            step=self.step,
            totals=self.totals,
            best=self.best,
        )
        self.checkpoints.restore()
        self._check_together()
        # What is kept of the history is what the checkpoint knows of.
        epochs_done = int(self.step) // self.steps_per_epoch
        self.history = [e for e in run.history if e["epoch"] <= epochs_done]
        self.deterministic = deterministic
        self.train_steps = steps.make_train_steps(
            strategy,
            model,
            self.optimizer,
            recipe,
            average=self.average,
            prepare=preprocess_input,
            time_input=not deterministic,
        )
        self.evaluation_steps = steps.make_evaluation_steps(strategy, model)
        self.sync_batch_stats = steps.make_sync_batch_stats(
            strategy, model, self.average
        )
        self.final_model = build(
            recipe.model,
            form=recipe.form,
            residual=recipe.residual,
            classes=len(data.labels),
            input_shape=(recipe.final_image_size,) * 2 + (3,),
        )
        self.summaries = tf.summary.create_noop_writer()
        if self.writes:
            self.summaries = tf.summary.create_file_writer(str(run.tensorboard))

    def _check_together(self):
        """Refuse to go on from another step than the other workers."""

        @tf.function
        def of_all(step):
            step = self.strategy.run(tf.identity, args=(step,))
            return self.strategy.gather(step, axis=0)

        found = of_all(tf.constant([int(self.step)])).numpy()
        if np.ptp(found):
            raise RuntimeError(
                "All workers must go on from the same checkpoint; the newest "
                f"that they can read in {self.run.checkpoints} are of steps "
                f"{', '.join(map(str, sorted(set(found.tolist()))))}."
            )

    def run_epochs(self, **options):
        """Train from where it stands to the end."""
        for epoch in range(
            int(self.step) // self.steps_per_epoch, self.recipe.epochs
        ):
            progress = self._run_epoch(epoch, **options)
            self._check_finite(progress.step)
            self.sync_batch_stats()
            with self.average.swapped_in():
                loss, accuracy = self._evaluate(options["steps_per_execution"])
                self._keep_model(accuracy)
            self._note(progress, loss, accuracy)
            self.totals.assign(tf.zeros_like(self.totals))
            self._save()
            options["on_epoch"](self.history[-1])
        if self.writes:
            with staged(self.run.learning_curves, overwrite=True) as new:
                plots.learning_curves(self.history, new)
            with self.average.swapped_in():
                self._write_model(self.run.model_file)

    def _run_epoch(
        self,
        epoch,
        *,
        stop,
        steps_per_execution,
        save_every_steps,
        on_step,
        on_epoch,
    ):
        end = (epoch + 1) * self.steps_per_epoch
        first = int(self.step)
        batches = iter(
            self._distributed(
                training_batches,
                self.recipe,
                epoch,
                first_step=first - epoch * self.steps_per_epoch,
            )
        )
        started, waited = time.perf_counter(), 0.0
        progress = self._progress(epoch, 0, 0, started, 0.0)
        while (step := int(self.step)) < end:
            count = min(steps_per_execution, end - step)
            if save_every_steps:
                count = min(count, save_every_steps - step % save_every_steps)
            wish = tf.constant(1.0 if stop() else 0.0)
            sums = self.train_steps(batches, count, wish).numpy()
            self.bad.check()
            self.totals.assign_add(sums)
            self.step.assign_add(count)
            step += count
            if not math.isfinite(sums[steps.LOSS]):
                raise RuntimeError(
                    f"The loss is not finite in step {step} (epoch "
                    f"{epoch + 1}); a lower base_lr may help. "
                    f"{self.run.path} keeps the last checkpoint."
                )
            waited += sums[steps.WAITED]
            progress = self._progress(
                epoch, step - first, sums, started, waited
            )
            with self.summaries.as_default(step):
                _write_scalar("training/loss", progress.last_loss)
                _write_scalar("learning_rate", self._learning_rate())
            on_step(progress)
            # At the end of an epoch, once that is evaluated and saved.
            if sums[steps.STOPS] and step < end:
                self._save()
                raise TrainingStoppedError(
                    f"Stopped after step {step} of "
                    f"{self.recipe.epochs * self.steps_per_epoch}; the same "
                    "training started again goes on from there."
                )
            if save_every_steps and step % save_every_steps == 0 and step < end:
                self._save()
        return progress

    def _progress(self, epoch, done, sums, started, waited):
        seconds = time.perf_counter() - started
        totals = self.totals.numpy()
        images = max(1.0, totals[steps.IMAGES])
        return Progress(
            epoch=epoch + 1,
            step=int(self.step),
            steps=self.recipe.epochs * self.steps_per_epoch,
            last_loss=(
                float(sums[steps.LOSS] / max(1.0, sums[steps.IMAGES]))
                if done
                else math.nan
            ),
            loss=float(totals[steps.LOSS] / images),
            accuracy=float(totals[steps.CORRECT] / images),
            images_per_second=done * self.recipe.batch_size / seconds,
            input_wait=None if self.deterministic else float(waited / seconds),
        )

    def _distributed(self, make_batches, *arguments, **options):
        """Batches of each replica, from an input pipeline for each worker."""

        def make(context):
            shard = InputShard(
                replicas=self.strategy.num_replicas_in_sync,
                pipelines=context.num_input_pipelines,
                pipeline=context.input_pipeline_id,
            )
            return make_batches(
                self.data, *arguments, bad=self.bad, shard=shard, **options
            )

        return self.strategy.distribute_datasets_from_function(make)

    def _evaluate(self, steps_per_execution):
        """Mean loss and accuracy on the held-out split, all of it."""
        split = self.data.val_split
        replicas = self.strategy.num_replicas_in_sync
        batch_size = -(-self.recipe.batch_size // replicas) * replicas
        batches = iter(
            self._distributed(
                evaluation_batches,
                split,
                self.recipe.eval_transform,
                batch_size,
            )
        )
        expected = self.data.num_examples(split)
        left = -(-expected // batch_size)
        totals = np.zeros(4)
        while left:
            count = min(steps_per_execution, left)
            totals += self.evaluation_steps(batches, count).numpy()
            left -= count
            self.bad.check()
        loss, correct, images, seen = totals
        if seen != expected:
            raise RuntimeError(
                f"Expected the {expected} images of the split {split}; saw "
                f"{seen:.0f}."
            )
        if not images:
            raise ValueError(NO_IMAGE_DECODED.format(split))
        return loss / images, correct / images

    def _check_finite(self, step):
        """A loss tells of the weights before its step, not after."""
        for variable in self.model.variables:
            if not tf.reduce_all(tf.math.is_finite(variable.value)):
                raise RuntimeError(
                    f"{variable.path} is not finite after step {step}; a "
                    f"lower base_lr may help. {self.run.path} keeps the last "
                    "checkpoint."
                )

    def _keep_model(self, accuracy):
        """Write the model if it is the best so far."""
        if accuracy > float(self.best):
            self.best.assign(accuracy)
            if self.writes:
                self._write_model(self.run.best_model_file)

    def _write_model(self, path):
        self.final_model.set_weights(self.model.get_weights())
        classifier = Classifier(
            self.final_model, self.data.labels, self.recipe.eval_transform
        )
        classifier.save(path, overwrite=True)

    def _note(self, progress, loss, accuracy):
        entry = {
            "epoch": progress.epoch,
            "learning_rate": self._learning_rate(),
            "loss": progress.loss,
            "accuracy": progress.accuracy,
            "val_loss": float(loss),
            "val_accuracy": float(accuracy),
            "images_per_second": progress.images_per_second,
            "input_wait": progress.input_wait,
        }
        self.history.append(entry)
        if not self.writes:
            return
        self.run.write_history(self.history)
        with self.summaries.as_default(progress.step):
            for name in ("loss", "accuracy"):
                _write_scalar(f"epoch/{name}", entry[name])
                _write_scalar(f"val/{name}", entry[f"val_{name}"])
        self.summaries.flush()

    def _learning_rate(self):
        return float(self.optimizer.learning_rate)

    def _save(self):
        self._check_finite(int(self.step))
        self.sync_batch_stats()
        # Before: what is trained on later does not meet them again.
        self.run.write_bad_images(self.bad.names, worker_name(self.strategy))
        if self.writes:
            self.checkpoints.save(int(self.step))
