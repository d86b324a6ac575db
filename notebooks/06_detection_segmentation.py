# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Detection and segmentation
#
# A classifier gives one answer for a whole image. A *detector* draws a box
# around each object and names it; a *segmenter* names the class of every pixel.
# Both begin with a classification network, the *backbone*, whose last layers
# are taken off: instead of class scores they use its feature maps.
#
# This notebook looks at these maps, and puts a ResNeXt under two models of
# KerasHub: RetinaNet for detection and DeepLabV3 for segmentation. It trains
# both from random weights, for a minute or two each.
#
# It needs `pip install '.[notebooks]' keras-hub` in a clone, and downloads
# nothing.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from PIL import ImageDraw
from sklearn.datasets import load_sample_images

import keras_resnext
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD

# isort: split
# After keras_resnext, which chooses how TensorFlow uses the processor.
import keras
import keras_hub

# %% [markdown]
# ## The pyramid
#
# A ResNeXt has four stages. Before the first, the stem has made height and
# width four times smaller; each further stage halves them. What the stages give
# is called C2, C3, C4 and C5, and together it is a *pyramid*: maps at the
# bottom have many places and know edges and textures, maps at the top have few
# places and know objects. Small objects are found at the bottom, large ones at
# the top.
#
# `include_top=False` builds a network without its classifier, and
# `feature_pyramid` turns it into one that gives all four maps.

# %%
body = keras_resnext.ResNeXt50(weights=None, include_top=False)
pyramid = keras_resnext.feature_pyramid(body)
levels = keras.Model(pyramid.input, pyramid.pyramid_outputs)
for level, values in levels(keras.Input((224, 224, 3))).items():
    _, height, width, channels = values.shape
    print(f"{level}: {height:2} x {width:2} places, {channels:4} channels")
    assert height == 224 // 2 ** int(level[1])

# %% [markdown]
# `pyramid_outputs` calls them P2 to P5, as KerasHub does: a map Pn is 2^n times
# smaller than the image. KerasHub reads this attribute, so the pyramid of any
# network of this package can be the `image_encoder` of its detectors and
# segmenters. We take random weights here because nothing is downloaded;
# `weights="imagenet"` or a name from `keras-resnext list --weights` brings
# published ones, and everything below stays as it is.
#
# ## The output stride
#
# P5 is 32 times smaller than the image: a place is 32 pixels wide, which is
# coarse for someone who wants to know the class of each pixel. `output_stride`
# is the largest factor by which a network shrinks its input. With
# `output_stride=16` the last stage does not halve its maps. Its 3x3
# convolutions would then see half as far as they did in training. Therefore
# they are *dilated*: they look at every second place only, and see as far as
# before.

# %%
small = {"depths": (1, 2, 1, 2), "cardinality": 8, "base_width": 4}
networks = {
    stride: keras_resnext.ResNeXt(
        **small,
        include_top=False,
        input_shape=(128, 128, 3),
        output_stride=stride,
    )
    for stride in (32, 16, 8)
}
rng = np.random.default_rng(0)
weights = [
    # Variances have to be positive; for simplicity, all vectors are.
    np.abs(value) + 0.5 if value.ndim == 1 else value
    for value in networks[32].get_weights()
]
weights = [
    value * rng.uniform(0.5, 1.5, value.shape).astype("float32")
    for value in weights
]
for network in networks.values():
    network.set_weights(weights)

# %% [markdown]
# All three have the same weights. Do they also compute the same? Where a
# dilated network has a row and a column for every 16 or 8 pixels, the first one
# has one for every 32, and leaves out the rest. If we leave out the same ones
# ourselves, the numbers have to agree, up to rounding.

# %%
images = rng.normal(size=(2, 128, 128, 3)).astype("float32")
maps = {
    stride: network.predict(images, verbose=0)
    for stride, network in networks.items()
}
coarse = maps[32]
for stride, dense in maps.items():
    step = 32 // stride
    difference = np.abs(dense[:, ::step, ::step] - coarse).max()
    cost = keras_resnext.count_complexity(networks[stride])
    print(
        f"output_stride={stride:2}: {dense.shape[1]:2} x {dense.shape[2]:2} "
        f"places, {cost.params:,} parameters, "
        f"{cost.multiply_adds / 1e6:4.0f} M multiply-adds, "
        f"{cost.activations / 1e6:.2f} M activations; "
        f"largest difference {difference / np.abs(coarse).max():.0e}"
    )
    # float32 keeps seven digits, and 19 layers lose some of them.
    assert difference <= 1e-4 * np.abs(coarse).max()

# %% [markdown]
# So weights that were trained for classification fit, and the finer maps are
# paid for in multiply-adds and memory, not in parameters. DeepLabV3 was
# published with output strides of 16 and 8 ([arXiv
# 1706.05587](https://arxiv.org/abs/1706.05587)).
#
# ## Pictures to learn from
#
# We need objects whose place is known, so we draw them: discs, rectangles and
# triangles in cuttings of scikit-learn's two photographs (danielbuechele's
# `china.jpg` and vultilion's `flower.jpg`, both CC BY 2.0). Each has the main
# colour of its class, so that a small network can learn it in a minute; size,
# place and shade are random. Backgrounds for training are cut from the left
# halves of the photographs, those for the test from the right halves.

# %%
NAMES = "disc", "rectangle", "triangle"
HEIGHT, WIDTH = 64, 96
MOST = 2  # shapes in an image


def draw_images(count, half, seed):
    """Images, the boxes and classes of their shapes, and masks."""
    rng = np.random.default_rng(seed)
    photos = [photo[:, half] for photo in load_sample_images().images]
    images = np.empty((count, HEIGHT, WIDTH, 3), "uint8")
    masks = np.zeros((count, HEIGHT, WIDTH), "uint8")  # 0 is background
    boxes = np.full((count, MOST, 4), -1, "float32")  # -1 for no box
    labels = np.full((count, MOST), -1, "float32")
    for i in range(count):
        photo = photos[rng.integers(2)]
        top = rng.integers(photo.shape[0] - HEIGHT)
        left = rng.integers(photo.shape[1] - WIDTH)
        images[i] = photo[top : top + HEIGHT, left : left + WIDTH]
        for shape in range(rng.integers(1, MOST + 1)):
            label = rng.integers(3)
            # One in each half of the image, so that they do not overlap.
            box = random_box(rng, label, shape * WIDTH // 2)
            inside = draw_shape(rng, label, box)
            color = rng.integers(0, 100, 3)
            color[label] = rng.integers(180, 256)
            images[i][inside] = color
            masks[i][inside] = label + 1
            boxes[i, shape], labels[i, shape] = box, label
    return images, {"boxes": boxes, "labels": labels}, masks


def random_box(rng, label, left):
    width, height = rng.integers(18, 41, 2)
    if NAMES[label] == "disc":
        height = width
    left += rng.integers(WIDTH // 2 - width + 1)
    top = rng.integers(HEIGHT - height + 1)
    return left, top, left + width, top + height


def draw_shape(rng, label, box):
    """bool `(HEIGHT, WIDTH)`: the pixels of a shape that fills a box."""
    left, top, right, bottom = box
    canvas = Image.new("1", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(canvas)
    frame = left, top, right - 1, bottom - 1  # Pillow fills the last pixel
    if NAMES[label] == "disc":
        draw.ellipse(frame, fill=1)
    elif NAMES[label] == "rectangle":
        draw.rectangle(frame, fill=1)
    else:
        tip = rng.integers(left, right), top
        draw.polygon([(left, bottom - 1), (right - 1, bottom - 1), tip], fill=1)
    return np.array(canvas)


train_images, train_boxes, train_masks = draw_images(
    1200, slice(0, 320), seed=0
)
test_images, test_boxes, test_masks = draw_images(200, slice(320, 640), seed=1)
print(f"{len(train_images)} images to train on, {len(test_images)} to test")

# %% [markdown]
# ## Preprocessing
#
# KerasHub's tasks take pixels in [0, 255] and have an *image converter* that
# prepares them. It multiplies by `scale` and adds `offset`. Published weights
# of ResNeXt want what `preprocess_input` does, so we write that in its terms,
# and compare.

# %%
mean, std = np.array(MEAN), np.array(STD)


def converter(kind):
    return kind(scale=list(1 / (255 * std)), offset=list(-mean / std))


theirs = np.array(converter(keras_hub.layers.ImageConverter)(test_images[:8]))
ours = keras_resnext.preprocess_input(test_images[:8])
print(f"largest difference: {np.abs(theirs - ours).max():.0e}")
# A few roundings of numbers below 4.
assert np.abs(theirs - ours).max() < 1e-5


# %% [markdown]
# ## A detector: RetinaNet
#
# RetinaNet adds a *feature pyramid network*: it hands what the upper maps know
# down to the lower ones. Its own maps, which the paper calls P3, P4 and P5,
# have 256 channels each that know both what and where. Two small heads, the
# same for all levels, then look at every place. There are boxes of several
# sizes and shapes prepared at each, called *anchors*: one head scores the
# classes of an anchor, the other says how far to move and stretch it ([arXiv
# 1708.02002](https://arxiv.org/abs/1708.02002)).
#
# Our network is small: four blocks of 8 paths. Objects are 18 to 40 pixels
# wide, so we let the smallest anchors be 16.


# %%
def small_pyramid(**options):
    return keras_resnext.feature_pyramid(
        keras_resnext.ResNeXt(
            depths=(1, 1, 1, 1),
            cardinality=8,
            base_width=4,
            filters=64,
            include_top=False,
            input_shape=(None, None, 3),
            **options,
        )
    )


keras.utils.set_random_seed(0)
detector = keras_hub.models.RetinaNetObjectDetector(
    keras_hub.models.RetinaNetBackbone(
        image_encoder=small_pyramid(), min_level=3, max_level=5, use_p5=False
    ),
    num_classes=len(NAMES),
    bounding_box_format="xyxy",  # left, top, right, bottom
    anchor_generator=keras_hub.layers.AnchorGenerator(
        "xyxy",
        min_level=3,
        max_level=5,
        num_scales=3,
        aspect_ratios=[0.5, 1.0, 2.0],
        anchor_size=2.0,  # of a place: 16 pixels at P3, 64 at P5
    ),
    use_prediction_head_norm=True,
    pre_logits_num_conv_layers=1,
    preprocessor=keras_hub.models.RetinaNetObjectDetectorPreprocessor(
        image_converter=converter(keras_hub.layers.RetinaNetImageConverter)
    ),
    prediction_decoder=keras_hub.layers.NonMaxSuppression(
        "xyxy", from_logits=True, confidence_threshold=0.05, max_detections=20
    ),
)

# %% [markdown]
# Almost all anchors show background, and their errors would swamp those of the
# few that show an object. Against that, RetinaNet has the *focal loss*, which
# counts an anchor less the surer the network is of it, and it starts all scores
# at 0.01 instead of 0.5. KerasHub 0.32 gives this start to the boxes instead of
# the classes; we set both.
#
# For the boxes we choose the absolute error. KerasHub's default, Huber's loss,
# is a square close to zero, where boxes are when they are told in sides of
# anchors; its slope there is small, and they are learned slowly.

# %%
scores = detector.classification_head.prediction_layer.bias
moves = detector.box_head.prediction_layer.bias
scores.assign(np.full(scores.shape, np.log(0.01 / 0.99)))
moves.assign(np.zeros(moves.shape))


def fit(model, images, targets, epochs=2, **losses):
    steps = epochs * len(images) // 8
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=2e-3, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.Adam(rate, clipnorm=10.0),
        # Left to choose, Keras takes XLA, whose convolutions are slow on CPUs.
        jit_compile=False,
        **losses,
    )
    started = time.perf_counter()
    history = model.fit(
        images,
        targets,
        batch_size=8,
        epochs=epochs,
        shuffle=False,  # they were drawn at random
        verbose=0,
    ).history["loss"]
    seconds = time.perf_counter() - started
    print(f"{epochs} epochs in {seconds:.0f} s, loss", end=" ")
    print(", ".join(f"{loss:.3f}" for loss in history))
    return history


loss = fit(
    detector,
    train_images,
    train_boxes,
    box_loss=keras.losses.MeanAbsoluteError(reduction="sum"),
)
assert loss[-1] < loss[0]

# %% [markdown]
# ### What it finds
#
# `predict` gives boxes with classes and confidences, the surest first. Several
# anchors may have found the same object; *non-maximum suppression* has left the
# surest of those that overlap.

# %%
found = detector.predict(test_images, batch_size=8, verbose=0)
COLORS = "red", "lime", "deepskyblue"


def draw_boxes(ax, found, i):
    for k in np.flatnonzero(found["confidence"][i] >= 0.5):
        left, top, right, bottom = found["boxes"][i, k]
        label = int(found["labels"][i, k])
        ax.add_patch(
            plt.Rectangle(
                (left - 0.5, top - 0.5),
                right - left,
                bottom - top,
                fill=False,
                color=COLORS[label],
                linewidth=2,
            )
        )
        ax.text(
            left,
            top - 2,
            f"{NAMES[label]} {found['confidence'][i, k]:.2f}",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


figure, axes = plt.subplots(2, 4, figsize=(12, 4.6), layout="constrained")
for i, ax in enumerate(axes.flat):
    ax.imshow(test_images[i])
    draw_boxes(ax, found, i)
    ax.axis("off")
plt.show()

# %% [markdown]
# Eight images of the test with the boxes of which the detector is sure (a
# confidence of at least 0.5).
#
# How good is it? A box counts as right if its class is, and if it overlaps the
# true box well: the area that both have in common, over the area that they
# cover together (*intersection over union*, IoU), must be at least 0.5.
# *Precision* is the share of its boxes that are right, *recall* the share of
# objects that were found. An object is found once; a second box for it is
# wrong.


# %%
def count_right(found, truth, confidence=0.5):
    """The numbers of right boxes, of all boxes, and of objects."""
    right = boxes = 0
    for i in range(len(truth["boxes"])):
        sure = found["confidence"][i] >= confidence
        boxes += sure.sum()
        for label in range(len(NAMES)):
            mine = found["boxes"][i][sure & (found["labels"][i] == label)]
            wanted = truth["boxes"][i][truth["labels"][i] == label]
            overlap = np.array(
                keras.utils.bounding_boxes.compute_iou(mine, wanted, "xyxy")
            )
            # Objects are apart, so no box reaches one half with two of them.
            right += (overlap.max(axis=0, initial=0) >= 0.5).sum()
    return right, boxes, (truth["labels"] >= 0).sum()


right, boxes, objects = count_right(found, test_boxes)
print(f"precision: {right} of {boxes} boxes, {right / boxes:.3f}")
print(f"recall: {right} of {objects} objects, {right / objects:.3f}")
assert right > 0.5 * boxes
assert right > 0.5 * objects

# %% [markdown]
# Nearly every object is found. The wrong boxes are mostly second ones for an
# object, which overlap the first too little to be suppressed; longer training
# makes them rarer.
#
# ## A segmenter: DeepLabV3
#
# DeepLabV3 looks at the last map with convolutions of several dilations side by
# side, and once at the whole image, so that each place knows its surroundings
# at several scales. KerasHub's version (DeepLabV3+) then brings in P2, which
# still knows where edges are, and enlarges the result to the size of the image.
#
# With `output_stride=16` there is no P5: the last stage gives P4.

# %%
keras.utils.set_random_seed(0)
encoder = small_pyramid(output_stride=16)
print("maps:", ", ".join(encoder.pyramid_outputs))
segmenter = keras_hub.models.DeepLabV3ImageSegmenter(
    keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P4",
        upsampling_size=4,  # from P4 to P2
        dilation_rates=[1, 2],
        low_level_feature_key="P2",
    ),
    num_classes=1 + len(NAMES),
    preprocessor=keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(
        image_converter=converter(keras_hub.layers.DeepLabV3ImageConverter)
    ),
)
one_hot = np.eye(1 + len(NAMES), dtype="uint8")
loss = fit(segmenter, train_images, one_hot[train_masks])
assert loss[-1] < loss[0]

# %% [markdown]
# The measure of segmentation is again intersection over union, of a class's
# pixels: those that are of the class and were taken for it, over those that are
# one or the other. Five of six pixels are background, so the share of right
# pixels would flatter a network that finds nothing.

# %%
probabilities = segmenter.predict(test_images, batch_size=8, verbose=0)
predicted = probabilities.argmax(axis=-1)
for label, name in enumerate(("background", *NAMES)):
    mine, wanted = predicted == label, test_masks == label
    iou = (mine & wanted).sum() / (mine | wanted).sum()
    print(f"{name}: IoU {iou:.3f}, {wanted.mean():.1%} of the pixels")
    assert iou > 0.5
assert 0.8 < (test_masks == 0).mean() < 0.87

# %%
palette = np.array(
    [(255, 255, 255), (214, 39, 40), (44, 160, 44), (31, 119, 180)], "uint8"
)
figure, axes = plt.subplots(3, 5, figsize=(12, 5), layout="constrained")
for i, column in enumerate(axes.T):
    column[0].imshow(test_images[i])
    column[1].imshow(palette[test_masks[i]])
    column[2].imshow(palette[predicted[i]])
for ax, title in zip(axes[:, 0], ("image", "drawn", "predicted"), strict=True):
    ax.set_ylabel(title)
for ax in axes.flat:
    ax.set_xticks([])
    ax.set_yticks([])
plt.show()

# %% [markdown]
# Five images of the test, the shapes that were drawn into them, and what the
# segmenter makes of it: red discs, green rectangles, blue triangles. Corners
# are rounded, because the answer is computed on a quarter of height and width
# and then enlarged.
#
# ## Keep them
#
# A task is saved as any Keras model. In a new process, import `keras_resnext`
# and `keras_hub` before its file is loaded, so that Keras knows their layers.

# %%
path = Path(tempfile.mkdtemp(prefix="resnext-dense-")) / "segmenter.keras"
segmenter.save(path)
loaded = keras.saving.load_model(path, compile=False)
loaded.compile(jit_compile=False)
again = loaded.predict(test_images[:8], batch_size=8, verbose=0)
difference = np.abs(again - probabilities[:8]).max()
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {difference} off")
assert difference < 1e-5  # nothing at all on a CPU

# %% [markdown]
# ## Where to go next
#
# - **Published weights.** Fewer images are needed with a backbone that has seen
#   a million: `keras_resnext.ResNeXt50(include_top=False, weights=...)` under
#   the same two tasks. [Weights and images](../docs/weights.md) lists them.
# - **Small batches.** Detectors train on few images at a time, whose statistics
#   are noise: set `trainable = False` on the backbone's batch norms, as in
#   [Fine-tuning](03_finetuning.ipynb).
# - **Your own head.** `feature_pyramid` gives plain Keras tensors; any
#   functional model can start from `pyramid.outputs`.
