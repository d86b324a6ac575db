"""Checkpoints: keep the newest few, restore the newest readable one.

Not `tf.train.CheckpointManager`: it keeps a list of checkpoints in a file, and
a run whose list is missing or garbled would silently start from scratch.
"""

import logging
import os
import pathlib
import re
import shutil

import tensorflow as tf

from keras_resnext.extras import cannot_write
from keras_resnext.extras import first_line

_log = logging.getLogger("keras_resnext")
_NAME = "step"


class Checkpoints:
    """The checkpoints of a run.

    A checkpoint gets its names when all of it is written, the index last; data
    files without an index are not a checkpoint.

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
        new = f"{self._prefix(step)}_new"
        try:
            # A process that is killed here leaves half of an index.
            self._checkpoint.write(new)
        except tf.errors.OpError as error:
            self._remove(step)
            raise cannot_write(self._prefix(step), error) from error
        for path in self.folder.glob(f"{_NAME}-{step}_new.data-*"):
            path.replace(self._prefix(step) + path.suffix)
        os.replace(f"{new}.index", f"{self._prefix(step)}.index")
        # Newer ones are damaged: `restore` skipped them.
        kept = [other for other in self.steps if other <= step][: self.keep]
        # Killed processes leave files without an index.
        for old in self._steps_with(r"[._].*"):
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
        for path in self.folder.glob(f"{_NAME}-{step}[._]*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
