"""The training loop: epochs, checkpoints, metrics."""

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable
from collections.abc import Mapping
from signal import SIGTERM
from typing import Any

import keras
import tensorflow as tf

from keras_resnext.classifier import Classifier
from keras_resnext.files import clear_up
from keras_resnext.files import held
from keras_resnext.training import step as steps
from keras_resnext.training.average import MovingAverage
from keras_resnext.training.checkpoints import Checkpoints
from keras_resnext.training.datasets import ImageData
from keras_resnext.training.datasets import locate
from keras_resnext.training.evaluation import Validation
from keras_resnext.training.interrupt import TrainingStoppedError
from keras_resnext.training.interrupt import stop_flag
from keras_resnext.training.log import RunLog
from keras_resnext.training.model import build_final_model
from keras_resnext.training.model import build_model
from keras_resnext.training.model import set_observers
from keras_resnext.training.model import set_trainable
from keras_resnext.training.optimizer import make_optimizer
from keras_resnext.training.options import TrainOptions
from keras_resnext.training.pipeline import BadImages
from keras_resnext.training.pipeline import training_batches
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.run import Run
from keras_resnext.training.strategy import default_steps_per_execution
from keras_resnext.training.strategy import distributed_batches
from keras_resnext.training.strategy import fail_together
from keras_resnext.training.strategy import gather
from keras_resnext.training.strategy import is_chief
from keras_resnext.training.strategy import lost_worker_explained
from keras_resnext.training.strategy import make_strategy
from keras_resnext.training.strategy import worker_name
from keras_resnext.weights.load import find_source

_log = logging.getLogger("keras_resnext")


@dataclasses.dataclass(frozen=True)
class Progress:
    """The state of training, passed to `on_step` after each compiled call.

    Args:
        epoch: Number of the epoch, from 1.
        step: Steps done in all epochs so far.
        steps: Steps in the whole run.
        last_loss: Mean training loss of the steps since the last call.
        loss: Mean training loss in this epoch so far.
        accuracy: Training accuracy in this epoch so far.
        images_per_second: Training speed in this epoch.
        input_wait: Fraction of the time that was spent waiting for images;
            `None` with `deterministic`, which rules out measuring it.
        resumed_after: Steps already done when this process resumed the run; 0
            in a new one. Defaults to 0.

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
    resumed_after: int = 0


def train(
    recipe: Recipe,
    workdir: str | os.PathLike[str],
    options: TrainOptions | None = None,
    *,
    on_start: Callable[[ImageData], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    **overrides: Any,
) -> Run:
    """Train a recipe's model, or resume where training stopped.

    A checkpoint is saved after each epoch, and in between if
    `save_every_steps` is set. Called again with the same recipe and folder,
    training resumes from the last checkpoint and sees the same images in the
    same order. A finished run goes on if its recipe is that of `Run.extended`;
    the model that it had is kept as `model_epoch<n>.keras`. SIGTERM and Ctrl-C
    save and stop; a second Ctrl-C stops at once. One process, the chief, writes
    to the folder. The seeds of Python, NumPy and TensorFlow are set to
    `recipe.seed`.

    Args:
        recipe: A `Recipe`.
        workdir: Folder of the run, see `Run`; shared by all workers.
        options: `TrainOptions`. Defaults to `None`, their defaults.
        on_start: Called with the data set when all arguments are checked,
            before anything long begins. Defaults to `None`.
        on_step: Called with a `Progress` after each compiled call. Defaults to
            `None`.
        on_epoch: Called with each new entry of `Run.history`, a dict. Defaults
            to `None`.
        **overrides: Options by name that replace those of `options`, such as
            `strategy="mirrored"` or `save_every_steps=500`.

    Returns:
        The finished `Run`.

    Raises:
        ValueError: if the recipe cannot work, `workdir` contains another run,
            which is left untouched, the data set has changed since the run
            started, or an image cannot be decoded.
        BlockingIOError: if another process is training in `workdir`.
        OSError: if `workdir` cannot be written to, or is deleted meanwhile.
        RuntimeError: if the loss is not finite, or another worker is gone; the
            last checkpoint is kept.
        TrainingStoppedError: after SIGTERM or Ctrl-C.

    Example:

    >>> recipe = Recipe(model="resnext11_1x4d", image_size=8, batch_size=128,
    ...                 epochs=3)
    >>> run = train(recipe, "runs/new")
    >>> run.load_model().name, run.history[-1]["epoch"]
    ('resnext11_1x4d', 3)
    """
    options = dataclasses.replace(options or TrainOptions(), **overrides)
    run = Run(workdir)
    recipe = dataclasses.replace(recipe, dataset=locate(recipe.dataset))
    run.check(recipe)
    if _is_done(run, recipe):
        clear_up(run.path)  # it may have been killed when it was done
        return run
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(options.strategy)
    with lost_worker_explained(strategy):
        _check_support(recipe, options, strategy)
        data = run.open_dataset(recipe, options.data_dir)
        if recipe.weights:
            find_source(recipe.weights, recipe.model)
        if data.is_folder:
            _check_data(data, recipe, run, strategy)
        with _only_writer(run, strategy) as check_folder:
            run.check(recipe)  # or another process has written meanwhile
            if _is_done(run, recipe):
                return run
            if on_start:
                on_start(data)
            keras.utils.set_random_seed(recipe.seed)
            with strategy.scope():
                model = build_model(recipe, len(data.labels))
            _prepare(data, strategy)
            _check_data(data, recipe, run, strategy)  # now all of it is known
            _check_same_data(data, strategy)
            check_folder()
            if is_chief(strategy):
                run.start(recipe, data, options.data_dir)
            training = _Training(
                recipe, run, options, strategy, data, model, check_folder
            )
            with stop_flag() as stop:
                training.run_epochs(
                    stop,
                    on_step or (lambda progress: None),
                    on_epoch or (lambda entry: None),
                )
            gather(strategy, 0)  # until the chief has written everything
    return run


def _is_done(run, recipe):
    """Whether a run is finished with this recipe."""
    return run.finished and run.recipe == recipe


@contextlib.contextmanager
def _only_writer(run, strategy):
    """Hold the folder of a run on the chief; yield a check for all workers."""
    message = f"The chief cannot write to {run.path}; see its error."
    with contextlib.ExitStack() as stack:
        check, error = (lambda: None), None
        if is_chief(strategy):
            try:
                check = stack.enter_context(held(run.path, argument="workdir"))
            except OSError as failure:
                error = failure
        fail_together(strategy, error, message)

        def check_together():
            error = None
            try:
                check()
            except OSError as failure:
                error = failure
            fail_together(strategy, error, message)

        yield check_together


def _check_support(recipe, options, strategy):
    """Refuse what does not work with this strategy or on this machine."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Training needs image_data_format channels_last (keras.json); "
            f"got {keras.config.image_data_format()}."
        )
    several = len(tf.config.list_logical_devices("CPU")) > 1
    on_cpu = default_steps_per_execution(strategy) == 1
    if options.steps_per_execution > 1 and several and on_cpu:
        # Loops over several CPUs hang once TensorFlow's graph optimizer has
        # rewritten their dependencies.
        raise ValueError(
            "`steps_per_execution` must be 0 or 1 with several logical CPUs; "
            f"got {options.steps_per_execution}."
        )
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % (replicas * recipe.gradient_accumulation_steps):
        raise ValueError(
            "`batch_size` must be a multiple of the number of replicas, "
            f"{replicas}, times `gradient_accumulation_steps`, "
            f"{recipe.gradient_accumulation_steps}; got {recipe.batch_size}."
        )


def _check_data(data, recipe, run, strategy):
    """Refuse, on all workers, data that do not fit the run on one of them."""
    error = None
    try:
        _check_own_data(data, recipe, run)
    except (OSError, ValueError) as failure:
        error = failure
    message = f"The data set of another worker does not fit {run.path}."
    fail_together(strategy, error, f"{message} See its error.")


def _check_own_data(data, recipe, run):
    """Refuse other classes or images than the run's, and less than a batch."""
    run.check_labels(data.labels)
    data.val_split  # noqa: B018 (refuses data that has none)
    images = data.num_examples("train")
    run.check_data(data)
    if not images // recipe.batch_size:
        raise ValueError(
            "`batch_size` must be at most the number of training images, "
            f"{images}; got {recipe.batch_size}."
        )
    if not run.data_file.exists():
        _check_epochs(run, images // recipe.batch_size)


def _check_epochs(run, steps_per_epoch):
    """Refuse data so much smaller that the steps done would be more epochs.

    Of runs of earlier versions, which did not write down what their data were.
    """
    step = max(Checkpoints(run.checkpoints, keep=1).steps, default=0)
    epochs = len(run.history)
    if step // steps_per_epoch > epochs:
        raise ValueError(
            f"`dataset` must be as it was when {run.path} started; it has "
            f"images for {steps_per_epoch} steps an epoch, and the run has "
            f"done {step} steps in {epochs} whole epochs. Restore the images, "
            "or start a new run in another `workdir`."
        )


def _check_same_data(data, strategy):
    """Refuse copies of a data set that differ between workers."""
    if len(set(gather(strategy, data.fingerprint.number))) > 1:
        raise ValueError(
            "`dataset` must be the same on all workers; the images of "
            f"{data.name} differ in number, name or size."
        )


def _prepare(data, strategy):
    """Download and prepare the data set, on the chief before the others."""
    if is_chief(strategy):
        data.prepare()
    gather(strategy, 0)
    if not is_chief(strategy):
        data.prepare()


@dataclasses.dataclass(frozen=True)
class _Phase:
    """Epochs in which the same layers are trained."""

    head_only: bool
    end_epoch: int
    optimizer: keras.optimizers.Optimizer


@dataclasses.dataclass
class _Clock:
    """Time of an epoch's steps, without the calls that were traced first.

    Where all were traced, there is nothing else to go by.
    """

    started: float = dataclasses.field(default_factory=time.perf_counter)
    steps: int = 0
    waited: float = 0.0
    traced: list = dataclasses.field(default_factory=list)

    def read(self):
        """Steps per second, and the share of time spent waiting for input."""
        seconds = time.perf_counter() - self.started
        steps, waited = self.steps, self.waited
        if steps > sum(count for count, *_ in self.traced):
            for count, traced_seconds, traced_wait in self.traced:
                steps -= count
                seconds -= traced_seconds
                waited -= traced_wait
        return steps / seconds, waited / seconds


class _Training:
    """The state of a run in progress."""

    def __init__(
        self, recipe, run, options, strategy, data, model, check_folder
    ):
        self.recipe, self.run, self.options = recipe, run, options
        self.strategy, self.data, self.model = strategy, data, model
        self.check_folder = check_folder
        self.bad = BadImages(options.on_bad_image)
        self.writes = is_chief(strategy)
        self.steps_per_execution = (
            options.steps_per_execution or default_steps_per_execution(strategy)
        )
        self.steps_per_epoch = data.num_examples("train") // recipe.batch_size
        self.total_steps = recipe.epochs * self.steps_per_epoch
        set_observers(model, recipe, self.steps_per_epoch)
        self.phase = None
        self.phases = self._make_phases()
        self._restore()
        self.log = RunLog(
            run, int(self.step) // self.steps_per_epoch, writes=self.writes
        )
        self.validation = Validation(strategy, model, data, recipe, self.bad)
        self.sync_batch_stats = steps.make_sync_batch_stats(
            strategy, model, self.average
        )
        self.final_model = build_final_model(recipe, len(data.labels))
        set_observers(self.final_model, recipe, self.steps_per_epoch)

    def _make_phases(self):
        """The head alone, if the recipe says so, then the whole network."""
        phases = []
        for head_only, end in (
            (True, self.recipe.head_epochs),
            (False, self.recipe.epochs),
        ):
            if not end:
                continue
            set_trainable(self.model, self.recipe, head_only=head_only)
            with self.strategy.scope():
                optimizer = make_optimizer(
                    self.recipe,
                    self.steps_per_epoch,
                    self.model.trainable_variables,
                    head_only=head_only,
                )
            phases.append(_Phase(head_only, end, optimizer))
        return phases

    def _enter(self, phase):
        """Train what a phase trains."""
        self.phase = phase
        self.traced = set()  # numbers of steps in a call
        set_trainable(self.model, self.recipe, head_only=phase.head_only)
        weights = None
        if self.recipe.class_weight == "balanced":
            weights = balanced_weights(self.data.class_counts("train"))
        self.train_steps = steps.make_train_steps(
            self.strategy,
            self.model,
            phase.optimizer,
            self.recipe,
            average=None if phase.head_only else self.average,
            prepare=self.recipe.eval_transform.normalize_in_graph,
            class_weights=weights,
            time_input=not self.options.deterministic,
        )

    def _averaged(self):
        """A context in which the model has the weights to evaluate."""
        if self.phase.head_only:  # the average starts later
            return contextlib.nullcontext()
        return self.average.swapped_in()

    def _restore(self):
        """Make what is in a checkpoint, and read the newest one."""
        with self.strategy.scope():
            self.average = MovingAverage(
                self.model,
                self.recipe.ema_decay,
                begin=round(self.recipe.warmup_epochs * self.steps_per_epoch),
            )
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Of the epoch so far, see `make_train_steps`.
        self.totals = tf.Variable(tf.zeros(5, tf.float64), trainable=False)
        # Accuracy, loss and epoch of the best epoch so far.
        self.best = tf.Variable(
            [-1.0, math.inf, 0.0], dtype=tf.float64, trainable=False
        )
        self.checkpoints = Checkpoints(
            self.run.checkpoints,
            keep=self.options.keep,
            model=self.model,
            optimizers=[phase.optimizer for phase in self.phases],
            averages=self.average.averages,
            # Of stochastic depth; `model` does not include it.
            random_state=[
                variable.value
                for variable in self.model.variables
                if not variable.value.dtype.is_floating
            ],
            step=self.step,
            totals=self.totals,
            best=self.best,
        )
        self.checkpoints.restore()
        restored = sorted(set(gather(self.strategy, int(self.step))))
        if len(restored) > 1:
            raise RuntimeError(
                "All workers must resume from the same checkpoint; the newest "
                f"ones that they can read in {self.run.checkpoints} are of "
                f"steps {', '.join(map(str, restored))}."
            )
        self.resumed_after = int(self.step)
        self._check_result()

    def _check_result(self):
        """Say that a damaged model is written again; refuse if it cannot be."""
        file = self.run.model_file
        if not file.exists():
            return
        if not int(self.step):
            raise ValueError(
                f"{file} is damaged, and there is no checkpoint to write it "
                "again from; delete it to train from scratch."
            )
        if self.writes:
            _log.warning("%s is damaged, and is written again.", file)

    def run_epochs(self, stop, on_step, on_epoch):
        """Train to the end."""
        for epoch in range(self._epochs_done(), self.recipe.epochs):
            if self._stops_early():
                break
            phase = next(p for p in self.phases if epoch < p.end_epoch)
            if phase is not self.phase:
                self._enter(phase)
            progress = self._run_epoch(epoch, stop, on_step)
            self._check_finite(progress.step)
            self.sync_batch_stats()
            with self._averaged():
                loss, accuracy = self.validation.run(self.steps_per_execution)
                self.check_folder()
                self._keep_best(epoch + 1, accuracy, loss)
            self._log_epoch(progress, loss, accuracy)
            self.totals.assign(tf.zeros_like(self.totals))
            self._save()
            on_epoch(self.log.history[-1])
            if epoch + 1 < self.recipe.epochs:
                signal = max(gather(self.strategy, stop()))
                self._stop(int(self.step), signal)
        self.check_folder()
        self.log.draw()
        self._write_result()
        self.check_folder()  # or what was just written may be gone

    def _write_result(self):
        """Write the model that training ends with."""
        if self.recipe.early_stopping_patience:
            if self.writes:
                self.run.finish_with_best()
            return
        # Not `_averaged`: a run that was killed here enters no phase again.
        with self.average.swapped_in():
            self._write_model(self.run.model_file)

    def _epochs_done(self):
        return int(self.step) // self.steps_per_epoch

    def _stops_early(self):
        """Whether the last epochs have brought nothing better."""
        patience = self.recipe.early_stopping_patience
        begun = max(self.recipe.head_epochs, self.recipe.extended_from)
        best = max(int(self.best[2]), begun)
        return bool(patience) and self._epochs_done() - best >= patience

    def _run_epoch(self, epoch, stop, on_step):
        """Train for an epoch, or for the rest of it."""
        first, end = int(self.step), (epoch + 1) * self.steps_per_epoch
        data = distributed_batches(
            self.strategy,
            training_batches,
            self.data,
            self.recipe,
            epoch,
            bad=self.bad,
            first_step=first - epoch * self.steps_per_epoch,
        )
        batches = iter(data)
        clock = _Clock()
        # If a checkpoint was saved after the epoch's last step.
        progress = self._progress(epoch, 0, clock)
        while (step := int(self.step)) < end:
            sums = self._run_steps(batches, self._count(step, end), stop, clock)
            step = int(self.step)
            progress = self._progress(epoch, sums, clock)
            self.log.add_steps(step, progress.last_loss, self._learning_rate())
            on_step(progress)
            if step < end:  # else after the evaluation
                self._save_within_epoch(step, sums[steps.STOP], stop())
        return progress

    def _count(self, step, end):
        """Number of steps to the next call, checkpoint or epoch."""
        count = min(self.steps_per_execution, end - step)
        every = self.options.save_every_steps
        return min(count, every - step % every) if every else count

    def _run_steps(self, batches, count, stop, clock):
        """Train for some steps; see `make_train_steps` for the sums."""
        stop = tf.constant(1.0 if stop() else 0.0)
        before = time.perf_counter()
        sums = self.train_steps(batches, count, stop).numpy()
        waited = float(sums[steps.WAITED])
        clock.steps += count
        clock.waited += waited
        if count not in self.traced:
            self.traced.add(count)
            clock.traced.append((count, time.perf_counter() - before, waited))
        self.bad.check()
        self.totals.assign_add(sums)
        self.step.assign_add(count)
        if not math.isfinite(sums[steps.LOSS]):
            step = int(self.step)
            raise RuntimeError(
                f"The loss is not finite in step {step} (epoch "
                f"{-(-step // self.steps_per_epoch)}); a lower learning_rate "
                f"may help. {self.run.path} keeps the last checkpoint."
            )
        return sums

    def _save_within_epoch(self, step, stop, signal):
        """Save if it is time to; end training if a worker must stop."""
        every = self.options.save_every_steps
        if stop or (every and step % every == 0):
            self._save()
        if stop:
            self._stop(step, signal or SIGTERM)

    def _stop(self, step, signal):
        """End training if there was a signal."""
        if signal:
            raise TrainingStoppedError(
                f"Stopped after step {step} of {self.total_steps}; run the "
                "same training again to resume.",
                signal,
            )

    def _progress(self, epoch, sums, clock):
        """The `Progress` after a call, whose sums are 0 before the first."""
        steps_per_second, waited = clock.read()
        totals = self.totals.numpy()
        images = max(1.0, totals[steps.IMAGES])
        last_loss = math.nan
        if clock.steps:
            last_loss = float(sums[steps.LOSS] / max(1.0, sums[steps.IMAGES]))
        return Progress(
            epoch=epoch + 1,
            step=int(self.step),
            steps=self.total_steps,
            last_loss=last_loss,
            loss=float(totals[steps.LOSS] / images),
            accuracy=float(totals[steps.CORRECT] / images),
            images_per_second=steps_per_second * self.recipe.batch_size,
            input_wait=None if self.options.deterministic else waited,
            resumed_after=self.resumed_after,
        )

    def _check_finite(self, step):
        """Refuse weights that are not finite, which no loss has shown yet."""
        for variable in self.model.variables:
            value = variable.value
            if not value.dtype.is_floating:
                continue
            if not tf.reduce_all(tf.math.is_finite(value)):
                raise RuntimeError(
                    f"{variable.path} is not finite after step {step}; a "
                    f"lower learning_rate may help. {self.run.path} keeps the "
                    "last checkpoint."
                )

    def _keep_best(self, epoch, accuracy, loss):
        """Write the model if it is the best so far."""
        best_accuracy, best_loss, _ = self.best.numpy()
        if (accuracy, -loss) > (best_accuracy, -best_loss):
            self.best.assign([accuracy, loss, epoch])
            self._write_model(self.run.best_model_file)

    def _write_model(self, path):
        """Write the model with its labels and transform, if chief."""
        if self.writes:
            # By name: the final model has no stochastic depth, and so another
            # order of layers.
            for layer in self.final_model.layers:
                if layer.weights:
                    trained = self.model.get_layer(layer.name)
                    layer.set_weights(trained.get_weights())
            Classifier(
                self.final_model, self.data.labels, self.recipe.eval_transform
            ).save(path, overwrite=True)

    def _log_epoch(self, progress, loss, accuracy):
        """Add the epoch to the history."""
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
        self.log.add_epoch(progress.step, entry)

    def _learning_rate(self):
        return float(self.phase.optimizer.learning_rate)

    def _save(self):
        """Save a checkpoint."""
        self._check_finite(int(self.step))
        self.sync_batch_stats()
        self.check_folder()
        # First, because a resumed run does not read these images again.
        self.run.write_bad_images(self.bad.names, worker_name(self.strategy))
        if self.writes:
            self.checkpoints.save(int(self.step))


def balanced_weights(counts: Mapping[str, int]) -> list[float]:
    """Weights of classes by inverse frequency, with a mean of 1 over images.

    Args:
        counts: Number of training images of each class.

    Returns:
        A weight for each class, 0 for one without images.

    Example:

    >>> balanced_weights({"cat": 90, "dog": 30})
    [0.6666666666666666, 2.0]
    """
    present = [count for count in counts.values() if count]
    mean = sum(present) / len(present)
    return [mean / count if count else 0.0 for count in counts.values()]
