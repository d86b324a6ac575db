"""A training run in a process of its own: `start` it, or `python -m` this.

Strategies, signals and TensorFlow's switches hold for a process.
"""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

from keras_resnext.training import Recipe


def start(recipe, workdir, *, cpus=1, environment=None, **options):
    """Start a run; its losses go, a line each, to its standard output.

    Args:
        recipe: A `Recipe`.
        workdir: Folder of the run.
        cpus: Logical CPUs, one of which is a replica each.
        environment: Variables to set.
        **options: Of `train`; `kill_at_step` ends it with SIGKILL there,
            `terminate_at_step` sends itself SIGTERM, `float64` computes in
            that, and `runs` trains so often, in folders `.again`.

    Returns:
        A `subprocess.Popen`.
    """
    job = {
        "recipe": dataclasses.asdict(recipe),
        "workdir": str(workdir),
        "cpus": cpus,
        "options": options,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training_process", json.dumps(job)],
        cwd=pathlib.Path(__file__).parents[1],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes, statuses=(0,)):
    """Wait for processes that may wait for each other; the first's losses."""
    outputs = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=300)
            assert process.returncode in statuses, err[-3000:]
            outputs.append([float(line) for line in out.splitlines()])
    finally:
        for process in processes:
            process.kill()
    return outputs[0]


def workers_of_tf_config(count=2):
    """Environments of workers on this machine, as TF_CONFIG has them."""
    cluster = {"worker": [f"localhost:{port}" for port in _free_ports(count)]}
    return [
        {
            "TF_CONFIG": json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": i}}
            )
        }
        for i in range(count)
    ]


def workers_of_slurm(count=2):
    """The same as `srun` sets them."""
    return [
        {
            "SLURM_PROCID": str(i),
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": str(count),
        }
        for i in range(count)
    ]


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _use_float64():
    """In place of float32, whatever the recipe says.

    A ReLU's gradient jumps where its input crosses zero. Of the thousands in
    twenty steps some lie within float32's rounding of it, and two runs that
    round otherwise part there; within float64's, none does.
    """
    import keras

    keras.config.set_floatx("float64")
    original = keras.config.set_dtype_policy
    keras.config.set_dtype_policy = lambda policy: original(
        "float64" if policy == "float32" else policy
    )


def main():
    job = json.loads(sys.argv[1])
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * job["cpus"]
    )
    from keras_resnext.training import train

    options = job["options"]
    if options.pop("float64", False):
        _use_float64()
    kill_at = options.pop("kill_at_step", None)
    terminate_at = options.pop("terminate_at_step", None)

    def on_step(progress):
        print(repr(progress.last_loss), flush=True)
        if progress.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if progress.step == terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = Recipe(**job["recipe"])
    try:
        for number in range(options.pop("runs", 1)):
            workdir = job["workdir"] + number * ".again"
            train(recipe, workdir, on_step=on_step, **options)
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))


if __name__ == "__main__":
    main()
