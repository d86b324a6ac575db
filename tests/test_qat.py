"""Quantisation-aware training in our loop, from a run to its int8 file."""

import dataclasses
import shutil

import numpy as np
import pytest

from keras_resnext.classifier import Classifier
from keras_resnext.fake_quantization import FakeQuantization
from keras_resnext.fake_quantization import Observer
from keras_resnext.fake_quantization import QuantizedConv2D
from keras_resnext.training import Recipe
from keras_resnext.training import evaluate
from keras_resnext.training import plan_qat
from keras_resnext.training import train
from keras_resnext.training.model import build_model
from keras_resnext.training.model import set_observers
from keras_resnext.training.run import Run
from tests import training_process as process


@pytest.fixture(scope="module")
def recipe(toy_run):
    """Four epochs of three steps."""
    return plan_qat(
        toy_run.path, "runs/none", epochs=4, learning_rate=0.0125
    ).recipe


@pytest.fixture(scope="module")
def aware(recipe, tmp_path_factory):
    """The finished run of `recipe`."""
    return train(recipe, tmp_path_factory.mktemp("aware"))


def of_kind(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def test_plan(toy_run, tmp_path):
    plan = plan_qat(toy_run.path, tmp_path)
    before = toy_run.recipe
    assert plan.recipe == dataclasses.replace(
        before,
        weights=str(toy_run.path),
        weight_bits=8,
        epochs=2,  # at least
        learning_rate=0.01 * before.learning_rate,
        warmup_epochs=0.0,
    )
    assert "2 epochs, rate 0.000125" in plan.reasons[2]
    assert not list(tmp_path.iterdir())


def test_plan_leaves_out_what_does_not_go_with_rounding(toy_run, tmp_path):
    """A run with all of it, of which only the folder is looked at."""
    odd = dataclasses.replace(
        toy_run.recipe,
        schedule="step",
        milestones=(10,),
        epochs=50,
        head_epochs=2,
        head_learning_rate=0.1,
        drop_path_rate=0.1,
        ema_decay=0.9,
        early_stopping_patience=3,
        precision="mixed_bfloat16",
        sync_batch_norm=True,
        freeze_until="conv2",
    )
    source = tmp_path / "odd"
    source.mkdir()
    for file in toy_run.path.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    odd.save(source / "recipe.json", overwrite=True)
    found = plan_qat(source, tmp_path / "new").recipe
    assert found == dataclasses.replace(
        plan_qat(toy_run.path, tmp_path / "new").recipe,
        weights=str(source),
        epochs=5,
    )


def test_it_learns_and_counts_steps(aware, toy_run):
    losses = [entry["loss"] for entry in aware.history]
    assert losses[-1] < losses[0]
    assert losses[-1] < toy_run.history[-1]["loss"]
    model = aware.load_model()
    rounded = of_kind(model, FakeQuantization)
    convolutions = of_kind(model, QuantizedConv2D)
    assert rounded
    assert convolutions
    for layer in (*rounded, *convolutions):
        assert int(layer.steps) == 12
        assert layer.observer.freeze_ranges_after == 9
    for layer in rounded:
        low, high = layer.limits
        assert low <= 0 < high
    result = evaluate(model, aware.recipe.dataset)
    assert result.accuracy == aware.history[-1]["val_accuracy"]


@pytest.mark.parametrize(
    ("changes", "statistics", "ranges"),
    [
        ({}, 6, 9),  # half and three quarters of the steps
        ({"gradient_accumulation_steps": 4}, 24, 36),  # counted in parts
        ({"epochs": 12, "extended_from": 4}, 6, 9),  # nothing thaws
        ({"freeze_batch_norm": True}, 0, 9),
    ],
)
def test_statistics_freeze_before_ranges(recipe, changes, statistics, ranges):
    model = build_model(recipe, classes=3)
    set_observers(model, dataclasses.replace(recipe, **changes), 3)
    expected = Observer(
        freeze_statistics_after=statistics, freeze_ranges_after=ranges
    )
    for kind in (FakeQuantization, QuantizedConv2D):
        assert {layer.observer for layer in of_kind(model, kind)} == {expected}


@pytest.fixture(scope="module")
def frozen(recipe, tmp_path_factory):
    """A run whose batch norms stay as they are."""
    return train(
        dataclasses.replace(recipe, freeze_batch_norm=True, epochs=2),
        tmp_path_factory.mktemp("frozen"),
    )


@pytest.mark.integration
def test_frozen_batch_norm_stays(frozen, toy_run):
    model = frozen.load_model()
    before = toy_run.load_model()
    for conv in of_kind(model, QuantizedConv2D):
        norm = before.get_layer(conv.name.replace("_conv", "_bn"))
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            np.testing.assert_array_equal(
                getattr(conv, name), getattr(norm, name), err_msg=conv.name
            )
        old = before.get_layer(conv.name).kernel
        assert np.abs(conv.kernel.numpy() - old.numpy()).max() > 0


@pytest.mark.integration
def test_resumed_run_ends_alike(aware, recipe, tmp_path):
    """With the ranges and the counters of the checkpoint."""

    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.step == 8:  # the statistics are frozen, ranges are not
            raise StoppedError

    with pytest.raises(StoppedError):
        train(recipe, tmp_path, on_step=stop, save_every_steps=7)
    resumed = train(recipe, tmp_path)
    for got, want in zip(
        resumed.load_model().get_weights(),
        aware.load_model().get_weights(),
        strict=True,
    ):
        # As in `test_trainer`; a weight that rounds the other way is a step.
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-3)


@pytest.mark.integration
def test_moving_average_of_ranges(recipe, tmp_path):
    averaged = dataclasses.replace(recipe, ema_decay=0.9, epochs=2)
    model = train(averaged, tmp_path).load_model()
    for layer in of_kind(model, FakeQuantization):
        assert layer.limits[0] < layer.limits[1]
        assert int(layer.steps) == 6  # not an average


@pytest.mark.integration
def test_two_replicas(frozen, tmp_path):
    """Each has its own ranges; what is kept is their mean."""
    process.finish(
        process.start(frozen.recipe, tmp_path, cpus=2, strategy="mirrored")
    )
    runs = Run(tmp_path), frozen
    losses = [[entry["loss"] for entry in run.history] for run in runs]
    np.testing.assert_allclose(*losses, rtol=0.05)
    ranges = [
        [x.limits for x in of_kind(run.load_model(), FakeQuantization)]
        for run in runs
    ]
    # The largest of four images instead of eight is a little less.
    scale = np.ptp(ranges[1], axis=1, keepdims=True)
    assert (np.abs(np.subtract(*ranges)) < 0.25 * scale).all()


@pytest.mark.integration
def test_the_command_line(toy_run, run_cli, tmp_path):
    source = tmp_path / "x"
    shutil.copytree(toy_run.path, source)
    code, out, _ = run_cli("finetune", str(source), "--qat", "--epochs", "2")
    assert code == 0
    assert "weights to 8 bits by channel" in out
    run = Run(tmp_path / "x-qat")
    assert run.finished
    assert run.recipe.weight_bits == 8
    code, out, _ = run_cli("finetune", str(source), "--qat", "--epochs", "2")
    assert code == 0
    assert "Resuming" in out
    code, _, err = run_cli(
        *("export", str(run.path), "--format", "tflite,onnx"),
        *("--quantize", "int8"),
    )
    assert code == 0, err
    assert Classifier.load(run.path).labels == run.labels
    code, out, err = run_cli("evaluate", str(run.path), "--quantized", "10")
    assert code == 0, err
    for row in ("float32", "dynamic", "QAT int8", "conv1_conv"):
        assert row in out
    shutil.rmtree(source)  # the network that it began with
    code, _, err = run_cli("evaluate", str(run.path), "--quantized", "10")
    assert code == 1
    assert "`quantized` must be 0 for a model of" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "`source` must be the folder of a finished run"),
        (["X", "--weights", "imagenet_v2"], "`weights` must not be given"),
        (["X", "--model", "resnext50"], "`model` must not be given"),
        (["X", "--workdir", "X"], "`workdir` must be another folder"),
        (["X", "--form", "branches"], "`form` must be grouped"),
        (["X", "--weight-bits", "9"], "`weight_bits` must be 0 or 2 to 8"),
        (["X", "--weight-bits", "0"], "`weight_bits` must be from 2 to 8"),
    ],
)
def test_mistakes(arguments, message, toy_run, run_cli):
    places = [str(toy_run.path) if x == "X" else x for x in arguments]
    code, _, err = run_cli("finetune", *places, "--qat")
    assert code == 1
    assert message in err


def test_more_mistakes(aware, toy_run, tmp_path, run_cli):
    with pytest.raises(ValueError, match="must be a run in floating point"):
        plan_qat(aware.path, tmp_path)
    with pytest.raises(ValueError, match="`workdir` must be new or a run of"):
        plan_qat(toy_run.path, shutil.copytree(toy_run.path, tmp_path / "y"))
    code, _, err = run_cli("finetune", "photos")
    assert code == 1
    assert "`workdir` must be given" in err
    for name, value in (
        ("precision", "mixed_bfloat16"),
        ("drop_path_rate", 0.1),
        ("sync_batch_norm", True),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            Recipe(weight_bits=8, **{name: value})
