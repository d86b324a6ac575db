"""Where the replicas run."""

import functools
import json
import os

import tensorflow as tf

STRATEGIES = ("auto", "one", "mirrored", "multiworker", "tpu")


def make_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """A `tf.distribute` strategy by name, or by what the environment says.

    Several workers are found in `TF_CONFIG`, as TensorFlow and Kubernetes'
    training operators have it, or in SLURM's variables (a task a worker,
    `srun`); a TPU in `TPU_NAME`. Call it before anything else uses
    TensorFlow, which sets up the connections between workers once.

    Args:
        name: `"one"` for one device (the first GPU, else the CPU),
            `"mirrored"` for a replica on every GPU (or on every logical CPU
            where there is none), `"multiworker"` for a replica on every GPU
            of several workers (or on the CPU of each), `"tpu"` for every core
            of a TPU. `"auto"` is the last whose environment is there:
            `"mirrored"` with two GPUs or more, `"multiworker"`, `"tpu"`; else
            `"one"`. Defaults to `"auto"`.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: if `name` is none of these, or its environment is not
            there.

    Example:

    >>> make_strategy("one").num_replicas_in_sync
    1
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}; got {name!r}."
        )
    if name == "auto":
        name = _find_out()
    if name == "multiworker":
        if not (_workers_of_tf_config() or _tasks_of_slurm()):
            raise ValueError(
                "`strategy` multiworker needs TF_CONFIG with a cluster of "
                "workers, or SLURM's variables; found neither."
            )
        return tf.distribute.MultiWorkerMirroredStrategy(_cluster())
    if name == "tpu":
        return _connect_to_tpu()
    if name == "mirrored":
        gpus = tf.config.list_logical_devices("GPU")
        devices = gpus or tf.config.list_logical_devices("CPU")
        return _mirrored(tuple(device.name for device in devices))
    # Not `OneDeviceStrategy`, whose steps take a twentieth longer on CPUs.
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes for all workers.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        True for the first of several workers, and where there is only one.

    Example:

    >>> is_chief(make_strategy("one"))
    True
    """
    return not worker_name(strategy)


def worker_name(strategy: tf.distribute.Strategy) -> str:
    """What to call this process beside the chief.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        `"worker1"` for the second of several workers; empty for the chief,
        which is the first where none is called so, and for one alone.

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


@functools.cache
def _mirrored(devices):
    # One for the process: a second one would begin to number its collective
    # operations anew, and meet those of the first.
    return tf.distribute.MirroredStrategy(list(devices))


def _find_out():
    if os.environ.get("TPU_NAME"):
        return "tpu"
    if _workers_of_tf_config() > 1 or _tasks_of_slurm() > 1:
        return "multiworker"
    gpus = tf.config.list_physical_devices("GPU")
    return "mirrored" if len(gpus) > 1 else "one"


def _workers_of_tf_config():
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
    """Tasks of this step; a job's own script is not one of them."""
    if "SLURM_PROCID" not in os.environ:
        return 0
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 0))


def _cluster():
    if _workers_of_tf_config():
        return None  # TensorFlow reads it
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver
    if tf.config.list_physical_devices("GPU"):
        return resolver()
    # It shares out a node's GPUs, and without any would start no task.
    tasks = _tasks_of_slurm()
    return resolver(gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False)


def _connect_to_tpu():
    try:
        # `TPU_NAME` is read there; "local" on a Cloud TPU VM.
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`strategy` tpu needs a TPU that answers: {reason}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)
