"""Checkpoints: keep the newest few, restore the newest readable one.

Not `tf.train.CheckpointManager`: it keeps a list of checkpoints in a file, and
a run whose list is missing or garbled would silently start from scratch.
"""

import logging
import pathlib
import re
import shutil

import tensorflow as tf

from keras_resnext.extras import first_line

_log = logging.getLogger("keras_resnext")
_NAME = "step"


class Checkpoints:
    """The checkpoints of a run.

    TensorFlow writes a checkpoint's index last; data files without an index
    are not a checkpoint.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of checkpoints to keep.
        **objects: Objects to save, see `tf.train.Checkpoint`.

    Example:

    >>> checkpoints = Checkpoints("runs/x/checkpoints", keep=2, model=model)
    >>> checkpoints.save(step=100)
    """

    def __init__(self, folder: pathlib.Path, *, keep: int, **objects):
        self.folder, self.keep = folder, keep
        self._checkpoint = tf.train.Checkpoint(**objects)

    @property
    def steps(self) -> list[int]:
        """Steps of the existing checkpoints, newest first."""
        return self._steps_with(r"\.index")

    def save(self, step: int) -> None:
        """Write a checkpoint, then remove old ones and parts of such.

        Args:
            step: Number of steps done.

        Raises:
            OSError: if it cannot be written; older checkpoints are kept.
        """
        self.folder.mkdir(exist_ok=True)
        try:
            self._checkpoint.write(self._prefix(step))
        except tf.errors.OpError as error:
            self._remove(step)
            # Before the reason are an operation's name and a temporary path.
            reason = first_line(error).rpartition("; ")[2].partition(" [Op:")[0]
            raise OSError(
                f"{self._prefix(step)} cannot be written: {reason}."
            ) from error
        # Newer ones are damaged: `restore` skipped them.
        kept = [other for other in self.steps if other <= step][: self.keep]
        # Killed processes leave files without an index.
        for old in self._steps_with(r"(\.index|\.data-.*|_temp)"):
            if old < step and old not in kept:
                self._remove(old)

    def restore(self) -> int | None:
        """Restore the newest checkpoint that can be read.

        Returns:
            Its step, or `None` if there are no checkpoints.

        Raises:
            RuntimeError: if there are checkpoints, but none can be read.
        """
        damaged = []
        for step in self.steps:
            try:
                status = self._checkpoint.read(self._prefix(step))
                status.assert_existing_objects_matched()
                return step
            # A truncated index raises an IndexError.
            except (
                tf.errors.OpError,
                AssertionError,
                IndexError,
                ValueError,
            ) as error:
                _log.warning(
                    "%s is damaged (%s); trying the one before.",
                    self._prefix(step),
                    first_line(error),
                )
                damaged.append(step)
        if damaged:
            raise RuntimeError(
                f"None of the checkpoints in {self.folder} can be read: steps "
                f"{', '.join(map(str, damaged))}."
            )
        return None

    def _steps_with(self, ending):
        """Steps of the files that end so, newest first."""
        names = [path.name for path in self.folder.glob(f"{_NAME}-*")]
        matches = (re.fullmatch(rf"{_NAME}-(\d+){ending}", n) for n in names)
        return sorted({int(m[1]) for m in matches if m}, reverse=True)

    def _prefix(self, step):
        return str(self.folder / f"{_NAME}-{step}")

    def _remove(self, step):
        """Remove a checkpoint, its index first."""
        self.folder.joinpath(f"{_NAME}-{step}.index").unlink(missing_ok=True)
        for path in self.folder.glob(f"{_NAME}-{step}.data-*"):
            path.unlink()
        shutil.rmtree(self.folder / f"{_NAME}-{step}_temp", ignore_errors=True)
