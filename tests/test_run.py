"""The folder of a run: what is in it, and what is refused."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext.classifier import Classifier
from keras_resnext.training import Recipe
from keras_resnext.training import Run
from keras_resnext.training import train


def test_run_is_written_down(toy_run, toy_recipe):
    assert Run(toy_run.path).recipe == toy_recipe
    assert toy_run.labels == ["120", "200", "40"]
    assert [entry["epoch"] for entry in toy_run.history] == [1, 2, 3]
    assert toy_run.learning_curves.read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in toy_run.path.iterdir()}
    assert names == {
        "recipe.json",
        "labels.json",
        "data.json",
        "history.jsonl",
        "checkpoints",
        "tensorboard",
        "best.keras",
        "learning_curves.png",
        "model.keras",
    }


def test_tensorboard_has_the_history(toy_run):
    (file,) = toy_run.tensorboard.iterdir()
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found.setdefault(value.tag, []).append(
                (event.step, tf.make_ndarray(value.tensor).item())
            )
    losses = [(3 * e["epoch"], e["val_loss"]) for e in toy_run.history]
    np.testing.assert_allclose(found["val/loss"], losses, rtol=1e-6)
    assert [step for step, _ in found["learning_rate"]] == list(range(1, 10))


def test_unfinished_run_has_no_model(tmp_path):
    with pytest.raises(ValueError, match="folder of a training run"):
        Run(tmp_path).load_model()
    (tmp_path / "recipe.json").write_text('{"epoch": 3}')
    with pytest.raises(ValueError, match="recipe.json must be a recipe"):
        _ = Run(tmp_path).recipe
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="has no model.keras yet"):
        Run(tmp_path).load_model()


def test_models_know_their_classes_and_transform(toy_run, toy_recipe, tmp_path):
    for source in (toy_run.path, toy_run.model_file, toy_run.best_model_file):
        classifier = Classifier.load(source)
        assert classifier.labels == ["120", "200", "40"]
        assert classifier.transform == toy_recipe.eval_transform
    keras.saving.load_model(toy_run.model_file).save(tmp_path / "m.keras")
    assert Classifier.load(tmp_path / "m.keras").labels is None


def test_files_of_unknown_origin_are_refused(toy_recipe, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="has checkpoints and no recipe.json"):
        train(toy_recipe, tmp_path)


def test_workdir_must_be_a_folder(toy_recipe, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(
        ValueError, match="`workdir` must be a folder; .*x is a"
    ):
        train(toy_recipe, tmp_path / "x")


def test_another_run_is_refused_and_untouched(toy_run, toy_recipe):
    def state():
        return {
            path: path.stat().st_mtime_ns
            for path in toy_run.path.rglob("*")
            if path.is_file()
        }

    before = state()
    other = dataclasses.replace(toy_recipe, epochs=4, seed=1)
    with pytest.raises(
        ValueError, match=r"epochs 4 \(there 3\), seed 1 \(there 0\)"
    ):
        train(other, toy_run.path)
    assert state() == before


@pytest.mark.slow
def test_changed_classes_are_refused_and_labels_kept(shades, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(shades, copy)
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


def test_finished_run_is_left_alone(toy_run, toy_recipe):
    before = toy_run.model_file.stat().st_mtime_ns

    def no_step(progress):
        raise AssertionError("trained again")

    train(toy_recipe, toy_run.path, on_step=no_step)
    assert toy_run.model_file.stat().st_mtime_ns == before
