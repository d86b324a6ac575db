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
from scipy.stats import chi2_contingency
from scipy.stats import ks_2samp

from benchmarks import fashion
from benchmarks.study import right_images
from keras_resnext import export_weights
from keras_resnext import load_weights
from keras_resnext.training import Recipe
from keras_resnext.training import augment
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


@pytest.mark.slow
def test_steps_are_those_of_training(tmp_path, float64):
    """Losses and weights, under warm-up and cosine, from the same weights.

    In float64: in float32, rounding puts some inputs of ReLUs on the other
    side of zero, and two steps later losses are 7e-4 apart. Rates and files of
    weights are float32, and relative errors of 6e-8 grow with each step.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3))
    labels = np.arange(32) % 10
    keras.utils.set_random_seed(0)
    model = build(RECIPE.model, input_shape=(16, 16, 3))
    randomize(model)
    export_weights(model, tmp_path / "before.safetensors")
    load_weights(model, tmp_path / "before.safetensors")
    np.savez(tmp_path / "batch.npz", pixels=pixels, labels=labels)
    run_on_jax(
        """
import keras_resnext
on_jax.jax.config.update("jax_enable_x64", True)
on_jax.keras.config.set_floatx("float64")
folder = sys.argv[1]
model = on_jax.build_model(recipe)
keras_resnext.load_weights(model, f"{folder}/before.safetensors")
program = on_jax.Program(recipe, on_jax.with_dense_convolutions(model))
batch = np.load(f"{folder}/batch.npz")
images = on_jax.jnp.asarray(batch["pixels"], "float64")
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
    transform = RECIPE.eval_transform

    def normalize(pixels):  # `normalize_in_graph` returns float32
        pixels = tf.cast(pixels, tf.float64) / 255
        return (pixels - transform.mean) / transform.std

    optimizer = make_optimizer(RECIPE, 2, model.trainable_variables)
    steps = make_train_steps(
        tf.distribute.get_strategy(),
        model,
        optimizer,
        RECIPE,
        prepare=normalize,
    )
    batch = pixels.astype("float64"), np.eye(10)[labels], np.ones(32, "float32")
    batches = tf.data.Dataset.from_tensors(batch)
    batches = iter(batches.repeat())
    losses = [
        steps(batches, 1, tf.constant(0.0)).numpy()[0] / 32 for _ in range(4)
    ]
    theirs = json.loads((tmp_path / "losses.json").read_text())
    assert losses[0] - losses[-1] > 0.1
    np.testing.assert_allclose(theirs, losses, rtol=1e-5)
    theirs = build(
        RECIPE.model,
        input_shape=(16, 16, 3),
        weights=tmp_path / "after.safetensors",
    )
    for one, other in zip(model.weights, theirs.weights, strict=True):
        scale = np.abs(one.numpy()).max()
        np.testing.assert_allclose(
            one.numpy(), other.numpy(), atol=1e-5 * scale, err_msg=one.path
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


@pytest.mark.slow
@pytest.mark.integration
def test_augmentation_is_trainings(tmp_path):
    """Positions of crops, and places and sizes of what is erased."""
    draws = 4000
    run_on_jax(
        f"""
image = np.arange(256, dtype="uint8").reshape(16, 16)
keys = on_jax.jax.random.split(on_jax.jax.random.key(0), {draws})
crops = on_jax.jax.vmap(lambda key: on_jax._pad_and_crop(image, 2, key))(keys)
black = np.zeros((16, 16, 3), "float32")
erased = on_jax.jax.vmap(lambda key: on_jax._erase(black, 0.5, key))(keys)
np.savez(f"{{sys.argv[1]}}/draws.npz", crops=crops, erased=erased)
""",
        tmp_path,
    )
    theirs = np.load(tmp_path / "draws.npz")
    image = tf.reshape(tf.range(256), (16, 16, 1))
    black = tf.zeros((16, 16, 3))
    seeds = [(1, i) for i in range(draws)]
    crops = tf.map_fn(
        lambda seed: augment.pad_and_crop(image, 2, seed)[..., 0],
        tf.constant(seeds),
        fn_output_signature=tf.int32,
    ).numpy()
    erased = tf.map_fn(
        lambda seed: augment.erase(black, 0.5, seed),
        tf.constant(seeds),
        fn_output_signature=tf.float32,
    ).numpy()

    # The pixel in the middle tells where a crop is: 25 places.
    places = [x[:, 8, 8] for x in (crops, theirs["crops"])]
    assert set(places[0]) == set(places[1])
    counts = [np.unique(x, return_counts=True)[1] for x in places]
    assert chi2_contingency(counts).pvalue > 1e-3

    assert np.array_equal(np.unique(erased), np.unique(theirs["erased"]))
    masks = [x.any(-1) for x in (erased, theirs["erased"])]
    shares = [mask.any((1, 2)).mean() for mask in masks]
    # Four standard deviations of a difference of two shares of a half.
    assert abs(shares[0] - shares[1]) < 4 * (0.5 / draws) ** 0.5
    masks = [mask[mask.any((1, 2))] for mask in masks]
    for measure in (
        lambda mask: mask.sum((1, 2)),  # area
        lambda mask: mask.any(2).sum(1),  # rows
        lambda mask: mask.any(2).argmax(1),  # top
        lambda mask: mask.any(1).argmax(1),  # left
    ):
        assert ks_2samp(*map(measure, masks)).pvalue > 1e-3


@pytest.mark.integration
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
