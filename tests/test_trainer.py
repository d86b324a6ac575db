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

from keras_resnext.classifier import Classifier
from keras_resnext.training import Recipe
from keras_resnext.training import evaluate
from keras_resnext.training import train
from keras_resnext.training import trainer


def test_speed_is_that_of_training(toy_run):
    """Not of tracing, which takes a hundred times as long as a step here."""
    first, *others = [entry["images_per_second"] for entry in toy_run.history]
    assert first > min(others) / 5
    assert all(0 <= e["input_wait"] <= 1 for e in toy_run.history)


def test_clock_leaves_tracing_out(monkeypatch):
    clock = trainer._Clock(started=100.0)
    now = 111.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock.steps, clock.waited = 10, 1.0
    clock.traced.append((10, 10.0, 0.5))
    assert clock.read() == (10 / 11, 1 / 11)
    now = 121.0
    clock.steps = 14
    clock.traced.append((4, 9.0, 0.25))
    assert clock.read() == (14 / 21, 1 / 21)
    now = 123.0
    clock.steps = 24
    assert clock.read() == (10 / 4, 0.25 / 4)


def test_best_model_is_the_best_epochs(toy_run, shades):
    best = max(entry["val_accuracy"] for entry in toy_run.history)
    model = keras.saving.load_model(toy_run.best_model_file)
    assert evaluate(model, str(shades)).accuracy == pytest.approx(best)


def test_training_learns(toy_run):
    assert toy_run.history[-1]["loss"] < toy_run.history[0]["loss"]


@pytest.mark.integration
def test_resuming_ends_where_an_unbroken_run_ends(
    toy_run, toy_recipe, tmp_path
):
    class StoppedError(Exception):
        pass

    def stop_after_second(entry):
        if entry["epoch"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(toy_recipe, tmp_path / "x", on_epoch=stop_after_second)
    assert not (tmp_path / "x" / "model.keras").exists()
    steps = []
    resumed = train(toy_recipe, tmp_path / "x", on_step=steps.append)
    assert [step.step for step in steps] == [7, 8, 9]
    assert {step.resumed_after for step in steps} == {6}
    for got, want in zip(resumed.history, toy_run.history, strict=True):
        for key in want.keys() - {"images_per_second", "input_wait"}:
            assert got[key] == pytest.approx(want[key], rel=1e-3)
    for got, want in zip(
        resumed.load_model().get_weights(),
        toy_run.load_model().get_weights(),
        strict=True,
    ):
        # The order of sums differs between threads, and training amplifies.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_loss_that_is_not_finite_stops_the_run(
    toy_recipe, tmp_path, monkeypatch
):
    def broken_step(*_, **__):
        return lambda *_: tf.constant([np.nan, 0, 8, 0, 0])

    monkeypatch.setattr(trainer.steps, "make_train_steps", broken_step)
    with pytest.raises(RuntimeError, match="not finite in step 1 .epoch 1"):
        train(toy_recipe, tmp_path / "x")
    assert not (tmp_path / "x" / "model.keras").exists()


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
def test_bad_recipes_leave_no_trace(toy_recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(toy_recipe, **changes), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_unknown_strategy(toy_recipe, tmp_path):
    with pytest.raises(ValueError, match="`strategy` must be one of auto"):
        train(toy_recipe, tmp_path / "x", strategy="tpus")


@pytest.mark.integration
def test_moving_average_is_what_is_evaluated_and_saved(toy_recipe, tmp_path):
    """Against the average written out; it starts with the first step."""
    averaging = dataclasses.replace(
        toy_recipe, epochs=1, ema_decay=0.8, warmup_epochs=0.0
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
    result = evaluate(model, toy_recipe.dataset)
    assert result.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_frozen_parts_and_published_weights_stay(
    ema_decay, toy_run, toy_recipe, tmp_path
):
    tuned = dataclasses.replace(
        toy_recipe,
        ema_decay=ema_decay,
        weights=str(toy_run.model_file),
        freeze_until="conv3",
        epochs=1,
        warmup_epochs=0.0,
    )
    model = train(tuned, tmp_path / "x").load_model()
    before = toy_run.load_model()
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


@pytest.mark.integration
def test_trained_small_and_evaluated_large(toy_recipe, tmp_path):
    larger = dataclasses.replace(
        toy_recipe,
        epochs=1,
        warmup_epochs=0.0,
        eval_image_size=12,
        crop_pct=0.8,
    )
    run = train(larger, tmp_path / "x")
    model = run.load_model()
    assert model.input_shape == (None, 12, 12, 3)
    result = evaluate(Classifier.load(run.path), toy_recipe.dataset)
    assert result.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        pytest.param(
            {"precision": "mixed_float16", "global_clipnorm": 1.0},
            marks=pytest.mark.slow,
        ),
        {
            "optimizer": "adamw",
            "gradient_accumulation_steps": 2,
            "ema_decay": 0.9,
        },
        {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.3},
        pytest.param({"drop_path_rate": 0.5}, marks=pytest.mark.slow),
        pytest.param(
            {
                "form": "concatenated",
                "trivial_augment": True,
                "random_resized_crop_scale": 0.3,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_other_recipes_train(changes, toy_recipe, tmp_path):
    run = train(dataclasses.replace(toy_recipe, **changes), tmp_path / "x")
    assert all(np.isfinite(e["val_loss"]) for e in run.history)
    assert run.load_model().dtype_policy.name == "float32"


@pytest.mark.slow
def test_stochastic_depth_is_trained_resumed_and_not_saved(
    toy_recipe, tmp_path
):
    recipe = dataclasses.replace(toy_recipe, drop_path_rate=0.5)
    expected = train(recipe, tmp_path / "x")
    model = expected.load_model()
    assert not any(layer.name.endswith("_drop") for layer in model.layers)
    result = evaluate(model, recipe.dataset)
    last = expected.history[-1]
    assert result.loss == pytest.approx(last["val_loss"], rel=1e-4)

    def stop(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "y", on_epoch=stop)
    resumed = train(recipe, tmp_path / "y")
    # Another block dropped in one step would change the loss by percents.
    for got, want in zip(resumed.history, expected.history, strict=True):
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-3)


@pytest.mark.slow
def test_images_that_cannot_be_decoded(toy_recipe, shades, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(shades, copy)
    for split in ("train", "test"):
        (copy / split / "40" / "0.png").write_text("no image")
    broken = dataclasses.replace(toy_recipe, dataset=str(copy))
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


@pytest.mark.slow
def test_digits_are_learned(tmp_path):
    """Three seeds of the recipe that `make demo` runs, three minutes."""
    found = [
        train(Recipe(seed=seed), tmp_path / str(seed)).history[-1][
            "val_accuracy"
        ]
        for seed in range(3)
    ]
    print(found, np.mean(found), np.std(found))
    assert np.mean(found) >= 0.985


@pytest.mark.integration
def test_weights_that_are_not_finite_are_not_saved(toy_recipe, tmp_path):
    """Where the last step of an epoch breaks them, its loss says nothing."""

    def spoil(progress):
        if progress.step == 6:
            spoiled.trainable_variables[0].assign(
                np.full(spoiled.trainable_variables[0].shape, np.nan)
            )

    original = trainer.build_model

    def build(*arguments):
        nonlocal spoiled
        spoiled = original(*arguments)
        return spoiled

    spoiled = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_model", build)
        with pytest.raises(RuntimeError, match="not finite after step 6"):
            train(toy_recipe, tmp_path / "x", on_step=spoil)
    names = [p.name for p in (tmp_path / "x" / "checkpoints").glob("*.index")]
    assert names == ["step-3.index"]


@pytest.mark.slow
def test_a_full_disk_loses_nothing(toy_recipe, tmp_path):
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
        [
            sys.executable,
            "-c",
            code,
            json.dumps(dataclasses.asdict(toy_recipe)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    names = [p.name for p in (tmp_path / "x" / "checkpoints").iterdir()]
    assert sorted(names) == ["step-3.data-00000-of-00001", "step-3.index"]
    steps = []
    train(toy_recipe, tmp_path / "x", on_step=steps.append)
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
def test_bad_options_leave_no_trace(options, message, toy_recipe, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(toy_recipe, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_broken_tf_config(toy_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(ValueError, match="TF_CONFIG must be JSON .*got '{'"):
        train(toy_recipe, tmp_path / "x")
