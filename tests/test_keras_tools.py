"""Keras' own tools on our models, beside the same net of Keras' layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext import Classifier
from keras_resnext import EvalTransform
from keras_resnext import to_stock_layers
from keras_resnext.training.optimizer import SGD
from keras_resnext.training.optimizer import RatedAdamW
from keras_resnext.training.optimizer import RatedSGD
from tests.conftest import randomize

pytestmark = pytest.mark.integration

CLASSES = 3
LOSS = "sparse_categorical_crossentropy"
ROUNDOFF = 2**-24  # of float32
# Of sums of at most 1000 terms, ten layers deep.
FORWARD_ERROR = 10 * np.sqrt(1000) * ROUNDOFF
# Rounding alone changes a millionth in six steps. Rarely, it also moves a
# value across a ReLU's kink: one of those that a channel's gradient sums, four
# images of 16 x 16 pixels, and what is trained changes by less than its share.
ONE_PIXEL = 1 / (4 * 16 * 16)
# One of each of our layers, and the classifier.
WITH_LORA = ("conv2_block1_1_conv", "conv2_block1_2_conv", "predictions")


def make(depths=(1,), size=16, **options):
    keras.utils.set_random_seed(0)
    return randomize(
        keras_resnext.ResNeXt(
            depths,
            4,
            4,
            stem="cifar",
            filters=32,
            classes=CLASSES,
            input_shape=(size, size, 3),
            **options,
        )
    )


def examples():
    """Twelve images, brighter from class to class, and their labels."""
    labels = np.arange(12) % CLASSES
    noise = np.random.default_rng(1).normal(size=(12, 16, 16, 3))
    return (noise + labels[:, None, None, None]).astype("float32"), labels


IMAGES, LABELS = examples()


def fit(model, optimizer=None, *, epochs=2, compiled=None, **options):
    """Train in batches of four, in the same order; the history."""
    model.compile(
        optimizer or keras.optimizers.SGD(0.01, momentum=0.9),
        LOSS,
        metrics=["accuracy"],
        **(compiled or {}),
    )
    return fit_again(model, epochs=epochs, **options)


def fit_again(model, **options):
    done = model.fit(
        IMAGES, LABELS, batch_size=4, shuffle=False, verbose=0, **options
    )
    return done.history


def difference(one, other):
    """Largest difference of two lists of arrays, relative to each array."""
    return max(
        np.max(np.abs(a - b)) / np.max(np.abs(b))
        for a, b in zip(one, other, strict=True)
    )


def error_of(values, expected):
    """The same of two arrays or lists of numbers."""
    return difference([np.asarray(values)], [np.asarray(expected)])


@pytest.fixture(scope="module")
def stock():
    """Losses and weights of Keras' layers.

    Keras compiles their grouped convolutions, so tests with it take longer.
    """
    model = to_stock_layers(make((1, 1)))
    return fit(model)["loss"], model.get_weights()


@pytest.mark.parametrize(
    "compiled",
    [
        {},
        {"run_eagerly": True},
        {"steps_per_execution": 3},
        {"jit_compile": True},
    ],
    ids=str,
)
def test_ways_to_compile_train_as_keras_layers(compiled, stock):
    losses, weights = stock
    model = make((1, 1))
    history = fit(model, compiled=compiled)
    assert error_of(history["loss"], losses) < ONE_PIXEL
    assert difference(model.get_weights(), weights) < ONE_PIXEL


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A training that spoils its weights after two epochs, and its files."""
    folder = tmp_path_factory.mktemp("watched")
    model = make()
    weights = []
    history = fit(
        model,
        epochs=5,
        validation_data=(IMAGES[::-1], LABELS[::-1]),
        callbacks=[
            keras.callbacks.LearningRateScheduler(
                lambda epoch, rate: 10.0 if epoch == 2 else rate
            ),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: weights.append(model.get_weights())
            ),
            keras.callbacks.ModelCheckpoint(
                folder / "best.keras", save_best_only=True
            ),
            keras.callbacks.ModelCheckpoint(
                folder / "best.weights.h5",
                save_best_only=True,
                save_weights_only=True,
            ),
            keras.callbacks.EarlyStopping(
                patience=1, restore_best_weights=True
            ),
        ],
    )
    best = np.argmin(history["val_loss"])
    assert best == 1
    return folder, model, history, weights[best]


def test_model_checkpoint_keeps_the_best_model(watched):
    folder, _, history, best = watched
    model = keras.saving.load_model(folder / "best.keras")
    assert difference(model.get_weights(), best) == 0
    # Compiled as it was, so it can be evaluated and trained on.
    assert model.optimizer.iterations == 6
    loss, _ = model.evaluate(IMAGES[::-1], LABELS[::-1], verbose=0)
    assert error_of(loss, min(history["val_loss"])) < FORWARD_ERROR


@pytest.mark.parametrize(
    "load", [keras.Model.load_weights, keras_resnext.load_weights]
)
def test_model_checkpoint_keeps_the_best_weights(load, watched):
    folder, _, _, best = watched
    model = randomize(make(), seed=1)
    load(model, folder / "best.weights.h5")
    assert difference(model.get_weights(), best) == 0


def test_early_stopping_restores_the_best_weights(watched):
    _, model, history, best = watched
    assert len(history["loss"]) == 3
    assert difference(model.get_weights(), best) == 0


def test_our_optimizer_survives_a_model_file(tmp_path):
    model = make()
    optimizer = SGD(0.01, momentum=0.9, weight_decay=0.1)
    fit(model, optimizer, epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is SGD
    states = [
        [v.numpy() for v in m.optimizer.variables] for m in (loaded, model)
    ]
    assert difference(*states) == 0
    losses = [fit_again(m, epochs=2)["loss"] for m in (loaded, model)]
    assert error_of(*losses) < ONE_PIXEL


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1, momentum=0.9),
        keras.optimizers.LossScaleOptimizer(SGD(0.1, momentum=0.9)),
        RatedSGD(learning_rate=0.1, l2_weight_decay=0.25),
        RatedAdamW(learning_rate=0.1, decoupled_weight_decay=0.25),
    ],
    ids=lambda x: type(x).__name__,
)
def test_our_optimizers_are_serialized(optimizer):
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    assert type(getattr(again, "inner_optimizer", again)) is type(inner)
    assert again.get_config() == optimizer.get_config()


def test_other_losses_do_not_keep_a_file_from_being_a_classifier(tmp_path):
    def own_loss(labels, outputs):
        return keras.losses.sparse_categorical_crossentropy(labels, outputs)

    model = make()
    model.compile("sgd", own_loss)
    model.save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match="own_loss"):
        keras.saving.load_model(tmp_path / "model.keras")
    loaded = Classifier.load(tmp_path / "model.keras").model
    assert difference(loaded.get_weights(), model.get_weights()) == 0


class Interrupt(keras.callbacks.Callback):
    """Ends the program in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 5:
            raise KeyboardInterrupt


def test_backup_and_restore_goes_on_where_it_was(tmp_path):
    def train(*callbacks):
        model = make()
        history = fit(
            model,
            SGD(0.01, momentum=0.9),
            epochs=3,
            callbacks=[
                keras.callbacks.BackupAndRestore(tmp_path / "backup"),
                *callbacks,
            ],
        )
        return model, history["loss"]

    unbroken, expected = train()
    with pytest.raises(KeyboardInterrupt):
        train(Interrupt())
    resumed, losses = train()
    assert error_of(losses, expected[1:]) < ONE_PIXEL  # of two epochs
    assert resumed.optimizer.iterations == unbroken.optimizer.iterations == 9
    assert difference(resumed.get_weights(), unbroken.get_weights()) < ONE_PIXEL


def test_tensorboard_has_the_history(tmp_path):
    pytest.importorskip("tensorboard", reason="make peers")
    history = fit(
        make(),
        validation_data=(IMAGES, LABELS),
        callbacks=[keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)],
    )
    found = {}
    for split in ("train", "validation"):
        (file,) = (tmp_path / split).iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found.setdefault((split, value.tag), []).append(
                    tf.make_ndarray(value.tensor)
                )
    for key, values in history.items():
        split = "validation" if key.startswith("val_") else "train"
        tag = f"epoch_{key.removeprefix('val_')}"
        # Written in float32.
        np.testing.assert_allclose(found[split, tag], values, rtol=ROUNDOFF)
    assert ("train", "conv2_block1_2_conv/kernel/histogram") in found


def test_learning_rate_is_reduced_on_plateaus():
    weights = []
    for kind in (SGD, keras.optimizers.SGD):
        model = make()
        history = fit(
            model,
            kind(0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
            epochs=4,
            callbacks=[
                # No loss is ever better by 100.
                keras.callbacks.ReduceLROnPlateau(
                    "loss", factor=0.5, patience=1, min_delta=100
                )
            ],
        )
        np.testing.assert_allclose(
            history["learning_rate"], [0.02, 0.02, 0.01, 0.005], rtol=ROUNDOFF
        )
        weights.append(model.get_weights())
    assert difference(*weights) < ONE_PIXEL


def cross_entropies(model):
    """Of the first four images, as the network sees them in training."""
    probabilities = model(IMAGES[:4], training=True).numpy()
    return -np.log(probabilities[np.arange(4), LABELS[:4]].astype("float64"))


def test_weights_of_classes_and_samples():
    model = make()
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    of_classes = np.array([0.5, 1.0, 4.0])
    of_samples = np.array([0.0, 1.0, 2.0, 5.0])
    for options, weights in (
        ({"class_weight": dict(enumerate(of_classes))}, of_classes[LABELS[:4]]),
        ({"sample_weight": of_samples}, of_samples),
    ):
        losses = cross_entropies(model)
        expected = np.mean(weights * losses)
        assert abs(expected - np.mean(losses)) > 0.1
        done = model.fit(IMAGES[:4], LABELS[:4], verbose=0, **options)
        assert error_of(done.history["loss"], [expected]) < FORWARD_ERROR


def test_ema_weights_are_swapped_in():
    momentum = 0.75
    model = make()
    steps = []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(
            [v.numpy() for v in model.trainable_variables]
        )
    )
    history = fit(
        model,
        SGD(0.01, momentum=0.9, use_ema=True, ema_momentum=momentum),
        validation_data=(IMAGES, LABELS),
        callbacks=[keep, keras.callbacks.SwapEMAWeights()],
    )
    average = steps[0]
    for step in steps:
        average = [
            momentum * a + (1 - momentum) * v
            for a, v in zip(average, step, strict=True)
        ]
    found = [v.numpy() for v in model.trainable_variables]
    # Six steps of two roundings, and four swaps of three.
    assert difference(found, average) < 24 * ROUNDOFF
    # What was validated is the average.
    loss, _ = model.evaluate(IMAGES, LABELS, verbose=0)
    assert error_of(history["val_loss"][-1], loss) < FORWARD_ERROR


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains(policy, stock):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = make((1, 1))
        optimizer = SGD(0.01, momentum=0.9)
        history = fit(model, optimizer)
    finally:
        keras.config.set_dtype_policy(before)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    assert optimizer.iterations == 6
    assert {v.dtype for v in model.variables} == {"float32"}
    # 8 (11) bits a layer, ten layers.
    roundoff = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}[policy]
    assert 0 < error_of(history["loss"], stock[0]) < 10 * roundoff


def test_frozen_layers_are_features_of_a_linear_classifier():
    """All but the classifier frozen is training it on fixed features."""
    model = make()
    for layer in model.layers:
        layer.trainable = layer.name == "predictions"
    before = {v.path: v.numpy() for v in model.variables}
    classifier = model.get_layer("predictions")

    pooled = keras.Model(model.input, model.get_layer("avg_pool").output)
    features = pooled.predict(IMAGES, verbose=0)
    alone = keras.Sequential(
        [
            keras.Input(features.shape[1:]),
            keras.layers.Dense.from_config(classifier.get_config()),
        ]
    )
    alone.set_weights(classifier.get_weights())

    losses = fit(model)["loss"]
    alone.compile(keras.optimizers.SGD(0.01, momentum=0.9), LOSS)
    expected = alone.fit(
        features, LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0
    )
    assert error_of(losses, expected.history["loss"]) < FORWARD_ERROR
    assert difference(classifier.get_weights(), alone.get_weights()) < (
        FORWARD_ERROR
    )
    for variable in model.variables:
        same = np.array_equal(variable.numpy(), before[variable.path])
        assert same == (
            variable.path not in {v.path for v in classifier.weights}
        )


def test_lora_trains_as_on_keras_layers(tmp_path):
    model = make()
    before = model.predict(IMAGES, verbose=0)
    kernels = {}
    for layer in model.layers:
        if layer.name in WITH_LORA:
            layer.enable_lora(2)
            kernels[layer.name] = layer.get_weights()[0]
        else:
            layer.trainable = False
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), before)

    plain = to_stock_layers(model)
    assert [v.path for v in plain.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    losses = [fit(m)["loss"] for m in (model, plain)]
    assert error_of(*losses) < ONE_PIXEL
    for name in WITH_LORA:
        layer = model.get_layer(name)
        kernel = next(w for w in layer.weights if w.name == "kernel")
        np.testing.assert_array_equal(kernel, kernels[name])
        assert np.std(layer.lora_kernel_b) > 0

    model.save(tmp_path / "lora.keras")
    loaded = keras.saving.load_model(tmp_path / "lora.keras")
    expected = model.predict(IMAGES, verbose=0)
    assert error_of(loaded.predict(IMAGES, verbose=0), expected) < FORWARD_ERROR


def test_quantize_leaves_convolutions_as_they_are(tmp_path):
    model = make(classifier_activation=None)
    plain = to_stock_layers(model)
    before = model.predict(IMAGES, verbose=0)
    # Features of an image and weights of a class are rounded to 127 steps.
    features = keras.Model(model.input, model.get_layer("avg_pool").output)
    features = features.predict(IMAGES, verbose=0)
    kernel = model.get_layer("predictions").get_weights()[0]
    error = (
        np.abs(features) + np.abs(features).max(1, keepdims=True) / 254
    ) @ (np.abs(kernel) + np.abs(kernel).max(0) / 254) - np.abs(
        features
    ) @ np.abs(kernel)
    for each in (model, plain):
        # Keras says so of every layer without.
        with pytest.warns(UserWarning, match="have a `quantize` method"):
            each.quantize("int8")
    assert [x.name for x in model.layers if x.quantization_mode] == [
        "predictions"
    ]
    found = model.predict(IMAGES, verbose=0)
    assert 0 < np.max(np.abs(found - before) / error) < 1
    assert error_of(found, plain.predict(IMAGES, verbose=0)) < FORWARD_ERROR
    model.save(tmp_path / "int8.keras")
    loaded = keras.saving.load_model(tmp_path / "int8.keras")
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), found)


def test_clones_have_the_same_config():
    model = make()
    clone = keras.models.clone_model(model)
    # But for the input's name, which Keras makes up.
    configs = [[x.get_config() for x in m.layers[1:]] for m in (clone, model)]
    assert configs[0] == configs[1]
    larger = keras.models.clone_model(model, keras.Input((32, 32, 3)))
    larger.set_weights(model.get_weights())
    images = np.kron(IMAGES, np.ones((1, 2, 2, 1), "float32"))
    assert error_of(larger(images), make(size=32)(images)) < FORWARD_ERROR


def run_saved_model(path):
    loaded = tf.saved_model.load(str(path))
    return loaded.serve(IMAGES).numpy()


def run_onnx(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    (name,) = (entry.name for entry in session.get_inputs())
    (outputs,) = session.run(None, {name: IMAGES})
    return outputs


def run_litert(path):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(str(path))
    (entry,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], IMAGES.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], IMAGES)
    interpreter.invoke()
    (entry,) = interpreter.get_output_details()
    return interpreter.get_tensor(entry["index"])


# Keras looks for a name that NumPy 2 has not.
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
@pytest.mark.parametrize(
    ("form", "name", "run"),
    [
        ("tf_saved_model", "saved_model", run_saved_model),
        ("onnx", "m.onnx", run_onnx),
        ("litert", "m.tflite", run_litert),
    ],
    ids=["tf_saved_model", "onnx", "litert"],
)
def test_keras_export(form, name, run, tmp_path):
    model = make((1, 1), classifier_activation=None)
    expected = model.predict(IMAGES, verbose=0)
    path = tmp_path / name
    model.export(path, format=form, verbose=False)
    assert error_of(run(path), expected) < FORWARD_ERROR


def test_images_of_a_folder_are_what_a_classifier_reads(shades):
    model = make(size=8)
    folder = shades / "train"
    data = keras.utils.image_dataset_from_directory(
        folder, image_size=(8, 8), batch_size=4, shuffle=False, verbose=False
    )
    labels = data.class_names
    data = data.map(lambda x, y: (keras_resnext.preprocess_input(x), y))
    classifier = Classifier(
        model,
        labels=labels,
        transform=EvalTransform(image_size=8, resize_size=8),
    )
    expected = [p.probabilities for p in classifier.predict(folder)]
    assert error_of(model.predict(data, verbose=0), expected) < FORWARD_ERROR
    model.compile(SGD(0.01, momentum=0.9), LOSS, metrics=["accuracy"])
    losses = model.fit(data, epochs=5, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


# KerasTuner asks for the name of its thread as Python 2 did.
@pytest.mark.filterwarnings("ignore:currentThread:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:getName:DeprecationWarning")
# It loads the optimizer's state into one that is not built.
@pytest.mark.filterwarnings("ignore:Skipping variable loading:UserWarning")
def test_keras_tuner_finds_a_width(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner", reason="make peers")

    def build(choices):
        model = keras_resnext.ResNeXt(
            (1, 1),
            choices.Choice("cardinality", [2, 4]),
            choices.Choice("base_width", [2, 4]),
            stem="cifar",
            filters=32,
            classes=CLASSES,
            input_shape=(16, 16, 3),
        )
        model.compile(SGD(0.01, momentum=0.9), LOSS, metrics=["accuracy"])
        return model

    tuner = keras_tuner.RandomSearch(
        build,
        objective="val_loss",
        max_trials=2,
        seed=0,
        directory=tmp_path,
        project_name="widths",
    )
    tuner.search(
        IMAGES,
        LABELS,
        validation_data=(IMAGES, LABELS),
        epochs=2,
        verbose=0,
    )
    one, other = tuner.oracle.get_best_trials(2)
    assert one.hyperparameters.values != other.hyperparameters.values
    assert one.score < other.score
    (best,) = tuner.get_best_models(1)
    grouped = best.get_layer("conv2_block1_2_conv")
    assert grouped.groups == one.hyperparameters["cardinality"]
    loss, _ = best.evaluate(IMAGES, LABELS, verbose=0)
    assert error_of(loss, one.score) < FORWARD_ERROR


def test_weights_in_several_files(tmp_path):
    model = make()
    path = tmp_path / "w.weights.json"
    size = sum(w.nbytes for w in model.get_weights()) / 2**30
    model.save_weights(path, max_shard_size=size / 3)
    assert len(list(tmp_path.glob("*.weights.h5"))) > 2
    other = randomize(make(), seed=1)
    other.load_weights(path)
    assert difference(other.get_weights(), model.get_weights()) == 0


def test_summary_names_every_layer():
    model = make()
    lines = []
    model.summary(print_fn=lines.append, line_length=200)
    text = "\n".join(lines)
    for layer in model.layers:
        assert f"{layer.name} ({type(layer).__name__})" in text
    assert f"Total params: {model.count_params():,}" in text


def test_drawing_names_every_layer():
    pytest.importorskip("pydot", reason="make peers")
    model = make()
    drawing = keras.utils.model_to_dot(model, show_layer_names=True)
    text = drawing.to_string()
    assert all(layer.name in text for layer in model.layers)
    assert text.count("->") == len(model.layers)  # one shortcut
