"""Quantisation-aware training against NumPy, the float model and LiteRT."""

import collections
import dataclasses

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_resnext
from keras_resnext.export import to_onnx
from keras_resnext.export import to_saved_model
from keras_resnext.export import to_tflite
from keras_resnext.export.comparison import compare_roundings
from keras_resnext.fake_quantization import FakeQuantization
from keras_resnext.fake_quantization import Observer
from keras_resnext.fake_quantization import QuantizedConv2D
from keras_resnext.fake_quantization import fake_quantize_weights
from keras_resnext.rewrite.quantization import quantization_aware
from tests.conftest import randomize


def rounded_weights(kernel, bits, per_channel):
    """The grid of a signed symmetric tensor, in NumPy."""
    levels = 2 ** (bits - 1) - 1
    axes = tuple(range(kernel.ndim - 1)) if per_channel else None
    step = np.abs(kernel).max(axis=axes) / np.float32(levels)
    return np.clip(np.round(kernel / step), -levels, levels) * step


def rounded_activations(values, minimum, maximum, bits):
    """The grid of an unsigned tensor with a zero point, in NumPy."""
    levels = 2**bits - 1
    step = np.float32(maximum - minimum) / np.float32(levels)
    zero = np.round(-minimum / step)
    return (np.clip(np.round(values / step) + zero, 0, levels) - zero) * step


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_as_in_numpy(bits, per_channel):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)) * np.geomspace(
        0.01, 1, 8
    )
    kernel = kernel.astype("float32")
    with tf.GradientTape() as tape:
        variable = tf.Variable(kernel)
        found = fake_quantize_weights(variable, bits, per_channel)
        # Of which the gradient is this array.
        slope = np.random.default_rng(1).normal(size=kernel.shape)
        total = tf.reduce_sum(found * slope.astype("float32"))
    expected = rounded_weights(kernel, bits, per_channel)
    # One more rounding to 2**-24 in each of three operations.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-22)
    np.testing.assert_allclose(
        tape.gradient(total, variable), slope, rtol=2**-22
    )
    assert len(np.unique(found[..., 0])) <= 2**bits - 1


def test_a_filter_of_zeros():
    assert not fake_quantize_weights(tf.zeros((1, 1, 2, 3))).numpy().any()


@pytest.mark.parametrize("bits", [4, 8])
def test_activations_as_in_numpy(bits):
    layer = FakeQuantization(bits)
    values = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    outputs, step = layer(values)  # no range yet
    assert float(step) == 0
    np.testing.assert_array_equal(outputs, values)
    layer.minimum.assign(-0.9)
    layer.maximum.assign(1.3)
    with tf.GradientTape() as tape:
        variable = tf.Variable(values)
        found, step = layer(variable)
    expected = rounded_activations(values, -0.9, 1.3, bits)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(step, 2.2 / (2**bits - 1), rtol=1e-6)
    step = float(step)
    inside = (values > -0.9 - step / 2) & (values < 1.3 + step / 2)
    gradient = tape.gradient(found, variable).numpy()
    assert set(np.unique(gradient)) == {0, 1}
    np.testing.assert_array_equal(gradient[~inside], 0)
    assert (gradient != inside).mean() < 0.1  # the nudged ends


def test_ranges_follow_and_freeze():
    layer = FakeQuantization(
        observer=Observer(momentum=0.9, freeze_ranges_after=3)
    )
    batches = np.random.default_rng(0).normal(size=(5, 8, 4)).astype("float32")
    expected = None
    for index, batch in enumerate(batches):
        layer(batch, training=True)
        seen = np.array([batch.min(), batch.max()])
        if expected is None:
            expected = seen
        elif index < 3:
            expected = 0.9 * expected + 0.1 * seen
        layer(10 * batch)  # not in training
        np.testing.assert_allclose(
            [layer.minimum.value, layer.maximum.value], expected, rtol=1e-6
        )


def test_a_range_has_zero():
    layer = FakeQuantization()
    layer(np.float32([[2, 3]]), training=True)
    assert (float(layer.minimum), float(layer.maximum)) == (0, 3)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        (1, 1), 4, 4, stem="cifar", filters=32, input_shape=(16, 16, 3),
        classes=5,
    )  # fmt: skip
    randomize(model)
    return model


def test_a_convolution_as_in_numpy(network):
    """Folded and rounded by NumPy, computed by Keras."""
    rng = np.random.default_rng(0)
    conv = network.get_layer("conv2_block1_2_conv")
    norm = network.get_layer("conv2_block1_2_bn")
    new = quantization_aware(network).get_layer("conv2_block1_2_conv")
    assert isinstance(new, QuantizedConv2D)
    (kernel,) = conv.get_weights()
    gamma, beta, mean, variance = norm.get_weights()
    scale = gamma / np.sqrt(variance + norm.epsilon)
    values = rng.normal(size=(2, 8, 8, conv.kernel.shape[2] * 4))
    values = values.astype("float32")
    expected = conv.convolution_op(values, rounded_weights(
        (kernel * scale).astype("float32"), 8, True
    ))  # fmt: skip
    expected += beta - mean * scale
    np.testing.assert_allclose(new(values), expected, rtol=0, atol=1e-4)
    frozen = new(values, training=True)
    assert np.abs(frozen - expected).max() > 0.1  # statistics of the batch
    # Normalised by its own mean and variance, whatever the kernel's.
    np.testing.assert_allclose(
        np.mean(frozen, axis=(0, 1, 2)), beta, rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(
        np.std(frozen, axis=(0, 1, 2)), np.abs(gamma), rtol=1e-3
    )


def test_a_filter_that_batch_norm_scales_by_zero(network):
    aware = quantization_aware(network)
    layer = aware.get_layer("conv2_block1_2_conv")
    layer.gamma.assign(keras.ops.zeros_like(layer.gamma))
    values = np.random.default_rng(0).normal(size=(2, 8, 8, 16))
    outputs = layer(values.astype("float32"), training=True).numpy()
    np.testing.assert_array_equal(
        outputs, np.broadcast_to(layer.beta.numpy(), outputs.shape)
    )


def test_frozen_batch_norms_stay_frozen(network):
    plain = keras.models.clone_model(network)
    for layer in plain.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    aware = quantization_aware(plain)
    layers = [x for x in aware.layers if isinstance(x, QuantizedConv2D)]
    before = [layer.get_weights()[1:5] for layer in layers]
    values = np.random.default_rng(0).normal(size=(8, 16, 16, 3))
    aware(values.astype("float32"), training=True)
    assert len(aware.trainable_variables) == len(plain.trainable_variables)
    for layer, arrays in zip(layers, before, strict=True):
        for got, want in zip(layer.get_weights()[1:5], arrays, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=layer.name)


def test_statistics_move_as_in_batch_norm(network):
    """Those of the plain layers, but for the rounding of the kernel."""
    values = np.random.default_rng(0).normal(size=(8, 16, 16, 3))
    values = values.astype("float32")
    plain = keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    new = quantization_aware(
        plain, observers=Observer(freeze_statistics_after=1)
    )
    for _ in range(2):  # the second time they stay
        new(values, training=True)
    plain(values, training=True)
    for layer in plain.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        conv = new.get_layer(layer.name.replace("_bn", "_conv"))
        for name in ("moving_mean", "moving_variance"):
            before = getattr(network.get_layer(layer.name), name).numpy()
            move = getattr(layer, name).numpy() - before
            found = getattr(conv, name).numpy() - before
            # Noise of eight bits in up to seven layers, see `LIMITS`.
            assert np.abs(found - move).max() < 0.2 * np.abs(move).max(), (
                layer.name
            )
        assert float(conv.steps) == 2


def test_the_same_network_almost(network):
    pixels = (
        np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    )
    calibrated = quantization_aware(network, calibration=pixels)
    before = np.log(network(pixels))
    after = np.log(calibrated(pixels))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    assert np.abs(before - after).max() > 1e-4  # it rounds


def test_it_learns_and_is_saved(network, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 64)
    pixels = rng.normal(size=(64, 16, 16, 3)) + labels[:, None, None, None]
    model = quantization_aware(
        network,
        observers=Observer(freeze_statistics_after=8, freeze_ranges_after=12),
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
    )
    losses = model.fit(
        pixels, labels, batch_size=16, epochs=16, verbose=0, shuffle=False
    ).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(
        loaded(pixels[:8]), model(pixels[:8]), strict=True
    )
    assert loaded.count_params() == model.count_params()


def test_it_costs_what_the_network_costs(network):
    aware = keras_resnext.count_complexity(quantization_aware(network))
    plain = keras_resnext.count_complexity(network)
    assert aware == dataclasses.replace(plain, by_layer=aware.by_layer)
    assert plain.params != network.count_params()  # statistics are none


@pytest.mark.parametrize("bits", [1, 9, 4.5, 8.0])
def test_bad_bits(network, bits):
    with pytest.raises(ValueError, match="`weight_bits` must be from 2 to 8"):
        quantization_aware(network, weight_bits=bits)


def test_other_forms_are_refused(network):
    branches = keras_resnext.convert_form(network, "branches")
    with pytest.raises(ValueError, match="grouped form"):
        quantization_aware(branches)
    concatenated = keras_resnext.convert_form(network, "concatenated")
    with pytest.raises(ValueError, match="_concat is a Concatenate"):
        quantization_aware(concatenated)


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """A model that learned its ranges, and its file."""
    images, labels = shades_of_grey(64)
    pixels = keras_resnext.preprocess_input(images)
    model = quantization_aware(
        network,
        calibration=pixels,
        observers=Observer(freeze_statistics_after=40),
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
    )
    model.fit(pixels, labels, batch_size=16, epochs=16, verbose=0)
    path = tmp_path_factory.mktemp("qat") / "model.tflite"
    images, _ = shades_of_grey(64, seed=1)
    return model, to_tflite(model, path, quantize="int8", images=images), images


def shades_of_grey(count, seed=0):
    """Five classes, of different brightness."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    noise = rng.integers(0, 56, (count, 16, 16, 3))
    return (noise + 50 * labels[:, None, None, None]).astype("float32"), labels


def scales_and_zero_points(model, lowest):
    """What follows from the learned ranges, for bytes from `lowest` on."""
    pairs = set()
    for layer in model.layers:
        if isinstance(layer, FakeQuantization):
            low, high = map(np.float64, layer.limits)
            scale = (high - low) / 255
            pairs.add((np.float32(scale), round(lowest - low / scale)))
    return pairs


def test_the_file_has_the_learned_ranges(exported):
    """Bit for bit, as the scales and zero points that follow from them."""
    model, artifact, _ = exported
    expected = scales_and_zero_points(model, lowest=-128)
    interpreter = Interpreter(str(artifact.path))
    interpreter.allocate_tensors()
    found = set()
    for detail in interpreter.get_tensor_details():
        parameters = detail["quantization_parameters"]
        if detail["dtype"] == np.int8 and len(parameters["scales"]) == 1:
            pair = parameters["scales"][0], int(parameters["zero_points"][0])
            found.add(pair)
    assert len(expected) == 13  # the input, the stem, 2 blocks, the pool
    assert expected <= found
    # Weights have zero point 0 and a scale for each filter.
    assert {pair for pair in found if pair[1]} <= expected


def test_the_file_computes_what_was_trained(exported):
    model, artifact, images = exported
    check_logits(model, artifact, images)
    assert artifact.agreement.top1_agreement >= 0.98


def check_logits(model, artifact, images):
    """Equal to a step of the logits, if they had 256, in 99 of 100."""

    def logits(probabilities):
        values = np.log(probabilities)
        return values - values.mean(axis=-1, keepdims=True)

    expected = logits(model(keras_resnext.preprocess_input(images)).numpy())
    found = logits(artifact.outputs["probabilities"])
    step = (expected.max() - expected.min()) / 255
    assert (np.abs(found - expected) <= step).mean() >= 0.99


def test_layer_errors(exported):
    """Those of the layer's own weights and of its rounded outputs."""
    model, artifact, _ = exported
    errors = {error.name: error for error in artifact.layer_errors}
    layers = [x for x in model.layers if isinstance(x, QuantizedConv2D)]
    assert {*errors} == {*(x.name for x in layers), "predictions"}
    for layer in layers:
        kernel, _ = layer.folded()
        noise = fake_quantize_weights(kernel) - kernel
        expected = np.linalg.norm(noise) / np.linalg.norm(kernel)
        error = errors[layer.name]
        assert error.weights == pytest.approx(expected, rel=1e-3)
        assert error.activations > 0


@pytest.mark.integration
def test_comparison(network, exported):
    """Accuracies as the interpreter gives them, image by image."""
    model, artifact, images = exported
    classes = np.random.default_rng(0).integers(0, 5, len(images))
    rows = compare_roundings(
        network, images, classes, shades_of_grey(32, seed=2)[0], trained=model
    )
    assert [row.name for row in rows] == [
        *("float32", "dynamic", "int8", "QAT int8"),
    ]
    scores = network(keras_resnext.preprocess_input(images)).numpy()
    plain = scores.argmax(-1)
    assert rows[0].accuracy == (plain == classes).mean()
    interpreter = Interpreter(str(artifact.path))
    serve = interpreter.get_signature_runner()
    found = np.array(
        [
            serve(image=image[None].astype("uint8"))["probabilities"].argmax()
            for image in images
        ]
    )
    assert rows[3].accuracy == (found == classes).mean()
    assert rows[3].agreement == (found == plain).mean()
    assert rows[3].bytes == artifact.size
    assert rows[3].layer_errors == artifact.layer_errors
    assert rows[2].layer_errors != rows[3].layer_errors
    assert min(rows[1].agreement, rows[2].agreement) > 0.8


@pytest.fixture(scope="module", params=["NHWC", "NCHW"])
def onnx_artifact(request, exported, tmp_path_factory):
    """An ONNX file of the same model."""
    model, _, images = exported
    path = tmp_path_factory.mktemp("qat") / "model.onnx"
    return to_onnx(
        model, path, quantize="int8", images=images, data_format=request.param
    )


def initializers(path):
    return {
        x.name: onnx.numpy_helper.to_array(x)
        for x in onnx.load(path).graph.initializer
    }


def test_the_onnx_file_has_the_learned_ranges(exported, onnx_artifact):
    """Bit for bit, and kernels on the grid of the layers."""
    model, _, _ = exported
    expected = scales_and_zero_points(model, lowest=0)
    arrays = initializers(onnx_artifact.path)
    found = {
        (arrays[node.input[1]][()], int(arrays[node.input[2]]))
        for node in onnx.load(onnx_artifact.path).graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert found == expected
    # Their names in the file say nothing.
    kernels = [
        (array - np.float32(128))
        * arrays[name.replace("_quantized", "_scale")].reshape(-1, 1, 1, 1)
        for name, array in arrays.items()
        if array.ndim == 4 and array.dtype == np.uint8
    ]
    layers = [x for x in model.layers if isinstance(x, QuantizedConv2D)]
    assert len(kernels) == len(layers) == 9
    for layer in layers:
        folded, _ = layer.folded()
        wanted = fake_quantize_weights(folded).numpy().transpose(3, 2, 0, 1)
        # Another rounding of the same products: 2**-24 of 1.
        assert any(
            kernel.shape == wanted.shape
            and np.allclose(kernel, wanted, rtol=1e-6, atol=1e-6)
            for kernel in kernels
        ), layer.name


def test_the_onnx_file_computes_what_was_trained(exported, onnx_artifact):
    model, _, images = exported
    check_logits(model, onnx_artifact, images)


def test_onnx_runtime_computes_in_integers(onnx_artifact, tmp_path):
    """All convolutions, and what is between them."""
    kinds = optimized_operators(onnx_artifact.path, tmp_path)
    assert kinds["QLinearConv"] == 9
    assert kinds["QLinearAdd"] == 2
    assert kinds["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Add", "Relu"} & kinds.keys()


def optimized_operators(path, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.graph_optimization_level = level
    onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(folder / "optimized.onnx").graph
    return collections.Counter(node.op_type for node in graph.node)


def test_the_stem_for_photographs(tmp_path):
    """Its pool, after padding, keeps the steps of what it reads."""
    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        (1, 1), 4, 4, filters=32, input_shape=(32, 32, 3), classes=5
    )
    randomize(model)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3))
    pixels = keras_resnext.preprocess_input(images.astype("float32"))
    aware = quantization_aware(model, calibration=pixels)
    for exporter, name in ((to_onnx, "m.onnx"), (to_tflite, "m.tflite")):
        artifact = exporter(
            aware, tmp_path / name, quantize="int8", images=images
        )
        check_logits(aware, artifact, images)
    kinds = optimized_operators(tmp_path / "m.onnx", tmp_path)
    assert not {"Conv", "Pad", "Relu", "Add"} & kinds.keys()
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    (pool,) = [node for node in nodes if node.op_type == "MaxPool"]
    (maker,) = [n for n in nodes if pool.input[0] in n.output]
    assert maker.op_type == "QLinearConv"  # it takes bytes


@pytest.mark.parametrize("gamma", [0, 1e-8, 1e-5])
def test_filters_of_tiny_weights_keep_their_bias(network, gamma, tmp_path):
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    norm = model.get_layer("conv2_block1_2_bn")
    scales = norm.gamma.numpy()
    scales[::2] *= gamma
    norm.gamma.assign(scales)
    images, _ = shades_of_grey(64)
    pixels = keras_resnext.preprocess_input(images)
    aware = quantization_aware(model, calibration=pixels)
    for exporter, name in ((to_onnx, "m.onnx"), (to_tflite, "m.tflite")):
        artifact = exporter(
            aware, tmp_path / name, quantize="int8", images=images
        )
        check_logits(aware, artifact, images)


def test_one_step_for_each_kernel(network, tmp_path):
    images, _ = shades_of_grey(64)
    aware = quantization_aware(
        network,
        per_channel=False,
        calibration=keras_resnext.preprocess_input(images),
    )
    artifact = to_onnx(
        aware, tmp_path / "m.onnx", quantize="int8", images=images
    )
    check_logits(aware, artifact, images)
    with pytest.raises(ValueError, match="must have weights rounded by chan"):
        to_tflite(aware, tmp_path / "m.tflite", quantize="int8")


def test_what_is_always_zero(network, tmp_path):
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    norm = model.get_layer("conv2_block1_3_bn")
    norm.gamma.assign(keras.ops.zeros_like(norm.gamma))
    norm.beta.assign(keras.ops.zeros_like(norm.beta))
    images, _ = shades_of_grey(64)
    pixels = keras_resnext.preprocess_input(images)
    aware = quantization_aware(model, calibration=pixels)
    layer = aware.get_layer("conv2_block1_3_bn_fake_quant")
    assert float(layer.maximum) == 0
    for exporter, name in ((to_onnx, "m.onnx"), (to_tflite, "m.tflite")):
        artifact = exporter(
            aware, tmp_path / name, quantize="int8", images=images
        )
        check_logits(aware, artifact, images)
    # What follows zeros is not held down by them.
    layer(np.ones((1, 2), "float32"), training=True)
    assert float(layer.maximum) == 1


def test_only_int8_is_exported(exported, network, tmp_path):
    model, _, images = exported
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="`quantize` must be int8"):
        to_tflite(model, path)
    with pytest.raises(ValueError, match="`calibration` must be None"):
        to_tflite(model, path, quantize="int8", calibration=images)
    with pytest.raises(ValueError, match="`exclude` must be 0"):
        to_tflite(model, path, quantize="int8", exclude=1)
    with pytest.raises(ValueError, match="`quantize` must be int8"):
        to_onnx(model, path)
    with pytest.raises(ValueError, match="computes in float32"):
        to_saved_model(model, tmp_path / "other")
    with pytest.raises(ValueError, match=r"`calibration` .* got shape"):
        quantization_aware(network, calibration=images[0])
    with pytest.raises(ValueError, match="has no range yet"):
        to_tflite(quantization_aware(network), path, quantize="int8")
    four = quantization_aware(network, weight_bits=4)
    with pytest.raises(ValueError, match="must be trained for 8 bits"):
        to_tflite(four, path, quantize="int8")
    assert not list(tmp_path.iterdir())


def test_what_it_does_not_work_with(network):
    aware = quantization_aware(network)
    with pytest.raises(ValueError, match="for whose convolutions Keras has no"):
        keras_resnext.to_stock_layers(aware)
    with pytest.raises(ValueError, match="which knows the grouped form alone"):
        keras_resnext.convert_form(aware, "branches")
    with pytest.raises(ValueError, match=r"input\w*_fake_quant is a Fake"):
        quantization_aware(aware)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    leaky = keras.Model(inputs, keras.layers.ReLU(negative_slope=0.1)(x))
    with pytest.raises(ValueError, match="is a ReLU"):
        quantization_aware(leaky)
    shared = keras.layers.ReLU(name="shared")
    twice = keras.Model(inputs, shared(shared(x)))
    with pytest.raises(ValueError, match="shared is used 2 times"):
        quantization_aware(twice)
    half = keras.Model(inputs, keras.layers.Dense(2, dtype="bfloat16")(inputs))
    with pytest.raises(ValueError, match="computes in bfloat16"):
        quantization_aware(half)
    first = keras.Input((3, 16, 16))
    second = keras.layers.Conv2D(4, 3, data_format="channels_first")(first)
    with pytest.raises(ValueError, match="has channels_first"):
        quantization_aware(keras.Model(first, second))
    norm = keras.layers.BatchNormalization(gamma_regularizer="l2")(x)
    with pytest.raises(ValueError, match="without gamma_regularizer"):
        quantization_aware(keras.Model(inputs, norm))
    with pytest.raises(ValueError, match="`calibration` must be given if"):
        quantization_aware(network, observers=Observer(freeze_ranges_after=0))
    with pytest.raises(ValueError, match="`trained` must come from"):
        compare_roundings(network, *[np.zeros(1)] * 3, trained=network)
    with pytest.raises(ValueError, match="`model` must not come from"):
        compare_roundings(aware, *[np.zeros(1)] * 3)
    with pytest.raises(ValueError, match="`classes` must be the 2 images'"):
        compare_roundings(network, np.zeros(2), np.zeros((2, 5)), np.zeros(1))
    with pytest.raises(ValueError, match="`observers` must be an Observer"):
        quantization_aware(network, observers={"momentum": 0.9})
    with pytest.raises(ValueError, match="`momentum` must be at least 0"):
        Observer(momentum=1.0)
    with pytest.raises(ValueError, match="`freeze_ranges_after` must be 0"):
        Observer(freeze_ranges_after=-1)


def test_other_layers(tmp_path):
    """Biases, activations in layers, two dense layers, pixels normalised."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    x = keras.layers.Conv2D(8, 3, groups=2, padding="same")(x)
    x = keras.layers.BatchNormalization(scale=False)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.AveragePooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(16, activation="relu")(keras.layers.Dropout(0.5)(x))
    outputs = keras.layers.Dense(5, activation="softmax")(x)
    model = randomize(keras.Model(inputs, outputs))
    kernel = model.layers[-1].kernel
    kernel.assign(kernel / 8)  # or all probabilities would be 0 or 1
    images, _ = shades_of_grey(64)
    aware = quantization_aware(model, calibration=images)
    before, after = np.log(model(images)), np.log(aware(images))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.99
    artifact = to_tflite(
        aware, tmp_path / "model.tflite", quantize="int8", images=images
    )
    assert artifact.agreement.correlation > 0.999
