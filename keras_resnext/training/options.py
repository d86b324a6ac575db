"""How a training run is carried out, which is no part of its recipe."""

import dataclasses
import os

import tensorflow as tf

from keras_resnext.classifier import check_on_bad_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `train` that may differ each time a run is resumed.

    Args:
        strategy: Name of a `tf.distribute` strategy, see
            `keras_resnext.training.strategy.make_strategy`, or a strategy.
            Defaults to `"auto"`.
        data_dir: Where TFDS keeps its data sets. Defaults to TFDS' own.
        steps_per_execution: Training steps per compiled call. Defaults to 0:
            1 on CPUs, 10 on GPUs and TPUs.
        save_every_steps: Steps between checkpoints within an epoch. Defaults
            to 0: one checkpoint per epoch.
        keep: Number of checkpoints to keep. Defaults to 2.
        on_bad_image: `"error"`, or `"skip"` to leave out images that cannot
            be decoded; the run's `bad_images.txt` lists them. Defaults to
            `"error"`.
        deterministic: Whether to use deterministic operations only, which may
            be slower. Stays on for the rest of the process. Defaults to
            `False`.

    Raises:
        ValueError: if an option is not as described.

    Example:

    >>> options = TrainOptions(save_every_steps=500, keep=5)
    >>> run = train(recipe, "runs/x", options)
    """

    strategy: str | tf.distribute.Strategy = "auto"
    data_dir: str | os.PathLike[str] | None = None
    steps_per_execution: int = 0
    save_every_steps: int = 0
    keep: int = 2
    on_bad_image: str = "error"
    deterministic: bool = False

    def __post_init__(self):
        for name, least in (
            ("steps_per_execution", 0),
            ("save_every_steps", 0),
            ("keep", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise ValueError(
                    f"`{name}` must be at least {least}; got {value}."
                )
        check_on_bad_image(self.on_bad_image)
