"""Shapes drawn into photographs, and how well they are found."""

import keras
import numpy as np
from PIL import Image
from PIL import ImageDraw
from sklearn.datasets import load_sample_images
from sklearn.metrics import average_precision_score

NAMES = ("disc", "rectangle", "triangle")
SIZE = (64, 96)  # height and width of images, in pixels
_SIDES = (18, 41)  # pixels, of shapes; beside the first is room for another
_MOST = 2  # shapes in an image


def draw_shapes(count, split, seed):
    """Photographs with one or two shapes of random size, place and shade.

    Discs are red, rectangles green and triangles blue, so that a small network
    tells them apart after a minute of training.

    Args:
        count: Number of images.
        split: `"train"` or `"test"`, which have the left and the right half of
            scikit-learn's two photographs as backgrounds.
        seed: Seed of backgrounds and shapes.

    Returns:
        `(images, boxes, masks)`: uint8 images `(count, 64, 96, 3)`; a dict of
        float32 `"boxes"`, `(count, 2, 4)` as left, top, right and bottom, and
        `"labels"`, `(count, 2)`, indices of `NAMES`, with -1 where there is
        no shape; and uint8 masks `(count, 64, 96)`, 0 for the background
        and index + 1 for shapes.
    """
    rng = np.random.default_rng((seed, split == "test"))
    half = {"train": np.s_[:, :320], "test": np.s_[:, 320:]}[split]
    photos = [photo[half] for photo in load_sample_images().images]
    images = np.empty((count, *SIZE, 3), "uint8")
    masks = np.zeros((count, *SIZE), "uint8")
    boxes = np.full((count, _MOST, 4), -1, "float32")
    labels = np.full((count, _MOST), -1, "float32")
    for i in range(count):
        photo = photos[rng.integers(2)]
        images[i] = _crop(rng, photo)
        for shape in range(rng.integers(1, _MOST + 1)):
            label = rng.integers(len(NAMES))
            inside, box = _place(rng, label, boxes[i, :shape])
            images[i][inside] = _color(rng, label)
            masks[i][inside] = label + 1
            boxes[i, shape], labels[i, shape] = box, label
    return images, {"boxes": boxes, "labels": labels}, masks


def _crop(rng, photo):
    top, left = rng.integers(np.array(photo.shape[:2]) - SIZE)
    return photo[top : top + SIZE[0], left : left + SIZE[1]]


def _color(rng, label):
    color = rng.integers(0, 100, 3)
    color[label] = rng.integers(180, 256)
    return color


def _place(rng, label, others):
    """The pixels and the box of a shape that is apart from the others."""
    while True:
        width, height = rng.integers(*_SIDES, 2)
        if NAMES[label] == "disc":
            height = width
        top, left = rng.integers(np.array(SIZE) - (height, width))
        right, bottom = left + width, top + height
        apart = (
            (right <= others[:, 0])
            | (others[:, 2] <= left)
            | (bottom <= others[:, 1])
            | (others[:, 3] <= top)
        )
        if apart.all():
            break
    canvas = Image.new("1", SIZE[::-1])
    draw = ImageDraw.Draw(canvas)
    frame = (left, top, right - 1, bottom - 1)  # Pillow fills the last pixel
    if NAMES[label] == "disc":
        draw.ellipse(frame, fill=1)
    elif NAMES[label] == "rectangle":
        draw.rectangle(frame, fill=1)
    else:
        foot = top if rng.integers(2) else bottom - 1
        tip = (rng.integers(left, right), top + bottom - 1 - foot)
        draw.polygon([(left, foot), (right - 1, foot), tip], fill=1)
    return np.array(canvas), (left, top, right, bottom)


def mean_average_precision(truth, found, threshold=0.5):
    """Area under precision over recall, averaged over the classes.

    Args:
        truth: `"boxes"` and `"labels"` of `draw_shapes`.
        found: The same of detections, with their `"confidence"`.
        threshold: Intersection over union from which a detection is right.
            Defaults to 0.5.

    Returns:
        A number in [0, 1].
    """
    return np.mean(
        [
            average_precision(truth, found, label, threshold)
            for label in range(len(NAMES))
        ]
    )


def average_precision(truth, found, label, threshold=0.5):
    """That of one class: a shape counts once, for its surest detection."""
    hits, scores = [], []
    for i in range(len(truth["boxes"])):
        wanted = truth["boxes"][i][truth["labels"][i] == label]
        mine = found["labels"][i] == label
        surest = np.argsort(-found["confidence"][i][mine])
        overlaps = keras.ops.convert_to_numpy(
            keras.utils.bounding_boxes.compute_iou(
                found["boxes"][i][mine][surest], wanted, "xyxy"
            )
        ).copy()
        for overlap in overlaps:
            hits.append(overlap.max(initial=0) >= threshold)
            if hits[-1]:
                overlaps[:, overlap.argmax()] = 0
        scores += list(found["confidence"][i][mine][surest])
    if not any(hits):
        return 0.0
    # scikit-learn divides by the shapes that were found, not by all.
    recall = sum(hits) / (truth["labels"] == label).sum()
    return recall * average_precision_score(hits, scores)
