"""The whole loop, on three flat colours and a toy net."""

import dataclasses
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnext.training import Recipe
from keras_resnext.training import evaluate
from keras_resnext.training import loop
from keras_resnext.training import train
from keras_resnext.training.data import evaluation_batches
from keras_resnext.training.data import open_dataset
from keras_resnext.training.step import make_train_step
from keras_resnext.training.workdir import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shades with a little noise, 8 images each to train on."""
    root = tmp_path_factory.mktemp("shades")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 5)):
        for shade in (40, 120, 200):
            place = root / split / str(shade)
            place.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-20, 20, (8, 8, 3)) + shade
                Image.fromarray(noise.astype("uint8")).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def recipe(folder):
    return Recipe(
        dataset=str(folder),
        model="resnext11_1x4d",
        image_size=8,
        batch_size=8,
        epochs=3,
        warmup_epochs=1.0,
        crop_padding=1,
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    steps = []
    run = train(recipe, tmp_path_factory.mktemp("run"), on_step=steps.append)
    assert [s.step for s in steps] == list(range(1, 10))
    assert steps[-1].steps == 9
    assert [s.epoch for s in steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    return run


def test_run_is_written_down(run, recipe):
    assert Run(run.path).recipe == recipe
    assert run.labels == ["120", "200", "40"]
    assert [entry["epoch"] for entry in run.history] == [1, 2, 3]
    assert run.learning_curves.read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        "recipe.json",
        "labels.txt",
        "history.jsonl",
        "checkpoints",
        "learning_curves.png",
        "model.keras",
    }


def test_training_learns(run):
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_evaluation_counts_every_image_and_agrees_with_keras(run, folder):
    """Against `Model.evaluate`, on a split of 15 in batches of 4."""
    model = run.load_model()
    result = evaluate(model, str(folder), batch_size=4)
    assert (result.split, result.examples) == ("test", 15)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = evaluation_batches(open_dataset(str(folder)), "test", 8, 15)
    loss, accuracy = model.evaluate(batches, verbose=0)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.accuracy == pytest.approx(accuracy)
    last = run.history[-1]
    assert last["held_out_loss"] == pytest.approx(loss, rel=1e-5)
    assert last["held_out_accuracy"] == pytest.approx(accuracy)


def test_resuming_ends_where_an_unbroken_run_ends(run, recipe, tmp_path):
    class StoppedError(Exception):
        pass

    def stop_after_second(entry):
        if entry["epoch"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "x", on_epoch=stop_after_second)
    assert not (tmp_path / "x" / "model.keras").exists()
    steps = []
    resumed = train(recipe, tmp_path / "x", on_step=steps.append)
    assert [step.step for step in steps] == [7, 8, 9]
    for got, want in zip(resumed.history, run.history, strict=True):
        del got["images_per_second"], want["images_per_second"]
        assert got == pytest.approx(want, rel=1e-3)
    for got, want in zip(
        resumed.load_model().get_weights(),
        run.load_model().get_weights(),
        strict=True,
    ):
        # The order of sums differs between threads, and training amplifies.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_finished_run_is_left_alone(run, recipe):
    before = run.model_file.stat().st_mtime_ns

    def no_step(progress):
        raise AssertionError("trained again")

    train(recipe, run.path, on_step=no_step)
    assert run.model_file.stat().st_mtime_ns == before


def test_another_run_is_refused_and_untouched(run, recipe):
    def state():
        return {
            path: path.stat().st_mtime_ns
            for path in run.path.rglob("*")
            if path.is_file()
        }

    before = state()
    other = dataclasses.replace(recipe, epochs=4, seed=1)
    with pytest.raises(
        ValueError, match=r"expected epochs 4 \(found 3\), seed 1 \(found 0\)"
    ):
        train(other, run.path)
    assert state() == before


def test_changed_classes_are_refused_and_labels_kept(folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    recipe = Recipe(
        dataset=str(copy),
        model="resnext11_1x4d",
        image_size=8,
        batch_size=8,
        epochs=2,
        warmup_epochs=0.0,
    )

    def stop(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "x", on_epoch=stop)
    for split in ("train", "test"):
        (copy / split / "40").rename(copy / split / "010")
    with pytest.raises(ValueError, match="`dataset` must have the classes"):
        train(recipe, tmp_path / "x")
    assert Run(tmp_path / "x").labels == ["120", "200", "40"]


def test_loss_that_is_not_finite_stops_the_run(recipe, tmp_path, monkeypatch):
    def broken_step(*_, **__):
        return lambda images, labels: (tf.constant(np.nan), tf.constant(0))

    monkeypatch.setattr(loop, "make_train_step", broken_step)
    with pytest.raises(RuntimeError, match="not finite in step 1 of epoch 1"):
        train(recipe, tmp_path / "x")
    assert not (tmp_path / "x" / "model.keras").exists()


def test_evaluation_wants_probabilities(folder):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    with pytest.raises(ValueError, match="`model` must end in class prob"):
        evaluate(model, str(folder))


def test_files_of_unknown_origin_are_refused(recipe, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has checkpoints and no recipe.json"):
        train(recipe, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnext12"}, "`model` must be one of"),
        ({"dataset": "nothing"}, "`dataset` must be"),
        ({"form": "x"}, "`form` must be one of"),
        ({"image_size": 2}, "`input_shape` must be .* at least 4"),
        ({"batch_size": 100}, "`batch_size` must be at most .*24; got 100"),
        ({"dataset": "digits:9.9.9"}, "`dataset` must be"),
    ],
)
def test_bad_recipes_leave_no_trace(recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(recipe, **changes), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_workdir_must_be_a_folder(recipe, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(
        ValueError, match="`workdir` must be a folder; .*x is a"
    ):
        train(recipe, tmp_path / "x")


def test_unknown_strategy(recipe, tmp_path):
    with pytest.raises(ValueError, match="`strategy` must be one of auto"):
        train(recipe, tmp_path / "x", strategy="tpus")


def test_evaluation_refuses_other_classes(run):
    with pytest.raises(
        ValueError, match="the model's 3 classes; digits has 10"
    ):
        evaluate(run.load_model(), "digits")


def test_unfinished_run_has_no_model(tmp_path):
    with pytest.raises(ValueError, match="folder of a training run"):
        Run(tmp_path).load_model()
    (tmp_path / "recipe.json").write_text('{"epoch": 3}')
    with pytest.raises(ValueError, match="recipe.json must hold a recipe"):
        _ = Run(tmp_path).recipe
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="has no model.keras yet"):
        Run(tmp_path).load_model()


def test_step_follows_the_gradient_of_the_mean_loss():
    """One plain SGD step, against the gradient written out."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(inputs))
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(model.trainable_variables)
    step = make_train_step(
        tf.distribute.get_strategy(),
        model,
        optimizer,
        batch_size=6,
        label_smoothing=0.1,
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    loss, correct = step(tf.cast(x, tf.float32), tf.constant(y))

    scores = np.exp(x @ kernel + bias)
    p = scores / scores.sum(-1, keepdims=True)
    target = 0.9 * np.eye(3)[y] + 0.1 / 3
    assert float(loss) == pytest.approx(
        -np.mean(np.sum(target * np.log(p), -1))
    )
    assert int(correct) == np.sum(p.argmax(-1) == y)
    expected = kernel - 0.5 * x.T @ (p - target) / 6
    np.testing.assert_allclose(model.get_weights()[0], expected, atol=1e-6)


def test_learning_rate_warms_up_and_falls():
    recipe = Recipe(epochs=10, warmup_epochs=2.0, base_lr=0.8, batch_size=32)
    optimizer = loop._make_optimizer(recipe, steps_per_epoch=10)
    rate = optimizer._learning_rate
    assert [float(rate(s)) for s in (0, 10, 20)] == pytest.approx(
        [0, 0.05, 0.1]
    )
    assert float(rate(60)) == pytest.approx(0.05)  # halfway down the cosine
    assert float(rate(100)) == pytest.approx(0, abs=1e-7)


def test_weight_decay_spares_batch_norm_and_biases():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3)(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    model.set_weights([w + 1 for w in model.get_weights()])
    before = {v.path: v.numpy() for v in model.trainable_variables}
    recipe = Recipe(weight_decay=0.1, warmup_epochs=0.0, momentum=0.0)
    optimizer = loop._make_optimizer(recipe, steps_per_epoch=1)
    optimizer.build(model.trainable_variables)
    zeros = [tf.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    for variable in model.trainable_variables:
        shrink = 1 - recipe.peak_lr * 0.1 if "kernel" in variable.path else 1
        np.testing.assert_allclose(
            variable.numpy(), shrink * before[variable.path], rtol=1e-6
        )


TWO_CPUS = """
import json, sys
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
from keras_resnext.training import Recipe, train
from keras_resnext.training.step import make_train_step
from keras_resnext.training.strategy import make_strategy
"""
STEP = """
rng = np.random.default_rng(0)
x, y = rng.normal(size=(6, 4)).astype("float32"), np.arange(6) % 3
weights = []
for name, replicas in (("one", 1), ("mirrored", 2)):
    strategy = make_strategy(name)
    assert strategy.num_replicas_in_sync == replicas
    with strategy.scope():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(inputs))
        optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
        optimizer.build(model.trainable_variables)
    step = make_train_step(
        strategy, model, optimizer, batch_size=6, label_smoothing=0.1
    )
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(6).repeat(3)
    for batch in strategy.experimental_distribute_dataset(batches):
        loss, correct = step(*batch)
    weights.append([*model.get_weights(), float(loss), int(correct)])
for one, other in zip(*weights, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
"""
LOOP = """
run = train(Recipe(**json.loads(sys.argv[1])), "x", strategy="mirrored")
assert [entry["epoch"] for entry in run.history] == [1, 2, 3]
assert run.history[-1]["loss"] < run.history[0]["loss"]
"""


@pytest.mark.parametrize("code", [STEP, LOOP], ids=["step", "loop"])
def test_two_replicas(code, recipe, tmp_path):
    """On two logical CPUs; devices are set once a process.

    A net without batch norm (whose statistics are each replica's own) takes
    the same steps as on one replica; and the whole loop runs.
    """
    arguments = json.dumps(dataclasses.asdict(recipe))
    done = subprocess.run(
        [sys.executable, "-c", TWO_CPUS + code, arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
