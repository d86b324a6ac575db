"""Fine-tuning: phases, early stopping, class weights, more epochs, plans."""

import dataclasses
import math
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.training import Recipe
from keras_resnext.training import evaluate
from keras_resnext.training import finetune
from keras_resnext.training import plan_finetuning
from keras_resnext.training import train
from keras_resnext.training.model import build_model
from keras_resnext.training.model import set_trainable
from keras_resnext.training.step import make_train_steps
from keras_resnext.training.trainer import balanced_weights
from keras_resnext.transforms import EvalTransform
from keras_resnext.weights import export_weights


@pytest.fixture(scope="module")
def two_phases(toy_recipe, toy_run):
    """Two epochs of the classifier alone, then two of the whole network."""
    return dataclasses.replace(
        toy_recipe,
        weights=str(toy_run.path),
        epochs=4,
        warmup_epochs=1.0,
        head_epochs=2,
        head_learning_rate=0.04,
        learning_rate=0.01,
        momentum=0.0,
    )


@pytest.fixture(scope="module")
def two_phase_run(two_phases, tmp_path_factory):
    """The finished run of `two_phases`, and the weights after each epoch."""
    folder = tmp_path_factory.mktemp("phases")
    kept = []

    def keep(entry):
        checkpoint = tf.train.load_checkpoint(
            str(folder / "checkpoints" / f"step-{3 * entry['epoch']}")
        )
        names = checkpoint.get_variable_to_shape_map()
        kept.append(
            {
                name: checkpoint.get_tensor(name)
                for name in names
                if name.startswith("model/")
                and checkpoint.get_tensor(name).dtype == np.float32
            }
        )

    run = train(two_phases, folder, on_epoch=keep)
    return run, kept


def _changed(before, after):
    return {
        name for name in before if not np.array_equal(before[name], after[name])
    }


def test_the_classifier_is_trained_alone_first(two_phase_run, two_phases):
    _, (first, second, third, fourth) = two_phase_run
    model = build_model(two_phases, 3)
    head = {v.shape for v in model.get_layer("predictions").weights}
    assert {first[name].shape for name in _changed(first, second)} == head
    # Afterwards all but integers: batch norm's statistics too.
    assert len(_changed(third, fourth)) == len(model.weights)


def test_each_phase_has_its_own_rate(two_phase_run):
    """At the ends of epochs of three steps, against the cosine by hand."""
    run, _ = two_phase_run
    rates = [entry["learning_rate"] for entry in run.history]
    head = [0.04 * (1 + math.cos(math.pi * step / 6)) / 2 for step in (3, 6)]
    # One epoch of warm-up, then a cosine over the last one.
    expected = [*head, 0.01, 0.0]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.integration
@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_kill_in_either_phase_changes_nothing(
    two_phases, two_phase_run, tmp_path, epoch
):
    class KilledError(Exception):
        pass

    def kill(entry):
        if entry["epoch"] == epoch:
            raise KilledError

    undisturbed, _ = two_phase_run
    with pytest.raises(KilledError):
        train(two_phases, tmp_path / "x", on_epoch=kill)
    resumed = train(two_phases, tmp_path / "x")
    for got, want in zip(
        resumed.load_model().get_weights(),
        undisturbed.load_model().get_weights(),
        strict=True,
    ):
        # The order of sums differs between threads, and training amplifies.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.integration
def test_early_stopping_keeps_the_best_epoch(toy_recipe, tmp_path, shades):
    recipe = dataclasses.replace(
        toy_recipe,
        epochs=30,
        # Too high a rate to get better for long.
        learning_rate=0.5,
        early_stopping_patience=2,
    )
    run = train(recipe, tmp_path / "x")
    best = run.best_epoch["epoch"]
    assert len(run.history) == best + 2 < 30
    kept = Classifier.load(run.path)
    assert evaluate(kept, str(shades)).accuracy == pytest.approx(
        run.best_epoch["val_accuracy"]
    )
    # Nothing is left to do.
    assert train(recipe, tmp_path / "x").history == run.history


def test_balanced_classes_weigh_the_same_in_all():
    weights = balanced_weights({"cat": 90, "dog": 30, "none": 0, "eel": 60})
    assert weights == [60 / 90, 2.0, 0.0, 1.0]
    assert 90 * weights[0] + 30 * weights[1] + 60 * weights[3] == 180


@pytest.mark.parametrize("mixed", [False, True])
def test_class_weights_enter_the_gradient(mixed):
    """One step of plain SGD against Keras' own sample weights."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 4)).astype("float32")
    targets = np.eye(3, dtype="float32")[[0, 0, 0, 1, 1, 2]]
    if mixed:
        targets = 0.7 * targets + 0.3 * targets[::-1]
    class_weights = [0.5, 1.0, 2.0]

    def network():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3, activation="softmax")]
        )

    ours, theirs = network(), network()
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(ours.trainable_variables)
    steps = make_train_steps(
        tf.distribute.get_strategy(),
        ours,
        optimizer,
        Recipe(batch_size=6, label_smoothing=0.1),
        class_weights=class_weights,
    )
    batch = tf.data.Dataset.from_tensors((images, targets, tf.ones(6)))
    loss, correct, *_ = steps(iter(batch), 1, tf.constant(0.0)).numpy()
    theirs.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    weight = targets @ np.array(class_weights, "float32")
    history = theirs.train_on_batch(images, targets, sample_weight=weight)
    assert loss / 6 == pytest.approx(float(history[0]), rel=1e-5)
    assert correct / 6 == pytest.approx(float(history[1]))
    for got, want in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.fixture
def copied_run(toy_run, tmp_path):
    """A copy of the finished toy run that may be changed."""
    shutil.copytree(toy_run.path, tmp_path / "copy")
    return type(toy_run)(tmp_path / "copy")


@pytest.mark.integration
@pytest.mark.parametrize(
    "restart", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_finished_runs_are_extended(copied_run, toy_recipe, restart):
    before = copied_run.load_model().get_weights()
    recipe = copied_run.extended(5, restart_schedule=restart)
    run = train(recipe, copied_run.path)
    assert [entry["epoch"] for entry in run.history] == [1, 2, 3, 4, 5]
    kept = keras.saving.load_model(run.path / "model_epoch3.keras")
    for got, want in zip(kept.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    peak = toy_recipe.learning_rate
    rates = [entry["learning_rate"] for entry in run.history[3:]]
    if restart:  # one epoch of warm-up again, then down to zero
        expected = [peak, 0.0]
    else:  # the fourth of five epochs, of which one is warm-up
        expected = [peak * (1 + math.cos(math.pi * 3 / 4)) / 2, 0.0]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)
    assert run.recipe == recipe
    assert train(recipe, run.path).history == run.history
    with pytest.raises(ValueError, match="`epochs` must be more than the 5"):
        run.extended(5)


def test_a_kill_before_the_model_is_written_loses_nothing(
    copied_run, toy_recipe
):
    before = copied_run.load_model().get_weights()
    copied_run.model_file.unlink()
    run = train(toy_recipe, copied_run.path)
    for got, want in zip(run.load_model().get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_unfinished_runs_are_not_extended(copied_run):
    copied_run.model_file.unlink()
    with pytest.raises(ValueError, match="must be a finished run"):
        copied_run.extended(20)


@pytest.mark.slow
def test_learning_curves_are_optional(
    copied_run, toy_recipe, monkeypatch, caplog
):
    monkeypatch.setattr(
        "keras_resnext.training.log.importlib.util.find_spec",
        lambda name: None,
    )
    copied_run.learning_curves.unlink()
    run = train(copied_run.extended(4), copied_run.path)
    assert run.finished
    assert not run.learning_curves.exists()
    assert "learning curves are not drawn" in caplog.text


def test_frozen_batch_norm_keeps_its_statistics():
    recipe = Recipe(
        model="resnext11_1x4d", image_size=8, freeze_batch_norm=True
    )
    model = build_model(recipe, 3)
    norm = model.get_layer("conv1_bn")
    before = norm.moving_mean.numpy()
    model(np.ones((4, 8, 8, 3), "float32"), training=True)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), before)
    trained = {v.path.split("/")[0] for v in model.trainable_variables}
    assert not any(name.endswith("bn") for name in trained)
    assert "conv1_conv" in trained
    set_trainable(model, dataclasses.replace(recipe, freeze_batch_norm=False))
    model(np.ones((4, 8, 8, 3), "float32"), training=True)
    assert not np.array_equal(norm.moving_mean.numpy(), before)


def test_plans_adapt_to_the_data(shades, toy_run, tmp_path):
    plan = plan_finetuning(shades, tmp_path, weights=toy_run.path, epochs=8)
    recipe = plan.recipe
    assert recipe.model == "resnext11_1x4d"
    assert (recipe.image_size, recipe.batch_size) == (8, 8)
    assert (recipe.epochs, recipe.head_epochs) == (8, 2)
    assert recipe.class_weight == "none"
    assert recipe.freeze_batch_norm  # of batches of eight
    assert len(plan.reasons) <= 10
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'epoch' is none. Did you mean epoch"):
        plan_finetuning(shades, tmp_path, weights=toy_run.path, epoch=8)
    with pytest.raises(ValueError, match="`model` must be None or resnext11"):
        plan_finetuning(shades, tmp_path, weights=toy_run.path, model="x")


def test_plans_start_from_what_a_file_says(shades, toy_run, tmp_path):
    """Network, shortcuts, size and crop, not the defaults of a ResNeXt-50."""
    model = toy_run.load_model()
    transform = EvalTransform(image_size=8, resize_size=10)
    file = tmp_path / "toy.keras"
    Classifier(model, toy_run.labels, transform).save(file)
    recipe = plan_finetuning(shades, tmp_path / "x", weights=file).recipe
    assert (recipe.model, recipe.image_size) == ("resnext11_1x4d", 8)
    assert recipe.eval_transform == transform
    assert recipe.residual

    plain = keras_resnext.ResNeXt(
        *((1, 1, 1), 2, 4), stem="cifar", residual=False, classes=3
    )
    file = tmp_path / "plain.safetensors"
    export_weights(plain, file)
    recipe = plan_finetuning(shades, tmp_path / "x", weights=file).recipe
    assert (recipe.model, recipe.image_size) == ("resnext11_2x4d", 32)
    assert not recipe.residual
    assert build_model(recipe, 3).count_params() == plain.count_params()

    file = tmp_path / "other.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(file)
    with pytest.raises(ValueError, match="`weights` must be of a network of"):
        plan_finetuning(shades, tmp_path / "x", weights=file)


@pytest.mark.slow
def test_finetuning_resumes_its_own_recipe(shades, toy_run, tmp_path):
    plans = []
    run = finetune(
        shades,
        tmp_path / "x",
        weights=toy_run.path,
        epochs=2,
        on_plan=plans.append,
    )
    assert run.finished
    assert run.recipe == plans[0].recipe
    again = plan_finetuning(shades, tmp_path / "x", weights=toy_run.path)
    assert again.recipe == run.recipe
    with pytest.raises(ValueError, match="differs: epochs 3"):
        plan_finetuning(shades, tmp_path / "x", weights=toy_run.path, epochs=3)
    other = tmp_path / "other" / "model.keras"
    other.parent.mkdir()
    shutil.copy(toy_run.model_file, other)
    with pytest.raises(ValueError, match="differs: weights '.*other"):
        plan_finetuning(
            shades, tmp_path / "x", weights=other, model="resnext11_1x4d"
        )
