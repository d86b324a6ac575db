"""Detection and segmentation: our pyramid as KerasHub's image encoder."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_resnext
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from tests import shapes
from tests.conftest import randomize

pytestmark = pytest.mark.integration

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (make peers)"
)


BATCH = 8  # images, in training
CLASSES = np.eye(1 + len(shapes.NAMES), dtype="uint8")  # 0 is background


@pytest.fixture(scope="module")
def encoder():
    body = keras_resnext.ResNeXt(
        (1, 1, 1, 1), 4, 4, include_top=False, input_shape=(None, None, 3)
    )
    return keras_resnext.feature_pyramid(randomize(body))


def backbone(kind, encoder):
    if kind == "retinanet":
        return keras_hub.models.RetinaNetBackbone(
            image_encoder=encoder, min_level=3, max_level=6, use_p5=False
        )
    return keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[2, 4],
        low_level_feature_key="P2",
        projection_filters=8,
    )


@pytest.mark.parametrize("kind", ["retinanet", "deeplab"])
def test_backbones_survive_saving(kind, encoder, tmp_path):
    model = backbone(kind, encoder)
    path = tmp_path / "backbone.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3))
    before, after = (
        m.predict(images.astype("float32"), verbose=0) for m in (model, loaded)
    )
    if kind == "deeplab":
        before, after = {"": before}, {"": after}
    assert before.keys() == after.keys()
    for level, values in before.items():
        assert values.std() > 0
        np.testing.assert_array_equal(values, after[level])


def test_a_new_process_opens_a_pyramid(encoder, tmp_path):
    path = tmp_path / "maps.keras"
    encoder.save(path)
    code = (
        "import sys, keras_resnext, keras;"
        "maps = keras.saving.load_model(sys.argv[1]);"
        "print(*maps.pyramid_outputs)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["P2", "P3", "P4", "P5"]


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ({}, [2, 3, 4, 5]),
        ({"output_stride": 16, "form": "branches"}, [2, 3, 5]),
        ({"output_stride": 8}, [2, 5]),
        ({"stem": "cifar", "form": "concatenated"}, [2, 3, 4, 5]),
    ],
)
def test_levels_say_how_small_the_maps_are(arguments, stages):
    body = keras_resnext.ResNeXt(
        (1, 2, 1, 1), 2, 4, filters=16, include_top=False, **arguments
    )
    for model in (body, keras_resnext.to_stock_layers(body)):
        maps = keras_resnext.feature_pyramid(model)
        assert list(maps.pyramid_outputs.values()) == [
            maps.outputs[stage - 2] for stage in stages
        ]
        levels = keras.Model(maps.input, maps.pyramid_outputs)
        for level, values in levels(keras.Input((64, 128, 3))).items():
            stride = 2 ** int(level.removeprefix("P"))
            assert values.shape[1:3] == (64 // stride, 128 // stride)


def converter(kind):
    """KerasHub's preprocessing of pixels in [0, 255] for our networks."""
    mean, std = np.array(MEAN), np.array(STD)
    return kind(scale=(1 / (255 * std)).tolist(), offset=(-mean / std).tolist())


def pyramid(**arguments):
    return keras_resnext.feature_pyramid(
        keras_resnext.ResNeXt(
            (1, 1, 1, 1),
            8,
            4,
            filters=64,
            include_top=False,
            input_shape=(None, None, 3),
            **arguments,
        )
    )


def detector():
    levels = {"min_level": 3, "max_level": 5}
    model = keras_hub.models.RetinaNetObjectDetector(
        keras_hub.models.RetinaNetBackbone(
            image_encoder=pyramid(), use_p5=False, **levels
        ),
        num_classes=len(shapes.NAMES),
        bounding_box_format="xyxy",
        anchor_generator=keras_hub.layers.AnchorGenerator(
            "xyxy",
            num_scales=3,
            aspect_ratios=[0.5, 1.0, 2.0],
            anchor_size=2.0,  # 16 to 102 pixels
            **levels,
        ),
        use_prediction_head_norm=True,
        pre_logits_num_conv_layers=1,
        preprocessor=keras_hub.models.RetinaNetObjectDetectorPreprocessor(
            image_converter=converter(keras_hub.layers.RetinaNetImageConverter)
        ),
        prediction_decoder=keras_hub.layers.NonMaxSuppression(
            "xyxy",
            from_logits=True,
            confidence_threshold=0.05,
            max_detections=20,
        ),
    )
    # A prior of 0.01 (Lin et al., 1708.02002, section 4.1). KerasHub 0.32
    # gives it to the boxes instead of the classes.
    box_bias = model.box_head.prediction_layer.bias
    class_bias = model.classification_head.prediction_layer.bias
    class_bias.assign(keras.ops.full_like(class_bias, -np.log(99)))
    box_bias.assign(keras.ops.zeros_like(box_bias))
    return model


def segmenter():
    return keras_hub.models.DeepLabV3ImageSegmenter(
        keras_hub.models.DeepLabV3Backbone(
            image_encoder=pyramid(output_stride=16),
            spatial_pyramid_pooling_key="P4",
            upsampling_size=4,
            dilation_rates=[1, 2],
            low_level_feature_key="P2",
        ),
        num_classes=1 + len(shapes.NAMES),
        preprocessor=keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(
            image_converter=converter(keras_hub.layers.DeepLabV3ImageConverter)
        ),
    )


def trained(kind, seed, count, epochs):
    """A task trained on `count` images, and the loss of each epoch."""
    keras.utils.set_random_seed(seed)
    images, boxes, masks = shapes.draw_shapes(count, "train", seed)
    if kind == "retinanet":
        model, target = detector(), boxes
        # As in torchvision. Boxes are told in sides of anchors, where Huber's
        # loss, KerasHub's default, is a square and has little slope.
        loss = {"box_loss": keras.losses.MeanAbsoluteError(reduction="sum")}
    else:
        model, target, loss = segmenter(), CLASSES[masks], {}
    stem = model.backbone.image_encoder.get_layer("conv1_conv").kernel
    before = keras.ops.convert_to_numpy(stem).copy()
    steps = epochs * count // BATCH
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=2e-3, warmup_steps=steps // 10
    )
    # Without decay of weights: what Adam moves has a gradient.
    optimizer = keras.optimizers.Adam(rate, clipnorm=10.0)
    # Left to choose, Keras takes XLA, whose convolutions are slow on CPUs.
    model.compile(optimizer, jit_compile=False, **loss)
    history = model.fit(
        images,
        target,
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,  # drawn at random; KerasHub warns that it cannot
        verbose=0,
    )
    moved = before != keras.ops.convert_to_numpy(stem)
    assert moved.any(axis=(0, 1, 2)).all()
    return model, history.history["loss"]


def check_saving(model, images, path):
    """What a task finds is the same, to the bit, once it is loaded again."""
    # Keras cannot restore KerasHub's `compile`, nor the optimizer given to it.
    model.compile(jit_compile=False)
    model.save(path)
    loaded = keras.saving.load_model(path, compile=False)
    loaded.compile(jit_compile=False)
    before, after = (
        keras.tree.flatten_with_path(
            m.predict(images, batch_size=BATCH, verbose=0)
        )
        for m in (model, loaded)
    )
    for (name, ours), (_, theirs) in zip(before, after, strict=True):
        assert ours.std() > 0 or name == ("num_detections",), name
        np.testing.assert_array_equal(ours, theirs, err_msg=str(name))


@pytest.mark.parametrize("kind", ["retinanet", "deeplab"])
def test_some_steps_lower_the_loss(kind, tmp_path):
    model, losses = trained(kind, seed=0, count=16, epochs=8)
    assert losses[-1] < losses[0]
    images, _, _ = shapes.draw_shapes(BATCH, "test", seed=0)
    check_saving(model, images, tmp_path / "task.keras")


@pytest.mark.slow
def test_retinanet_finds_shapes(tmp_path):
    model, losses = trained("retinanet", seed=0, count=1200, epochs=2)
    assert losses[-1] < losses[0] / 2
    images, boxes, _ = shapes.draw_shapes(64, "test", seed=0)
    found = model.predict(images, batch_size=BATCH, verbose=0)
    assert shapes.mean_average_precision(boxes, found) > 0.5
    check_saving(model, images, tmp_path / "detector.keras")


@pytest.mark.slow
def test_deeplab_fills_shapes(tmp_path):
    model, losses = trained("deeplab", seed=0, count=1200, epochs=2)
    assert losses[-1] < losses[0] / 2
    images, _, masks = shapes.draw_shapes(64, "test", seed=0)
    # Of the shapes only: the background is large and easy.
    metric = keras.metrics.IoU(len(CLASSES), [1, 2, 3], sparse_y_pred=False)
    metric.update_state(
        masks, model.predict(images, batch_size=BATCH, verbose=0)
    )
    assert metric.result() > 0.5
    check_saving(model, images, tmp_path / "segmenter.keras")


def test_the_converter_is_our_preprocessing():
    images, _, _ = shapes.draw_shapes(2, "test", seed=0)
    theirs = converter(keras_hub.layers.ImageConverter)(images)
    # Roundings in units of 2^-24: theirs of the scale and the product, which
    # is below 4.5, of the offset (2.2) and of the sum (2.7), 14 together; ours
    # of mean (twice 2.2) and deviation (twice 2.7), of difference and quotient
    # (2.7 each), 16 together.
    np.testing.assert_allclose(
        theirs,
        keras_resnext.preprocess_input(images),
        rtol=0,
        atol=30 * 2**-24,
    )


def test_boxes_frame_their_masks():
    _, boxes, masks = shapes.draw_shapes(50, "train", seed=0)
    seen = set()
    for mask, corners, labels in zip(
        masks, boxes["boxes"], boxes["labels"], strict=True
    ):
        covered = np.zeros_like(mask)
        for (left, top, right, bottom), label in zip(
            corners.astype(int), labels.astype(int), strict=True
        ):
            if label < 0:
                continue
            seen.add(label)
            inside = mask[top:bottom, left:right]
            assert set(inside.flat) <= {0, label + 1}
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()
            covered[top:bottom, left:right] = inside
        np.testing.assert_array_equal(mask, covered)
    assert seen == set(range(len(shapes.NAMES)))


def test_average_precision_by_hand():
    truth = {
        "boxes": np.float32(
            [[[0, 0, 10, 10], [20, 20, 40, 40]], [[0, 0, 10, 10], [-1] * 4]]
        ),
        "labels": np.float32([[0, 1], [0, -1]]),
    }
    found = {
        "boxes": np.float32(
            [
                # Right, the same shape again, and as another class.
                [[0, 0, 10, 8], [0, 0, 10, 10], [0, 0, 10, 10], [-1] * 4],
                # Too far off, with an overlap of 4 / 16, and right.
                [[0, 6, 10, 16], [0, 0, 10, 10], [-1] * 4, [-1] * 4],
            ]
        ),
        "labels": np.int32([[0, 0, 1, -1], [0, 0, -1, -1]]),
        "confidence": np.float32([[0.9, 0.8, 0.7, -1], [0.6, 0.5, -1, -1]]),
    }
    # Class 0: hits at ranks 1 and 4 of its 4 detections, and 2 shapes, so
    # (1 + 2 / 4) / 2. Class 1: no hit. Class 2 is not there.
    assert shapes.average_precision(truth, found, 0) == 0.75
    assert shapes.average_precision(truth, found, 1) == 0
    found["labels"][0, 3] = 1
    found["boxes"][0, 3] = 20, 20, 40, 40
    found["confidence"][0, 3] = 0.3
    assert shapes.average_precision(truth, found, 1) == 0.5
    found["labels"][1, 1] = -1
    assert shapes.average_precision(truth, found, 0) == 0.5
