"""A function with constant weights against the model it was made of."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext.inference import inference_function
from tests.conftest import randomize


def make():
    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        (1, 1),
        4,
        4,
        stem="cifar",
        classes=10,
        input_shape=(None, None, 3),
        drop_path_rate=0.1,
    )
    return randomize(model)


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (4, 16, 24, 3)])
def test_it_is_the_model(shape):
    model = make()
    found = inference_function(model)(images(*shape)).numpy()
    # Kernels that are constants may be summed in another order.
    expected = model(images(*shape), training=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(found) > 0.01


def test_weights_are_constants():
    model = make()
    infer = inference_function(model)
    graph = infer.get_concrete_function(images(1, 16, 16, 3)).graph
    assert not graph.captures
    assert not [op for op in graph.get_operations() if "ReadVar" in op.type]
    expected = model(images(1, 16, 16, 3), training=False)
    model.set_weights([w * 2 for w in model.get_weights()])
    np.testing.assert_allclose(
        infer(images(1, 16, 16, 3)), expected, rtol=1e-5, atol=1e-6
    )


def test_shapes_share_graphs():
    """Each graph has the weights: fifty would have fifty copies."""
    model = make()
    infer = inference_function(model)
    sizes = [(batch, 16, 16) for batch in range(1, 6)]
    sizes += [(2, side, 24) for side in (17, 20)] + [(3, 16, 9), (1, 16, 16)]
    for size in sizes:
        pixels = images(*size, 3)
        np.testing.assert_allclose(
            infer(tf.constant(pixels)),
            model(pixels, training=False),
            rtol=1e-5,
            atol=1e-6,
        )
    # The first shape, any batch size, any size.
    assert infer.experimental_get_tracing_count() == 3


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64"])
def test_other_types_of_images(dtype):
    model = make()
    pixels = (50 * images(1, 16, 16, 3)).astype(dtype)
    expected = model(pixels.astype("float32"), training=False)
    infer = inference_function(model)
    for given in pixels, tf.constant(pixels):
        np.testing.assert_allclose(infer(given), expected, rtol=1e-5, atol=1e-6)


def test_mixed_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make()
    finally:
        keras.config.set_dtype_policy("float32")
    folded = keras_resnext.fold_batch_norm(model)
    found = inference_function(folded)(images(2, 16, 16, 3)).numpy()
    assert found.dtype == "float32"
    # Both round to 8 bits at ten layers, in places that may differ by one.
    difference = np.abs(found - folded(images(2, 16, 16, 3), training=False))
    assert difference.max() < 2**-8 * np.sqrt(10) * found.max()


@pytest.mark.parametrize("model", [None, keras.Sequential(), "resnext50"])
def test_what_is_no_built_model_is_refused(model):
    with pytest.raises(ValueError, match="`model` must be a built keras.Model"):
        inference_function(model)
