# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bigger: precision, memory, replicas, and what stops a training
#
# A network that takes days meets problems that one of two minutes does not: its
# activations do not fit into memory, one device is not enough, and sooner or
# later something kills it. Everything here happens on a small network and two
# CPU cores, but it is the same code, and it is really split, killed and
# resumed.
#
# It needs `pip install '.[notebooks]'` in a clone, and takes scikit-learn's
# digits.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # processors only, here

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_resnext
from keras_resnext.training import Recipe
from keras_resnext.training import Run
from keras_resnext.training import train

tf.get_logger().setLevel("WARNING")
# TensorFlow can show one processor as two devices. It has to be told before
# anything is computed.
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
folder = Path(tempfile.mkdtemp(prefix="resnext-bigger-"))

# %% [markdown]
# ## Half the bytes: mixed precision
#
# Training keeps what every layer has computed until the gradient needs it.
# These *activations* are most of the memory that training takes, and they grow
# with the batch. `count_complexity` counts those of the convolutions; batch
# norms and ReLUs keep as many again.

# %%
model = keras_resnext.ResNeXt50(weights=None)
cost = keras_resnext.count_complexity(model)
print(f"weights:     {4 * cost.params / 1e6:6.0f} MB in float32")
print(f"activations: {4 * cost.activations / 1e6:6.0f} MB for one image")
print(f"             {4 * 64 * cost.activations / 1e6:6.0f} MB for 64 images")
assert 64 * cost.activations > 10 * cost.params

# %% [markdown]
# bfloat16 has the range of float32 and 8 of its 24 bits of precision. Under the
# policy `mixed_bfloat16` layers compute and hand on bfloat16, while the weights
# stay in float32, because the small steps of training would be lost in 8 bits.

# %%
policy = keras.config.dtype_policy()
keras.config.set_dtype_policy("mixed_bfloat16")
mixed = keras_resnext.ResNeXt((1, 1, 1), 8, 4, stem="cifar", classes=10)
keras.config.set_dtype_policy(policy)

convolution = mixed.get_layer("conv2_block1_2_conv")
print("computes in", convolution.compute_dtype)
print("keeps weights in", convolution.variable_dtype)
print("puts out probabilities in", mixed.output.dtype)
assert convolution.compute_dtype == "bfloat16"
assert convolution.variable_dtype == mixed.output.dtype == "float32"

# %% [markdown]
# In a recipe it is one field, `precision="mixed_bfloat16"`, or `--precision
# mixed_bfloat16` on the command line. It is faster where the hardware has it:
# GPUs since 2020, TPUs, and processors with `avx512_bf16` or `amx_bf16` in
# their flags. Elsewhere it saves memory and costs time. `mixed_float16`, for
# older GPUs, has a smaller range; the loop scales the loss so that gradients do
# not become zero.

# %% [markdown]
# ## The same gradient from parts of a batch
#
# The loss of a batch is a mean over its images, and so is its gradient. Four
# quarters of a batch, one after another, give four gradients whose mean is the
# gradient of the whole batch, with the activations of a quarter at a time. That
# is *gradient accumulation*. Let us see it.

# %%
small = keras_resnext.ResNeXt(
    (1, 1, 1), 8, 4, stem="cifar", input_shape=(16, 16, 3), classes=10
)
rng = np.random.default_rng(0)
images = rng.normal(size=(32, 16, 16, 3)).astype("float32")
labels = rng.integers(0, 10, 32)


def gradient(images, labels, training):
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(
            labels, small(images, training=training)
        )
        loss = tf.reduce_mean(losses)
    return tape.gradient(loss, small.get_layer("conv1_conv").kernel.value)


def gradient_of_quarters(training):
    quarters = [
        gradient(images[i : i + 8], labels[i : i + 8], training)
        for i in range(0, 32, 8)
    ]
    return sum(quarters) / 4


for training in (False, True):
    whole = gradient(images, labels, training)
    difference = tf.norm(gradient_of_quarters(training) - whole)
    share = float(difference / tf.norm(whole))
    kind = "statistics of the batch" if training else "moving statistics"
    print(f"batch norm with {kind}: they differ by {share:.1e}")
    # float32 has 24 bits, and thousands of products are added.
    assert share > 0.01 if training else share < 1e-5

# %% [markdown]
# With moving statistics, the two are equal but for rounding. With statistics of
# the batch they are not: batch norm sees 8 images at a time instead of 32, and
# normalises each quarter by itself. That is the one thing that accumulation
# changes, and why parts should not be smaller than 16 images or so.
#
# `gradient_accumulation_steps=4` in a recipe does it inside one compiled step.

# %% [markdown]
# ## Several replicas
#
# With `tf.distribute`, each device has a *replica*, a copy of the network. Each
# takes its share of the batch, and the gradients are summed before every
# update, so that the copies stay equal. `strategy="mirrored"` uses all devices
# of a machine; two logical CPUs will do.
#
# `batch_size` is the whole batch. With `sync_batch_norm` batch norm sees all of
# it, too, and then two replicas compute what one does.

# %%
recipe = Recipe(epochs=1, warmup_epochs=0.5, sync_batch_norm=True)

losses = {}
for strategy in ("one", "mirrored"):
    steps = losses[strategy] = []
    run = train(
        recipe,
        folder / strategy,
        strategy=strategy,
        on_step=lambda p, steps=steps: steps.append(p.last_loss),
    )
    print(f"{strategy}: {len(steps)} steps, loss {steps[0]:.6f}", end="")
    print(f" in the first and {steps[-1]:.4f} in the last")
assert len(tf.config.list_logical_devices("CPU")) == 2
# Losses after the first depend on the gradients of both replicas.
for one, two in list(zip(*losses.values(), strict=True))[:3]:
    print(f"{one:.6f} {two:.6f}")
    # Rounding decides on which side of zero some inputs of ReLUs are.
    assert np.isclose(one, two, rtol=1e-3)

# %% [markdown]
# The first losses agree, also after the first updates. Later ones drift apart:
# sums in another order round differently, and training amplifies what differs.
# (In float64, the package's tests find twenty steps equal to 1e-9.) Two
# trainings on one device differ in the same way, unless `deterministic=True`
# fixes the order of all sums.

# %% [markdown]
# ## Killed, and started again
#
# SIGKILL cannot be caught: the process is simply gone, as after a power cut.
# The training below saves a checkpoint every 15 steps and is killed after the
# first one. It runs in a process of its own, through the command line.


# %%
def start(workdir, *options, **variables):
    """Train for an epoch of 44 steps in a new process."""
    environment = {**os.environ, **variables}
    environment.pop("FORCE_COLOR", None)  # Jupyter's
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "keras_resnext", "train"),
            *("--workdir", workdir, "--epochs", "1", "--warmup-epochs", "0.5"),
            *("--save-every-steps", "15", *options),
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


killed = start(folder / "killed", "--deterministic")
while not list((folder / "killed").glob("checkpoints/step-*.index")):
    assert killed.poll() is None, killed.stdout.read()
    time.sleep(0.1)
killed.send_signal(signal.SIGKILL)
killed.communicate()
print("exit status:", killed.returncode)
print(*sorted(p.name for p in (folder / "killed").iterdir()), sep="\n")
assert not Run(folder / "killed").finished

# %% [markdown]
# No model yet, but a recipe and checkpoints. The same command again is all it
# takes. To see what that is worth, we compare with a run that nobody disturbed.

# %%
for name in ("killed", "undisturbed"):
    process = start(folder / name, "--deterministic")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    resumed = [line for line in output.splitlines() if "Resumed" in line]
    print(f"{name}:", *resumed, output.splitlines()[-1].split(": ")[1])
    assert bool(resumed) == (name == "killed")

weights, expected = (
    Run(folder / name).load_model().get_weights()
    for name in ("killed", "undisturbed")
)
equal = sum(
    np.array_equal(a, b) for a, b in zip(weights, expected, strict=True)
)
print(f"{equal} of {len(expected)} arrays of weights are equal to the bit")
assert equal == len(expected)

# %% [markdown]
# To the bit: the resumed run saw the same images in the same order with the
# same random crops, because all of it depends on the seed and the number of the
# step, and never on what a process did before. Without `--deterministic` they
# would drift apart as the two above did.
#
# SIGTERM, which schedulers send, is gentler: the loop finishes its step, saves,
# and ends with status 143.

# %% [markdown]
# ## Several machines
#
# With `--strategy multiworker` every machine runs the same command. TensorFlow
# learns from the variable `TF_CONFIG` who they are and which one it is itself;
# under SLURM it is read from the scheduler's variables. All workers need the
# same `--workdir` on a shared disk, to which only the first one writes: two
# trainings that did not belong together could not share it. Here are two
# workers on this machine.


# %%
def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


places = [f"localhost:{free_port()}" for _ in range(2)]
workers = [
    start(
        folder / "workers",
        *("--strategy", "multiworker"),
        TF_CONFIG=json.dumps(
            {
                "cluster": {"worker": places},
                "task": {"type": "worker", "index": index},
            }
        ),
    )
    for index in range(2)
]
outputs = [worker.communicate()[0] for worker in workers]
assert [worker.returncode for worker in workers] == [0, 0], outputs
run = Run(folder / "workers")
for entry in run.history:
    print(f"epoch {entry['epoch']}: val_accuracy {entry['val_accuracy']:.3f}")
assert run.finished

# %% [markdown]
# If one worker dies, the others stop with a line that says so, and the same
# commands resume. `TrainOptions` has the rest; it is what the options of the
# command line become.

# %%
from keras_resnext.training import TrainOptions

for field in dataclasses.fields(TrainOptions):
    print(f"{field.name} = {field.default!r}")

# %% [markdown]
# ## What changes on other hardware
#
# | hardware | what changes |
# |---|---|
# | one GPU | nothing; `precision="mixed_bfloat16"` is worth it |
# | several GPUs | `strategy="auto"` takes all of them; raise `batch_size`, and let `lr_base_size` scale the rate with it |
# | a TPU | `strategy="tpu"`, `precision="mixed_bfloat16"`, and data that it can reach, such as `gs://` |
# | several machines | `strategy="multiworker"`, as above |
#
# On accelerators, `steps_per_execution` is 10 by default, so that Python does
# not hold them up. [Training](../keras_resnext/training/README.md) says which
# of these were run: two replicas and two workers, as above.
