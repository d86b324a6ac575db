"""Where the replicas run."""

import tensorflow as tf

STRATEGIES = ("auto", "one", "mirrored")


def make_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """A `tf.distribute` strategy by name.

    Args:
        name: `"one"` for one device (the first GPU, else the CPU),
            `"mirrored"` for a replica on every GPU (or on every logical CPU
            where there is none), `"auto"` for `"mirrored"` with two GPUs or
            more, else `"one"`. Defaults to `"auto"`.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: if `name` is none of these.

    Example:

    >>> make_strategy("one").num_replicas_in_sync
    1
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}; got {name!r}."
        )
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        return tf.distribute.MirroredStrategy([d.name for d in devices])
    return tf.distribute.OneDeviceStrategy(devices[0].name)
