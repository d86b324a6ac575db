"""What a classifier looked at: against captum, and on every backend."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_resnext
from keras_resnext import explain
from keras_resnext.classifier import Classifier
from keras_resnext.inspection import layers_of
from tests.conftest import randomize

SIZE = 32


def make(classifier_activation="softmax", seed=0):
    keras.utils.set_random_seed(seed)
    return randomize(
        keras_resnext.ResNeXt(
            (1, 1, 1),
            4,
            4,
            filters=32,
            stem="cifar",
            classes=5,
            input_shape=(SIZE, SIZE, 3),
            classifier_activation=classifier_activation,
        ),
        seed,
    )


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(SIZE, SIZE, 3))


def test_grad_cam_is_the_formula(model, image):
    """Of the class's logit by the last feature map, spelled out once more."""
    logits = make(classifier_activation=None)
    features = keras.Model(
        logits.input, logits.get_layer("conv4_block1_out").output
    )
    maps = features(image[None].astype("float32"))
    head = logits.get_layer("predictions")
    with tf.GradientTape() as tape:
        tape.watch(maps)
        scores = head(tf.reduce_mean(maps, axis=(1, 2)))
        best = int(np.argmax(scores))
        score = scores[0, best]
    weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2))
    expected = tf.nn.relu(tf.reduce_sum(weights[0] * maps[0], axis=-1))
    found = explain.grad_cam(model, image)
    assert found.shape == (8, 8)
    assert found.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    for same in (
        explain.grad_cam(model, image, best),
        explain.grad_cam(model, image, layer="conv4_block1_out"),
        explain.grad_cam(model, image, layer=model.layers[-3]),
        explain.grad_cam(logits, image),
    ):
        np.testing.assert_allclose(same, found, rtol=1e-4, atol=1e-7)
    other = explain.grad_cam(model, image, (best + 1) % 5)
    assert np.abs(other - found).max() > 0.1 * found.max()
    earlier = explain.grad_cam(model, image, layer="conv2_block1_out")
    assert earlier.shape == (32, 32)


def test_random_weights_change_the_map(image):
    """A map that stays would come from the image alone (arXiv 1810.03292)."""
    maps = [explain.grad_cam(make(seed=seed), image) for seed in (0, 1)]
    maps = [heat.ravel() - heat.mean() for heat in maps]
    one, other = (heat / np.linalg.norm(heat) for heat in maps)
    assert one @ other < 0.7


def test_gradients_add_up(model, image):
    """The sum is the difference of logits; a straight line is exact."""
    logits = make(classifier_activation=None)
    zeros = np.zeros_like(image)
    scores = logits(np.float32([image, zeros])).numpy()
    found = explain.integrated_gradients(model, image, 2, steps=100)
    assert found.shape == image.shape
    difference = scores[0, 2] - scores[1, 2]
    # ReLUs bend the line, where the rule has an error; it falls with steps.
    coarse = explain.integrated_gradients(model, image, 2, steps=2)
    errors = [abs(x.sum() - difference) for x in (coarse, found)]
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.02 * abs(difference)
    linear = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    kernel = linear.layers[-1].kernel.numpy()[:, 1].reshape(image.shape)
    found = explain.integrated_gradients(linear, image, 1, steps=1)
    np.testing.assert_allclose(found, kernel * image, rtol=1e-4, atol=1e-6)
    baseline = np.ones_like(image)
    found = explain.integrated_gradients(
        linear, image, 1, baseline=baseline, steps=3
    )
    np.testing.assert_allclose(
        found, kernel * (image - 1), rtol=1e-4, atol=1e-6
    )


def nested(body, activation):
    """A fine-tuned model of pixels, as a user of keras.applications has it."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(body(x))
    x = keras.layers.Dense(4)(x)
    if activation == "layer":
        x = keras.layers.Softmax()(x)
    elif activation:
        x = keras.layers.Activation(activation)(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("activation", ["layer", "softmax", None])
def test_models_with_one_inside(activation):
    body = randomize(
        keras_resnext.ResNeXt(
            (1, 1),
            2,
            4,
            filters=16,
            stem="cifar",
            include_top=False,
            input_shape=(SIZE, SIZE, 3),
        )
    )
    keras.utils.set_random_seed(0)
    model = nested(body, activation)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3))
    before = model(np.float32([pixels])).numpy()
    heat = explain.grad_cam(model, pixels, 1)
    assert heat.shape == (16, 16)
    # Nothing follows the feature map but its average and a dense layer.
    weights = model.get_layer(index=4).kernel.numpy()[:, 1] / 16**2
    maps = body(pixels[None] / 127.5 - 1).numpy()[0]
    np.testing.assert_allclose(
        heat, np.maximum(maps @ weights, 0), rtol=1e-4, atol=1e-7
    )
    inner = explain.grad_cam(model, pixels, 1, "conv2_block1_out")
    assert inner.shape == (32, 32)
    vectors = explain.embed(model, np.float32([pixels, pixels / 2]))
    np.testing.assert_allclose(vectors[0], maps.mean((0, 1)), rtol=1e-4)
    # The model is as it was.
    np.testing.assert_array_equal(model(np.float32([pixels])), before)
    assert not any("call" in vars(layer) for layer in layers_of(model))


def test_photographs_go_through_the_transform(model, tmp_path):
    classifier = Classifier(model, list("abcde"))
    rng = np.random.default_rng(0)
    shades = [rng.integers(0, 256, 3) for _ in range(6)]
    for i, shade in enumerate(shades):
        noisy = shade + rng.integers(-9, 10, (40, 50, 3))
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype("uint8"))
        picture.save(tmp_path / f"{i}.png")
    path = tmp_path / "0.png"
    inputs = classifier.transform(path)
    np.testing.assert_array_equal(
        explain.grad_cam(classifier, path), explain.grad_cam(model, inputs)
    )
    vectors = explain.embed(classifier, tmp_path, batch_size=4)
    assert vectors.shape == (6, 128)
    np.testing.assert_allclose(
        vectors[0], explain.embed(model, inputs[None])[0], rtol=1e-4
    )
    indices, similarities = explain.nearest_neighbors(
        vectors, vectors[2:4], count=6
    )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = unit[2:4] @ unit.T
    np.testing.assert_array_equal(indices[:, 0], [2, 3])
    np.testing.assert_allclose(
        similarities, np.sort(expected)[:, ::-1], rtol=1e-4
    )
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="bad.png"):
        explain.embed(classifier, tmp_path)


def test_overlays_show_image_and_heat():
    image = np.full((60, 80, 3), 90, "uint8")
    heat = np.zeros((3, 4))
    heat[0, 0] = 5
    found = explain.overlay(image, heat)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[40:], image[40:])
    assert np.abs(found[5, 5].astype(int) - 90).max() > 50
    np.testing.assert_array_equal(explain.overlay(image, 0 * heat), image)
    attributions = np.zeros((60, 80, 3))
    attributions[10, 10] = (1, 1, -0.5)
    found = explain.overlay(image, attributions)
    assert (found != image).any(-1).sum() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnext50"}, "`model` must be a keras.Model or a Class"),
        ({"image": np.ones((1, 8, 8, 3))}, "one input .*got the shape .1, 8"),
        ({"class_index": 5}, "`class_index` must be .* class, 4; got 5"),
        ({"class_index": -1}, "`class_index` must be an integer from 0"),
        ({"class_index": True}, "`class_index` must be .*got True"),
        ({"class_index": 1.5}, "`class_index` must be .*got 1.5"),
        ({"layer": "avg_pool"}, "`layer` must have a feature map.*avg_pool"),
        ({"layer": 3}, "`layer` must be a layer of .*got 3"),
        (
            {"layer": "conv4_block1_oud"},
            "`layer` must be .*Did you mean conv4_block1_out",
        ),
    ],
)
def test_bad_arguments_are_named(changes, message, model, image):
    arguments = {"model": model, "image": image} | changes
    with pytest.raises(ValueError, match=message):
        explain.grad_cam(**arguments)


def test_what_cannot_be_explained_is_named(model, image):
    for call, message in (
        (
            lambda: explain.integrated_gradients(model, image, steps=0),
            "`steps` must be an integer from 1 up; got 0",
        ),
        (
            lambda: explain.integrated_gradients(
                model, image, baseline=np.ones(3)
            ),
            r"`baseline` must be a number or of shape \(32, 32, 3\)",
        ),
        (
            lambda: explain.nearest_neighbors(np.eye(3), np.eye(3), 4),
            "`count` must be from 1 to the number of vectors, 3; got 4",
        ),
        (
            lambda: explain.overlay(image, np.ones((2, 2))),
            "`image` must be uint8 .*float64",
        ),
        (
            lambda: explain.overlay(np.zeros((4, 4, 3), "uint8"), np.ones(3)),
            "`heat` must be finite",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    twice = keras.Input((SIZE, SIZE, 3))
    relu = keras.layers.ReLU(name="twice")
    x = keras.layers.GlobalAveragePooling2D()(relu(relu(twice)))
    shared = keras.Model(twice, keras.layers.Dense(2)(x))
    with pytest.raises(ValueError, match="must call twice once; .* 2 times"):
        explain.grad_cam(shared, image, layer="twice")
    several = keras.Model(twice, [x, x])
    with pytest.raises(ValueError, match="one output; .* has 2"):
        explain.grad_cam(several, image)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(twice))
    certain = keras.Model(twice, keras.ops.softmax(keras.layers.Dense(2)(x)))
    for call in (explain.grad_cam, explain.integrated_gradients):
        with pytest.raises(ValueError, match="scores are probabilities"):
            call(certain, image)
    with pytest.raises(ValueError, match="probabilities"):
        explain.embed(certain, image[None])
    for images, message in (
        (image, "`images` must be inputs of the model"),
        ("photos/", "`images` must be inputs of the model"),
        (image[None][:0], "`images` must be inputs of the model"),
    ):
        with pytest.raises(ValueError, match=message):
            explain.embed(model, images)
    with pytest.raises(ValueError, match="`batch_size` must be an integer"):
        explain.embed(model, image[None], batch_size=0)


def test_the_model_is_left_as_it_was(image):
    """Also after an error, and with a `call` of the user's own."""
    inputs = keras.Input((SIZE, SIZE, 3))
    maps = keras.layers.Conv2D(4, 3, name="maps")(inputs)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True)(maps)
    x = keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, keras.layers.Softmax(name="end")(x))
    layer = model.get_layer("maps")
    call, calls = layer.call, []

    def counted(*args, **kwargs):
        calls.append(args)
        return call(*args, **kwargs)

    layer.call = counted
    before = model(np.float32(image[None])).numpy()
    # Not the average's single pixel, which is the later one.
    assert explain.grad_cam(model, image).shape == (30, 30)
    with pytest.raises(ValueError, match="feature map, .*; that of end is"):
        explain.grad_cam(model, image, layer="end")
    with pytest.raises(ValueError, match="`class_index` must be"):
        explain.integrated_gradients(model, image, 3)
    assert layer.call is counted
    assert len(calls) > 3
    assert not any("call" in vars(x) for x in model.layers if x is not layer)
    np.testing.assert_array_equal(model(np.float32(image[None])), before)


@pytest.mark.parametrize("kind", ["int8", "sigmoid", "mixed_bfloat16"])
def test_heads_of_other_kinds(kind, image):
    """Their logits are near those in float32, whose map is known."""
    logits = make(classifier_activation=None)
    expected = explain.grad_cam(logits, image, 1)
    vector = explain.embed(logits, image[None])
    if kind == "int8":
        model = make()
        model.get_layer("predictions").quantize("int8")
    elif kind == "sigmoid":
        model = make(classifier_activation="sigmoid")
    else:
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(kind)
        model = make()
        keras.config.set_dtype_policy(policy)
    # bfloat16 rounds by 2**-9, thirty layers deep: a hundredth, and three
    # times that; int8 rounds one kernel by less.
    tolerance = 1e-5 if kind == "sigmoid" else 0.03
    np.testing.assert_allclose(
        explain.grad_cam(model, image, 1),
        expected,
        atol=tolerance * expected.max(),
    )
    np.testing.assert_allclose(
        explain.embed(model, image[None]),
        vector,
        atol=tolerance * vector.max(),
    )


@pytest.mark.slow
def test_maps_are_captums(float64):
    """Of torchvision's ResNeXt-50, and of ours with the same weights.

    In float64: of 50 layers, float32 rounds some ReLU to the other side.
    """
    captum = pytest.importorskip("captum.attr", reason="make peers")
    from keras_resnext.weights import convert
    from tests import torch_reference

    torch = torch_reference.torch
    network = torch_reference.randomized(
        torch_reference.torchvision.models.resnext50_32x4d()
    ).double()
    ours = keras_resnext.ResNeXt50(weights=None, input_shape=(96, 96, 3))
    tensors = {k: v.numpy() for k, v in network.state_dict().items()}
    weights = convert.from_torch(tensors)
    for layer in ours.layers:
        if layer.weights:
            layer.set_weights(weights[layer.name])
    image = np.random.default_rng(0).normal(size=(96, 96, 3))
    image = image.astype("float32").astype("float64")
    theirs = torch.from_numpy(image.transpose(2, 0, 1)[None])
    theirs.requires_grad_()
    best = int(network(theirs).argmax())
    for layer, module in (
        ("conv5_block3_out", network.layer4[-1]),
        ("conv3_block4_out", network.layer2[-1]),
    ):
        expected = captum.LayerGradCam(network, module).attribute(
            theirs, best, relu_attributions=True
        )
        found = explain.grad_cam(ours, image, layer=layer)
        assert found.max() > 0
        np.testing.assert_allclose(
            found,
            expected.detach().numpy()[0, 0],
            rtol=1e-4,
            atol=1e-6 * found.max(),
        )
    expected = captum.IntegratedGradients(network).attribute(
        theirs, target=best, n_steps=20, internal_batch_size=5
    )
    found = explain.integrated_gradients(ours, image, best, steps=20)
    np.testing.assert_allclose(
        found,
        expected.detach().numpy()[0].transpose(1, 2, 0),
        rtol=1e-4,
        atol=1e-6 * np.abs(found).max(),
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    "backend", [pytest.param("jax", marks=pytest.mark.slow), "torch"]
)
def test_backends_agree(backend, model, image, tmp_path):
    if backend == "torch":
        pytest.importorskip("torch", reason="make peers")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "image.npy", image)
    code = """
import sys
import keras, numpy as np
from keras_resnext import explain
model = keras.saving.load_model("model.keras")
image = np.load("image.npy")
np.save("cam.npy", explain.grad_cam(model, image))
np.save("ig.npy", explain.integrated_gradients(model, image, steps=5))
np.save("vectors.npy", explain.embed(model, image[None]))
assert "tensorflow" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=tmp_path,
        check=True,
    )
    for name, expected in (
        ("cam", explain.grad_cam(model, image)),
        ("ig", explain.integrated_gradients(model, image, steps=5)),
        ("vectors", explain.embed(model, image[None])),
    ):
        np.testing.assert_allclose(
            np.load(tmp_path / f"{name}.npy"),
            expected,
            rtol=1e-3,
            atol=1e-4 * np.abs(expected).max(),
        )
