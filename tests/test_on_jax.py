"""The benchmarks' loop on Keras' JAX backend, beside training's own."""

import dataclasses
import gzip
import json
import os
import pathlib
import struct
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import fashion
from benchmarks.study import right_images
from keras_resnext import export_weights
from keras_resnext.training import Recipe
from keras_resnext.training.optimizer import make_optimizer
from keras_resnext.training.step import make_train_steps
from keras_resnext.variants import build
from tests.conftest import randomize

RECIPE = Recipe(
    dataset="fashion_mnist",
    model="resnext11_4x2d_f32",
    image_size=16,
    batch_size=32,
    epochs=2,
    learning_rate=0.1,
    warmup_epochs=1.0,
    weight_decay=5e-3,
    label_smoothing=0.1,
    crop_padding=2,
    flip=True,
    random_erasing=0.5,
)
ROOT = pathlib.Path(__file__).parents[1]


def run_on_jax(code, folder):
    """Run some code in a process of its own; the recipe is in `recipe`."""
    fields = json.dumps(dataclasses.asdict(RECIPE))
    preamble = (
        "import json, sys\n"
        "import numpy as np\n"
        "from benchmarks import on_jax\n"
        "from keras_resnext.training import Recipe\n"
        f"recipe = Recipe(**json.loads({fields!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", preamble + code, folder],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.integration
def test_steps_are_those_of_training(tmp_path):
    """Losses and weights, under warm-up and cosine, from the same weights."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3))
    labels = np.arange(32) % 10
    model = build(RECIPE.model, input_shape=(16, 16, 3))
    randomize(model)
    export_weights(model, tmp_path / "before.safetensors")
    np.savez(tmp_path / "batch.npz", pixels=pixels, labels=labels)
    run_on_jax(
        """
import keras_resnext
folder = sys.argv[1]
model = on_jax.build_model(recipe)
keras_resnext.load_weights(model, f"{folder}/before.safetensors")
program = on_jax.Program(recipe, on_jax.with_dense_convolutions(model))
batch = np.load(f"{folder}/batch.npz")
images = on_jax.jnp.asarray(batch["pixels"], "float32")
step = on_jax.jax.jit(program.step)
state, losses = on_jax.state_of(program.model), []
for rate in on_jax.learning_rates(recipe, 2).ravel():
    state, loss = step(state, rate, images, batch["labels"])
    losses.append(float(loss))
trained = program.trained(state)
keras_resnext.export_weights(trained, f"{folder}/after.safetensors")
json.dump(losses, open(f"{folder}/losses.json", "w"))
""",
        tmp_path,
    )
    optimizer = make_optimizer(RECIPE, 2, model.trainable_variables)
    steps = make_train_steps(
        tf.distribute.get_strategy(),
        model,
        optimizer,
        RECIPE,
        prepare=RECIPE.eval_transform.normalize_in_graph,
    )
    batch = pixels.astype("float32"), np.eye(10, dtype="float32")[labels]
    batches = tf.data.Dataset.from_tensors((*batch, np.ones(32, "float32")))
    batches = iter(batches.repeat())
    losses = [
        steps(batches, 1, tf.constant(0.0)).numpy()[0] / 32 for _ in range(4)
    ]
    found = json.loads((tmp_path / "losses.json").read_text())
    assert losses[0] - losses[-1] > 0.1
    np.testing.assert_allclose(found, losses, rtol=1e-4)
    theirs = build(
        RECIPE.model,
        input_shape=(16, 16, 3),
        weights=tmp_path / "after.safetensors",
    )
    for one, other in zip(model.weights, theirs.weights, strict=True):
        scale = np.abs(one.numpy()).max()
        np.testing.assert_allclose(
            one.numpy(), other.numpy(), atol=1e-4 * scale, err_msg=one.path
        )


def write_images(folder, count):
    """Files of Fashion-MNIST's format, each class a bar at its own height."""
    rng = np.random.default_rng(0)
    for name in fashion._TIMES:
        images = count if name.startswith("train") else count // 2
        values = np.arange(images, dtype="uint8") % 10
        if "images" in name:
            labels = values
            values = rng.integers(0, 60, (images, 16, 16)).astype("uint8")
            for image, label in zip(values, labels, strict=True):
                image[label + 3] += 180
        header = bytes((0, 0, 8, values.ndim))
        header += struct.pack(f">{values.ndim}I", *values.shape)
        data = gzip.compress(header + values.tobytes())
        (folder / name).write_bytes(data)


def test_files_are_read_in_order(tmp_path):
    write_images(tmp_path, 40)
    (pixels, labels), (test_pixels, test_labels) = fashion.read(tmp_path)
    assert pixels.shape == (40, 16, 16)
    assert test_pixels.shape == (20, 16, 16)
    assert list(labels[:12]) == [*range(10), 0, 1]
    assert list(pixels.mean(-1).argmax(-1) - 3) == list(labels)
    assert list(test_pixels.mean(-1).argmax(-1) - 3) == list(test_labels)


@pytest.mark.slow
def test_bars_are_learned(tmp_path):
    """All of it: files, augmentation, epochs, weights and their record."""
    write_images(tmp_path, 640)
    run_on_jax(
        """
import pathlib
from benchmarks import fashion, tuning
folder = pathlib.Path(sys.argv[1])
learner = on_jax.Learner(*fashion.read(folder), workers=1)
import dataclasses
recipe = dataclasses.replace(recipe, flip=False, crop_padding=0, epochs=6)
for _ in range(2):  # the second time there is nothing to do
    tuning.run_final(
        folder / "final.jsonl", learner, folder, recipe=recipe, seeds=1
    )
try:
    learner(dataclasses.replace(recipe, mixup=0.2))
except ValueError as error:
    assert "`mixup` must be 0.0 on JAX; got 0.2" in str(error), error
else:
    raise AssertionError("mixup is left out")
""",
        tmp_path,
    )
    (line,) = (tmp_path / "final.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["error"] < 10, record
    assert record["backend"] == "jax"
    assert record["curve"][-1] == pytest.approx(1 - record["error"] / 100)
    # What the file has is what was counted.
    model = build(
        RECIPE.model,
        input_shape=(16, 16, 3),
        weights=tmp_path / "fashion_mnist_0.safetensors",
    )
    _, (pixels, labels) = fashion.read(tmp_path)
    images = np.repeat(pixels[..., None], 3, -1)
    images = RECIPE.eval_transform.normalize(images)
    predictions = model.predict(images, verbose=0).argmax(-1)
    assert np.array_equal(predictions == labels, right_images(record))


def test_rates_are_those_of_the_optimizer():
    code = """
rates = on_jax.learning_rates(recipe, 5)
print(json.dumps(rates.tolist()))
"""
    rates = json.loads(run_on_jax(code, "."))
    optimizer = make_optimizer(RECIPE, 5, [keras.Variable(0.0)])
    expected = []
    for step in range(10):
        optimizer.iterations.assign(step)
        expected.append(float(optimizer.learning_rate))
    np.testing.assert_allclose(np.ravel(rates), expected, rtol=1e-6, atol=1e-9)
