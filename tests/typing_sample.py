"""What users write, for type checkers: it is checked and never run.

Keras, TensorFlow and TFDS have no types, so that what comes from them is
`Any` to mypy; all else has the types that are asserted here.
"""

import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import assert_type

import keras  # type: ignore[import-untyped]
import numpy as np

import keras_resnext
from keras_resnext import explain
from keras_resnext import export
from keras_resnext import layers
from keras_resnext import training


def build() -> keras.Model:
    model = keras_resnext.ResNeXt50(weights=None)
    assert_type(model, keras.Model)
    keras_resnext.ResNeXt101_32x8d(False, pathlib.Path("mine.safetensors"))
    keras_resnext.ResNeXt29_8x64d(input_shape=(None, None, 3), pooling="avg")
    keras_resnext.ResNet50(classes=10, classifier_activation=None)
    assert_type(keras_resnext.list_models(), list[str])
    return keras_resnext.ResNeXt(
        (2, 2, 2), 8, 4, filters=64, stem="cifar", drop_path_rate=0.1
    )


def rewrite(model: keras.Model, images: np.ndarray) -> None:
    for new in (
        keras_resnext.convert_form(model, "branches"),
        keras_resnext.fold_batch_norm(model),
        keras_resnext.quantization_aware(
            model, observers=keras_resnext.Observer(momentum=0.9)
        ),
        keras_resnext.to_stock_layers(model),
    ):
        assert_type(new, keras.Model)
    maps = keras_resnext.feature_pyramid(model)
    assert_type(maps.pyramid_outputs, dict[str, keras.KerasTensor])
    infer = keras_resnext.inference_function(model)
    assert_type(infer, Callable[[Any], Any])
    infer(keras_resnext.preprocess_input(images, "channels_last"))

    cost = keras_resnext.count_complexity(model)
    assert_type(cost, keras_resnext.Complexity)
    assert_type(cost.multiply_adds, int)
    assert_type(cost.by_layer, dict[str, keras_resnext.Complexity])


def weights(model: keras.Model) -> None:
    for record in keras_resnext.list_weights("resnext50"):
        assert_type(record.tag, str)
        assert_type(record.top1, float | None)
        assert_type(record.transform, keras_resnext.EvalTransform)
    record = keras_resnext.get_weights("resnext50", "imagenet")
    keras_resnext.load_weights(model, record)
    keras_resnext.load_weights(model, "tv2_in1k")
    keras_resnext.export_weights(
        model, pathlib.Path("mine.safetensors"), overwrite=True
    )


def classify(scores: np.ndarray) -> keras_resnext.Classifier:
    classifier = keras_resnext.Classifier.load("resnext50", weights="imagenet")
    assert_type(classifier, keras_resnext.Classifier)
    assert_type(classifier.labels, Sequence[str] | None)
    assert_type(classifier.transform, keras_resnext.EvalTransform | None)
    for prediction in classifier.predict("photos/", on_bad_image="skip"):
        assert_type(prediction, keras_resnext.Prediction)
        assert_type(prediction.label, str)
        assert_type(prediction.top(3), list[tuple[str, float]])
        assert_type(prediction.probabilities, np.ndarray | None)
        assert_type(prediction.error, str | None)
    classifier.save(pathlib.Path("resnext50.keras"))
    transform = keras_resnext.EvalTransform.from_crop_pct(224, 0.875)
    assert_type(transform, keras_resnext.EvalTransform)
    assert_type(transform("photo.jpg"), np.ndarray)
    assert_type(transform.normalize(transform.pixels("photo.jpg")), np.ndarray)
    assert_type(
        keras_resnext.decode_predictions(scores),
        list[list[tuple[str, str, float]]],
    )
    return keras_resnext.Classifier(build(), ["cat", "dog"], transform)


def look_inside(classifier: keras_resnext.Classifier) -> None:
    heat = explain.grad_cam(classifier, "photo.jpg", 3)
    assert_type(heat, np.ndarray)
    assert_type(explain.overlay(np.zeros((8, 8, 3)), heat), np.ndarray)
    explain.integrated_gradients(classifier, "photo.jpg", steps=20)
    vectors = explain.embed(classifier, "photos/")
    assert_type(
        explain.nearest_neighbors(vectors, vectors[:1]),
        tuple[np.ndarray, np.ndarray],
    )


def use_layers() -> None:
    grouped = layers.GroupedConv2D(128, 3, groups=32, padding="same")
    assert_type(grouped, layers.GroupedConv2D)
    layers.PointwiseConv2D(256, 1, use_bias=False)
    layers.FusedBatchNormalization(epsilon=1e-5)
    assert_type(layers.conv_implementation("bfloat16"), str)
    with layers.use_conv_implementation("split") as nothing:
        assert_type(nothing, None)


def train() -> training.Run:
    recipe = training.Recipe(dataset="cifar10", model="resnext29_8x64d")
    assert_type(training.RECIPES, dict[str, training.Recipe])
    assert_type(recipe.override(["epochs=3"]), training.Recipe)
    assert_type(recipe.eval_transform, keras_resnext.EvalTransform)
    run = training.train(
        recipe,
        pathlib.Path("runs/cifar"),
        training.TrainOptions(save_every_steps=500),
        on_step=lambda progress: print(progress.loss + progress.step),
        on_epoch=lambda entry: print(entry["val_accuracy"]),
    )
    assert_type(run, training.Run)
    assert_type(run.recipe, training.Recipe)
    assert_type(run.history, list[dict[str, Any]])
    assert_type(run.labels, list[str])
    plan = training.plan_finetuning("photos", "runs/mine")
    assert_type(plan.reasons, tuple[str, ...])
    plan = training.plan_qat("runs/x", "runs/x-qat", epochs=2)
    training.finetune("photos", "runs/mine", model="resnext50")
    result = training.evaluate(
        keras_resnext.Classifier.load(run.path), "cifar10", batch_size=32
    )
    assert_type(result.accuracy, float)
    assert_type(result.probabilities, np.ndarray)
    assert_type(result.report("report"), dict[str, Any])
    address = keras_resnext.push_to_hub(
        keras_resnext.Classifier.load(run.path),
        "user/name",
        evaluation=result,
        private=True,
        dry_run=pathlib.Path("name"),
    )
    assert_type(address, str)
    return run


def write_files(
    classifier: keras_resnext.Classifier, images: np.ndarray
) -> export.Report:
    session = export.Session(classifier, images=images)
    export.to_saved_model(classifier, "saved_model", top=3)
    export.to_onnx(session, pathlib.Path("model.onnx"), opset=17)
    limits = export.Limits(top1_agreement=0.99)
    try:
        artifact = export.to_tflite(
            session,
            "model.tflite",
            quantize="int8",
            calibration=images,
            limits=limits,
        )
    except export.ExportError as error:
        assert_type(error.artifact, export.Artifact | None)
        raise
    assert_type(artifact.path, pathlib.Path)
    assert_type(artifact.agreement, export.Agreement)
    assert_type(artifact.open(threads=2)(images), dict[str, np.ndarray])
    for layer in artifact.layer_errors:
        assert_type(layer.accumulated, float)
    plan = export.plan_files("export", ("tflite",), (None, "float16"))
    report = export.export_files(session, plan, images=images)
    assert_type(report.files[0].latency_ms, float | None)
    return report
