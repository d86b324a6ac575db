"""Evaluation of every image once."""

import dataclasses
import shutil

import keras
import pytest
import tensorflow as tf

from keras_resnext.training import evaluate
from keras_resnext.training import train
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.pipeline import evaluation_batches
from keras_resnext.transforms import EvalTransform


@pytest.mark.integration
def test_evaluation_counts_every_image_and_agrees_with_keras(toy_run, shades):
    """Against `Model.evaluate`, on a split of 15 in batches of 4."""
    model = toy_run.load_model()
    result = evaluate(model, str(shades), batch_size=4)
    assert (result.split, result.examples) == ("test", 15)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = evaluation_batches(
        open_dataset(str(shades)), "test", EvalTransform.from_crop_pct(8), 15
    )
    batches = batches.map(lambda images, labels, weights: (images, labels))
    batches = batches.apply(tf.data.experimental.assert_cardinality(1))
    loss, accuracy = model.evaluate(batches, verbose=0)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert result.accuracy == pytest.approx(accuracy)
    last = toy_run.history[-1]
    assert last["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert last["val_accuracy"] == pytest.approx(accuracy)


def test_evaluation_wants_probabilities(shades):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    with pytest.raises(ValueError, match="`model` must end in class prob"):
        evaluate(model, str(shades))


def test_evaluation_refuses_other_classes(toy_run):
    with pytest.raises(
        ValueError, match="the model's 3 classes; digits has 10"
    ):
        evaluate(toy_run.load_model(), "digits")


@pytest.mark.integration
def test_what_fails_beside_decoding_is_no_bad_image(toy_run, toy_recipe):
    """Even with the error that decoding would raise."""

    class Failing(EvalTransform):
        def pixels_in_graph(self, image):
            with tf.control_dependencies([tf.debugging.Assert(False, [0])]):
                return super().pixels_in_graph(image)

    with pytest.raises(tf.errors.InvalidArgumentError, match="assert"):
        evaluate(
            toy_run.load_model(),
            toy_recipe.dataset,
            transform=Failing(image_size=8, resize_size=8),
            on_bad_image="skip",
        )


@pytest.mark.slow
def test_a_class_without_validation_images(toy_recipe, shades, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(shades, copy)
    shutil.rmtree(copy / "test" / "40")
    run = train(
        dataclasses.replace(
            toy_recipe, dataset=str(copy), epochs=1, warmup_epochs=0.0
        ),
        tmp_path / "x",
    )
    assert evaluate(run.load_model(), str(copy)).examples == 10
