"""Distribution strategies: one device, several, several workers, TPUs."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator

import tensorflow as tf

from keras_resnext.extras import first_line
from keras_resnext.training.pipeline import InputShard

# What waiting for another worker may end in.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)
STRATEGIES = ("auto", "one", "mirrored", "multiworker", "tpu")


def make_strategy(
    name: str | tf.distribute.Strategy = "auto",
) -> tf.distribute.Strategy:
    """A `tf.distribute` strategy by name, or chosen by the environment.

    Workers are configured by `TF_CONFIG`, which Kubernetes' training
    operators set too, or by SLURM's variables (`srun` with one task per
    worker); a TPU by `TPU_NAME`. Call this before anything else uses
    TensorFlow, because connections between workers are set up only once.

    Args:
        name: `"one"` for one device (the first GPU, else the CPU),
            `"mirrored"` for a replica on every GPU (without GPUs, on every
            logical CPU), `"multiworker"` for a replica on every GPU of several
            workers (or on the CPU of each), `"tpu"` for every core of a TPU.
            `"auto"` chooses `"tpu"` or `"multiworker"` if the environment
            configures them, else `"mirrored"` with two or more GPUs, else
            `"one"`. A strategy is returned as it is. Defaults to `"auto"`.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: if `name` is none of these, or its environment is missing.

    Example:

    >>> make_strategy("one").num_replicas_in_sync
    1
    """
    if isinstance(name, tf.distribute.Strategy):
        return name
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}; got {name!r}."
        )
    if name == "auto":
        name = _detect()
    if name == "multiworker":
        if not (_workers_of_tf_config() or _tasks_of_slurm()):
            raise ValueError(
                "`strategy` multiworker needs TF_CONFIG with a cluster of "
                "workers, or SLURM's variables; neither is set."
            )
        return tf.distribute.MultiWorkerMirroredStrategy(_cluster())
    if name == "tpu":
        return _connect_to_tpu()
    if name == "mirrored":
        gpus = tf.config.list_logical_devices("GPU")
        devices = gpus or tf.config.list_logical_devices("CPU")
        return _mirrored(tuple(device.name for device in devices))
    # `OneDeviceStrategy` is 5 % slower on CPUs.
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files of the run.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        True for the first of several workers, and for a single process.

    Example:

    >>> is_chief(make_strategy("one"))
    True
    """
    return not worker_name(strategy)


def worker_name(strategy: tf.distribute.Strategy) -> str:
    """The name of this worker.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        `"worker1"` for the second of several workers; empty for the chief,
        which is the first worker unless the cluster names one, and for a
        single process.

    Example:

    >>> worker_name(make_strategy("one"))
    ''
    """
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type != "worker":
        return ""
    has_chief = "chief" in resolver.cluster_spec().as_dict()
    if resolver.task_id == 0 and not has_chief:
        return ""
    return f"worker{resolver.task_id}"


def default_steps_per_execution(strategy: tf.distribute.Strategy) -> int:
    """1 on CPUs, 10 on GPUs and TPUs."""
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    return 10 if on_tpu or tf.config.list_logical_devices("GPU") else 1


def distributed_batches(
    strategy: tf.distribute.Strategy, make_batches, *arguments, **options
):
    """Each replica's batches, to iterate over.

    Args:
        strategy: A `tf.distribute.Strategy`.
        make_batches: `training_batches` or `evaluation_batches`.
        *arguments: Its arguments, without `shard`.
        **options: Its keyword arguments.

    Returns:
        A distributed data set, with an input pipeline for each worker.
    """

    def make(context):
        shard = InputShard(
            replicas=strategy.num_replicas_in_sync,
            pipelines=context.num_input_pipelines,
            pipeline=context.input_pipeline_id,
        )
        return make_batches(*arguments, shard=shard, **options)

    return strategy.distribute_datasets_from_function(make)


def gather(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """A number of every replica; each worker waits here for all others."""
    if strategy.num_replicas_in_sync == 1:
        return [value]
    return _gather_function(strategy)(tf.constant([value])).numpy().tolist()


def fail_together(
    strategy: tf.distribute.Strategy, error: Exception | None, message: str
) -> None:
    """Raise an error on every worker that one of them has met.

    Without it the others would wait for that worker for ever.

    Args:
        strategy: A `tf.distribute.Strategy`.
        error: The error of this worker, or `None`.
        message: What the workers say that have met none.

    Raises:
        Exception: `error`, if it is not `None`.
        RuntimeError: if another worker has met one.

    Example:

    >>> fail_together(make_strategy("one"), None, "The chief has failed.")
    """
    failed = any(gather(strategy, int(error is not None)))
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(message)


@contextlib.contextmanager
def lost_worker_explained(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Say in one line that another worker is gone, as TensorFlow does not.

    It notices once it waits for that worker, within seconds.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Raises:
        RuntimeError: if one of several workers has ended, or is out of reach.

    Example:

    >>> with lost_worker_explained(strategy):
    ...     gather(strategy, 0)
    """
    try:
        yield
    except _LOST as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise RuntimeError(
            "Another worker has ended or cannot be reached; start all of them "
            "again to resume."
        ) from error


@functools.cache
def _gather_function(strategy):
    """One per strategy, because each would be traced."""

    @tf.function
    def gathered(tensor):
        tensor = strategy.run(tf.identity, args=(tensor,))
        return strategy.gather(tensor, axis=0)

    return gathered


@functools.cache
def _mirrored(devices):
    # One per process: a second one would number its collective operations from
    # the start again, and they would clash with those of the first.
    return tf.distribute.MirroredStrategy(list(devices))


def _detect():
    """The strategy that the environment asks for."""
    if os.environ.get("TPU_NAME"):
        return "tpu"
    if _workers_of_tf_config() > 1 or _tasks_of_slurm() > 1:
        return "multiworker"
    gpus = tf.config.list_physical_devices("GPU")
    return "mirrored" if len(gpus) > 1 else "one"


def _workers_of_tf_config():
    """Number of workers in TF_CONFIG."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")["cluster"]
        return sum(len(cluster.get(job, ())) for job in ("chief", "worker"))
    except KeyError:
        return 0
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            "TF_CONFIG must be JSON with cluster and task; got "
            f"{os.environ['TF_CONFIG']!r}."
        ) from error


def _tasks_of_slurm():
    """Number of SLURM tasks; 0 in the batch script, which is no task."""
    if "SLURM_PROCID" not in os.environ:
        return 0
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 0))


def _cluster():
    """The cluster of SLURM, or `None` if TF_CONFIG describes one."""
    if _workers_of_tf_config():
        return None  # TensorFlow reads TF_CONFIG
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver
    if tf.config.list_physical_devices("GPU"):
        return resolver()
    # The resolver divides a node's GPUs among its tasks, and fails without any.
    tasks = _tasks_of_slurm()
    return resolver(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)


def _connect_to_tpu():
    """The strategy of a TPU."""
    try:
        # Reads `TPU_NAME`, which is "local" on a Cloud TPU VM.
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"`strategy` tpu needs a TPU that responds: {first_line(error)}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)
