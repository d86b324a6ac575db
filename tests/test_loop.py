"""The whole trainer, on three flat colours and a toy net."""

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

from keras_resnext.training import RECIPES
from keras_resnext.training import Recipe
from keras_resnext.training import evaluate
from keras_resnext.training import train
from keras_resnext.training import trainer
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.optimizer import make_optimizer
from keras_resnext.training.pipeline import evaluation_batches
from keras_resnext.training.run import ModelMetadata
from keras_resnext.training.run import Run
from keras_resnext.training.run import read_metadata
from keras_resnext.training.step import make_train_steps


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
        "tensorboard",
        "best.keras",
        "learning_curves.png",
        "model.keras",
    }


def test_best_model_is_the_best_epochs(run, folder):
    best = max(entry["val_accuracy"] for entry in run.history)
    model = keras.saving.load_model(run.best_model_file)
    assert evaluate(model, str(folder)).accuracy == pytest.approx(best)


def test_tensorboard_has_the_history(run):
    (file,) = run.tensorboard.iterdir()
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found.setdefault(value.tag, []).append(
                (event.step, tf.make_ndarray(value.tensor).item())
            )
    losses = [(3 * e["epoch"], e["val_loss"]) for e in run.history]
    np.testing.assert_allclose(found["val/loss"], losses, rtol=1e-6)
    assert [step for step, _ in found["learning_rate"]] == list(range(1, 10))


def test_training_learns(run):
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_evaluation_counts_every_image_and_agrees_with_keras(run, folder):
    """Against `Model.evaluate`, on a split of 15 in batches of 4."""
    model = run.load_model()
    result = evaluate(model, str(folder), batch_size=4)
    assert (result.split, result.examples) == ("test", 15)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = evaluation_batches(open_dataset(str(folder)), "test", 8, 15)
    batches = batches.map(lambda images, labels, weights: (images, labels))
    batches = batches.apply(tf.data.experimental.assert_cardinality(1))
    loss, accuracy = model.evaluate(batches, verbose=0)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.accuracy == pytest.approx(accuracy)
    last = run.history[-1]
    assert last["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert last["val_accuracy"] == pytest.approx(accuracy)


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
        for key in want.keys() - {"images_per_second", "waiting"}:
            assert got[key] == pytest.approx(want[key], rel=1e-3)
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
        return lambda *_: tf.constant([np.nan, 0, 8, 0, 0])

    monkeypatch.setattr(trainer.steps, "make_train_steps", broken_step)
    with pytest.raises(RuntimeError, match="not finite in step 1 .epoch 1"):
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


def step_once(model, optimizer, recipe, images, targets, weights):
    strategy = tf.distribute.get_strategy()
    steps = make_train_steps(strategy, model, optimizer, recipe)
    batch = tuple(tf.cast(x, tf.float32) for x in (images, targets, weights))
    batches = tf.data.Dataset.from_tensors(batch)
    return steps(iter(batches), 1, tf.constant(0.0)).numpy()


@pytest.mark.parametrize("global_clipnorm", [0.0, 0.05])
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_step_follows_the_gradient_of_the_mean_loss(
    accumulate, global_clipnorm
):
    """One plain SGD step, against the gradient written out."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(inputs))
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    weights = np.array([1, 1, 0, 1, 1, 1.0])  # one could not be decoded
    recipe = Recipe(
        batch_size=6,
        gradient_accumulation_steps=accumulate,
        label_smoothing=0.1,
        global_clipnorm=global_clipnorm,
    )
    loss, correct, images, waited, stops = step_once(
        model, optimizer, recipe, x, np.eye(3)[y], weights
    )

    scores = np.exp(x @ kernel + bias)
    p = scores / scores.sum(-1, keepdims=True)
    target = 0.9 * np.eye(3)[y] + 0.1 / 3
    expected = -np.sum(weights * np.sum(target * np.log(p), -1))
    assert loss == pytest.approx(expected)
    assert correct == np.sum(weights * (p.argmax(-1) == y))
    assert (images, stops) == (5, 0)
    assert 0 <= waited < 10
    error = weights[:, None] * (p - target) / 6
    gradients = x.T @ error, error.sum(0)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    assert norm > 0.05
    factor = min(1, global_clipnorm / norm) if global_clipnorm else 1
    for found, before, gradient in zip(
        model.get_weights(), (kernel, bias), gradients, strict=True
    ):
        np.testing.assert_allclose(
            found, before - 0.5 * factor * gradient, atol=1e-6
        )


def scaled_float16_step(images):
    """A step in mixed float16: the model and its optimizer after it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, "relu", dtype="mixed_float16")(inputs)
    outputs = keras.layers.Dense(3, "softmax", dtype="float32")(x)
    model = keras.Model(inputs, outputs)
    recipe = Recipe(
        batch_size=6,
        precision="mixed_float16",
        global_clipnorm=1.0,
        warmup_epochs=0.0,
    )
    optimizer = make_optimizer(recipe, 4, model.trainable_variables)
    before = model.get_weights()
    targets = np.eye(3)[np.arange(6) % 3]
    step_once(model, optimizer, recipe, images, targets, np.ones(6))
    moved = [
        np.abs(a - b).max()
        for a, b in zip(model.get_weights(), before, strict=True)
    ]
    return float(optimizer.dynamic_scale), max(moved)


def test_float16_scales_the_loss_and_passes_over_overflows():
    images = np.random.default_rng(0).normal(size=(6, 4))
    scale, moved = scaled_float16_step(images)
    assert scale == 2**15
    assert 0 < moved < 1
    scale, moved = scaled_float16_step(1e4 * images)
    assert scale == 2**14
    assert moved == 0


def test_learning_rate_warms_up_and_falls():
    recipe = Recipe(epochs=10, warmup_epochs=2.0, base_lr=0.8, batch_size=32)
    rate = make_optimizer(recipe, 10, [])._learning_rate
    assert [float(rate(s)) for s in (0, 10, 20)] == pytest.approx(
        [0, 0.05, 0.1]
    )
    assert float(rate(60)) == pytest.approx(0.05)  # halfway down the cosine
    assert float(rate(100)) == pytest.approx(0, abs=1e-7)


def test_learning_rate_falls_in_steps():
    """In the epochs that the paper's appendix and its code say."""
    for name, last in (("cifar_paper", 150), ("cifar_released", 147)):
        rate = make_optimizer(RECIPES[name], 390, [])._learning_rate
        before, after = rate(last * 390 - 1), rate(last * 390)
        assert float(before) == pytest.approx(0.1)
        assert float(after) == pytest.approx(0.01)
        assert float(rate(299 * 390)) == pytest.approx(0.001)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_is_pytorchs(decay_all, optimizer):
    """Three steps, from the same weights and gradients; and who is spared."""
    torch = pytest.importorskip("torch", reason="`make peers` installs it")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, name="predictions")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    recipe = Recipe(
        optimizer=optimizer,
        base_lr=0.4,  # of 256 images; 0.1 for the head with a batch of 32
        epochs=100,
        weight_decay=0.1,
        decay_all=decay_all,
        warmup_epochs=0.0,
        schedule="step",
        milestones=(99,),
        momentum=0.9,
        head_lr_factor=2.0,
    )
    variables = model.trainable_variables
    theirs = [torch.tensor(v.numpy() + 1) for v in variables]
    groups = [
        {
            "params": [tensor],
            "weight_decay": 0.1
            if decay_all or "kernel" in variable.path
            else 0.0,
            "lr": recipe.peak_lr * (2 if "predictions" in variable.path else 1),
        }
        for variable, tensor in zip(variables, theirs, strict=True)
    ]
    if optimizer == "sgd":
        reference = torch.optim.SGD(
            groups, recipe.peak_lr, momentum=0.9, nesterov=True
        )
    else:
        reference = torch.optim.AdamW(groups, recipe.peak_lr, eps=1e-7)
    for variable in variables:
        variable.assign(variable.numpy() + 1)
    ours = make_optimizer(recipe, 1, variables)
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradients = [
            rng.normal(size=v.shape).astype("float32") for v in variables
        ]
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = torch.from_numpy(gradient)
        reference.step()
        ours.apply([tf.constant(g) for g in gradients], variables)
    # Keras adds AdamW's epsilon, 1e-7, before it corrects the second moment
    # for its start, which makes it 1 / sqrt(1 - 0.999) as large: 3e-6 of a
    # gradient of 1, 3e-5 of one of 0.1, of three updates of 0.1.
    atol = 1e-5 if recipe.optimizer == "adamw" else 1e-6
    for variable, tensor in zip(variables, theirs, strict=True):
        np.testing.assert_allclose(
            variable.numpy(), tensor.numpy(), rtol=1e-5, atol=atol
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_head_has_a_rate_of_its_own(optimizer):
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, kernel_initializer="ones")(inputs)
    head = keras.layers.Dense(3, kernel_initializer="ones", name="predictions")
    model = keras.Model(inputs, head(x))
    recipe = Recipe(
        optimizer=optimizer,
        weight_decay=0.0,
        head_lr_factor=5.0,
        warmup_epochs=0.0,
    )
    variables = model.trainable_variables
    optimizer = make_optimizer(recipe, 4, variables)
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    body, head = (variables[i].numpy() - 1 for i in (0, 2))
    np.testing.assert_allclose(head, 5 * body, rtol=1e-5)
    assert np.all(body < 0)


def test_moving_average_is_what_is_evaluated_and_saved(recipe, tmp_path):
    """Against the average written out; it starts with the first step."""
    averaging = dataclasses.replace(
        recipe, epochs=1, ema_decay=0.8, warmup_epochs=0.0
    )
    seen = []
    original = trainer._Training._progress

    def spy(self, *arguments):
        if int(self.step):
            seen.append(self.model.get_weights())
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._Training, "_progress", spy)
        run = train(averaging, tmp_path / "x")
    averages = seen[0]
    for weights in seen[1:]:
        averages = [
            0.8 * a + 0.2 * w for a, w in zip(averages, weights, strict=True)
        ]
    assert len(seen) == 3
    model = run.load_model()
    for found, wanted in zip(model.get_weights(), averages, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    result = evaluate(model, recipe.dataset)
    assert result.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-4)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_frozen_parts_and_published_weights_stay(
    ema_decay, run, recipe, tmp_path
):
    tuned = dataclasses.replace(
        recipe,
        ema_decay=ema_decay,
        weights=str(run.model_file),
        freeze_until="conv3",
        epochs=1,
        warmup_epochs=0.0,
    )
    model = train(tuned, tmp_path / "x").load_model()
    before = run.load_model()
    for layer in before.layers:
        if not layer.weights:
            continue
        same = all(
            np.array_equal(a, b)
            for a, b in zip(
                layer.get_weights(),
                model.get_layer(layer.name).get_weights(),
                strict=True,
            )
        )
        part = layer.name.partition("_")[0]
        assert same == (part in ("conv1", "conv2", "conv3")), layer.name
    wrong = dataclasses.replace(tuned, freeze_until="conv9")
    with pytest.raises(ValueError, match="conv1, conv2, .*got 'conv9'"):
        train(wrong, tmp_path / "y")


def test_trained_small_and_evaluated_large(recipe, tmp_path):
    larger = dataclasses.replace(
        recipe, epochs=1, warmup_epochs=0.0, eval_image_size=12, crop_pct=0.8
    )
    run = train(larger, tmp_path / "x")
    model = run.load_model()
    assert model.input_shape == (None, 12, 12, 3)
    result = evaluate(model, recipe.dataset, crop=0.8)
    assert result.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16", "global_clipnorm": 1.0},
        {
            "optimizer": "adamw",
            "gradient_accumulation_steps": 2,
            "ema_decay": 0.9,
        },
        {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.3},
        {
            "form": "concatenated",
            "trivial_augment": True,
            "random_resized_crop_scale": 0.3,
        },
    ],
)
def test_other_recipes_train(changes, recipe, tmp_path):
    run = train(dataclasses.replace(recipe, **changes), tmp_path / "x")
    assert all(np.isfinite(e["val_loss"]) for e in run.history)
    assert run.load_model().dtype_policy.name == "float32"


def test_images_that_cannot_be_decoded(recipe, folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    for split in ("train", "test"):
        (copy / split / "40" / "0.png").write_text("no image")
    broken = dataclasses.replace(recipe, dataset=str(copy))
    with pytest.raises(ValueError, match="cannot decode .*train/40/0.png"):
        train(broken, tmp_path / "x")
    run = train(broken, tmp_path / "y", on_bad_image="skip")
    assert sorted(run.bad_images) == [
        str(copy / split / "40" / "0.png") for split in ("test", "train")
    ]
    with pytest.raises(ValueError, match="cannot decode"):
        evaluate(run.load_model(), str(copy))
    result = evaluate(run.load_model(), str(copy), on_bad_image="skip")
    assert result.examples == 14
    for file in (copy / "test").glob("*/*.png"):
        file.write_text("no image")
    for judge in (
        lambda: evaluate(run.load_model(), str(copy), on_bad_image="skip"),
        lambda: train(broken, tmp_path / "z", on_bad_image="skip"),
    ):
        with pytest.raises(ValueError, match="the split test has none"):
            judge()


def test_models_know_their_classes_and_crop(run, recipe, tmp_path):
    for file in (run.model_file, run.best_model_file):
        assert read_metadata(file) == ModelMetadata(["120", "200", "40"], 1.0)
    keras.saving.load_model(run.model_file).save(tmp_path / "m.keras")
    assert read_metadata(tmp_path / "m.keras") == ModelMetadata()


@pytest.mark.slow
def test_digits_are_learned(tmp_path):
    """Three seeds of the recipe that `make demo` runs, three minutes."""
    found = [
        train(Recipe(seed=seed), tmp_path / str(seed)).history[-1][
            "val_accuracy"
        ]
        for seed in range(3)
    ]
    print(f"held out: {found}, mean {np.mean(found):.4f} ± {np.std(found):.4f}")
    assert np.mean(found) >= 0.985


def test_what_fails_beside_decoding_is_no_bad_image(run, recipe):
    def transform(image):
        raise KeyError("not in this table")

    with pytest.raises(tf.errors.OpError, match="not in this table"):
        evaluate(
            run.load_model(),
            recipe.dataset,
            transform=transform,
            on_bad_image="skip",
        )


def test_weights_that_are_not_finite_are_not_saved(recipe, tmp_path):
    """Where the last step of an epoch breaks them, its loss says nothing."""

    def spoil(progress):
        if progress.step == 6:
            spoiled.trainable_variables[0].assign(
                np.full(spoiled.trainable_variables[0].shape, np.nan)
            )

    original = trainer._build_model

    def build(*arguments):
        nonlocal spoiled
        spoiled = original(*arguments)
        return spoiled

    spoiled = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_build_model", build)
        with pytest.raises(RuntimeError, match="not finite after step 6"):
            train(recipe, tmp_path / "x", on_step=spoil)
    names = [p.name for p in (tmp_path / "x" / "checkpoints").glob("*.index")]
    assert names == ["step-3.index"]


def test_a_class_without_held_out_images(recipe, folder, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "test" / "40")
    run = train(
        dataclasses.replace(
            recipe, dataset=str(copy), epochs=1, warmup_epochs=0.0
        ),
        tmp_path / "x",
    )
    assert evaluate(run.load_model(), str(copy)).examples == 10


def test_a_full_disk_loses_nothing(recipe, tmp_path):
    """With a limit on the size of files, which writing meets the same way."""
    code = (
        "import json, resource, sys\n"
        "from keras_resnext.training import Recipe, train\n"
        "def fill(entry):\n"
        "    if entry['epoch'] == 1:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)\n"
        "train(Recipe(**json.loads(sys.argv[1])), 'x', on_epoch=fill)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(dataclasses.asdict(recipe))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    names = [p.name for p in (tmp_path / "x" / "checkpoints").iterdir()]
    assert sorted(names) == ["step-3.data-00000-of-00001", "step-3.index"]
    steps = []
    train(recipe, tmp_path / "x", on_step=steps.append)
    assert [p.step for p in steps] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"steps_per_execution": -1},
            "`steps_per_execution` must be at least 0",
        ),
        ({"save_every_steps": -1}, "`save_every_steps` must be at least 0"),
        ({"keep": 0}, "`keep` must be at least 1; got 0"),
        ({"on_bad_image": "x"}, '`on_bad_image` must be "error" or "skip"'),
        ({"strategy": "multiworker"}, "needs TF_CONFIG .*neither is set"),
        ({"strategy": "tpu"}, "needs a TPU that responds"),
    ],
)
def test_bad_options_leave_no_trace(options, message, recipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(recipe, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_broken_tf_config(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(ValueError, match="TF_CONFIG must be JSON .*got '{'"):
        train(recipe, tmp_path / "x")
