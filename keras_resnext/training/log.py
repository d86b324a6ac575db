"""The log of a run: its history, and summaries for TensorBoard."""

import contextlib
import importlib.util
import logging

import tensorflow as tf

from keras_resnext.extras import cannot_write
from keras_resnext.files import staged
from keras_resnext.training import plots
from keras_resnext.training.run import Run

_log = logging.getLogger("keras_resnext")


class RunLog:
    """Writes metrics to a run's folder.

    Args:
        run: The `Run`.
        epochs: Number of epochs in the checkpoint; later ones that the
            history may have are dropped.
        writes: Whether to write files, as the chief does.
    """

    def __init__(self, run: Run, epochs: int, *, writes: bool):
        self.run, self.writes = run, writes
        self.history = [e for e in run.history if e["epoch"] <= epochs]
        self._summaries = tf.summary.create_noop_writer()
        if writes:
            run.write_history(self.history)  # to which epochs are added
            with self._writing():
                self._summaries = tf.summary.create_file_writer(
                    str(run.tensorboard)
                )

    def add_steps(self, step: int, loss: float, learning_rate: float) -> None:
        """Log the loss of the last steps."""
        with self._writing(), self._summaries.as_default(step):
            _write_scalar("training/loss", loss)
            _write_scalar("learning_rate", learning_rate)

    def add_epoch(self, step: int, entry: dict) -> None:
        """Log a finished epoch."""
        self.history.append(entry)
        if not self.writes:
            return
        self.run.add_to_history(entry)
        with self._writing(), self._summaries.as_default(step):
            for name in ("loss", "accuracy"):
                _write_scalar(f"epoch/{name}", entry[name])
                _write_scalar(f"val/{name}", entry[f"val_{name}"])
            self._summaries.flush()

    def draw(self) -> None:
        """Draw the learning curves."""
        if not self.writes:
            return
        if not importlib.util.find_spec("matplotlib"):
            _log.warning(
                "The learning curves are not drawn: matplotlib is missing "
                "(pip install 'keras_resnext[train]')."
            )
            return
        with staged(self.run.learning_curves, overwrite=True) as new:
            plots.learning_curves(self.history, new)

    @contextlib.contextmanager
    def _writing(self):
        """Name the folder in TensorFlow's errors."""
        try:
            yield
        except tf.errors.OpError as error:
            raise cannot_write(self.run.tensorboard, error) from error


def _write_scalar(name, value):
    """`tf.summary.scalar`, but without TensorBoard, which that imports."""
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"
    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
