"""What is wrong with a folder of images, before training begins."""

import os
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence

import numpy as np

from keras_resnext.files import file_hash
from keras_resnext.images import IMAGE_SUFFIXES
from keras_resnext.training.folders import VAL_SPLITS
from keras_resnext.training.folders import ImageFolder

_SHOWN = 5  # names in a line
_PIECE = 4096  # bytes
# Largest to smallest class, from where it is worth a line.
_IMBALANCE = 5


def check_folder(folder: ImageFolder) -> list[str]:
    """Problems of a folder that training would not show.

    Skipped files, classes that are missing in a split or have no images,
    imbalance, empty files, and images that are in several splits or classes
    byte for byte.

    Args:
        folder: An `ImageFolder`.

    Returns:
        A line of text for each problem; none if there are no problems.

    Example:

    >>> check_folder(open_folder("photos"))
    ['2 classes have training images only: cat, dog.']
    """
    return [
        *_skipped_lines(folder),
        *_class_lines(folder),
        *_imbalance_lines(folder),
        *_content_lines(folder),
    ]


def identical_files(paths: Sequence[str]) -> list[list[str]]:
    """Groups of files with the same content.

    Only files of equal size are opened, and of those only the ones with an
    equal piece in the middle are read as a whole.

    Args:
        paths: Paths of the files.

    Returns:
        Lists of two or more paths, each in the order of `paths`.

    Example:

    >>> identical_files(["a.jpg", "b.jpg", "copy of a.jpg"])
    [['a.jpg', 'copy of a.jpg']]
    """
    groups = [paths]
    for key in (os.path.getsize, _middle, file_hash):
        groups = [same for group in groups for same in _alike(group, key)]
    return groups


def _alike(
    paths: Sequence[str], key: Callable[[str], Hashable]
) -> list[list[str]]:
    """Groups of two or more paths with the same key."""
    groups = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return [group for group in groups.values() if len(group) > 1]


def _middle(path):
    """A piece of a file; its beginning is often the same camera's."""
    with open(path, "rb", buffering=0) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _PIECE) // 2)
        return file.read(_PIECE)


def _skipped_lines(folder):
    if folder.skipped:
        yield (
            f"{_count(folder.skipped, 'file or folder', 'files or folders')} "
            f"skipped, not {', '.join(IMAGE_SUFFIXES)} in a class folder: "
            f"{_some(folder.skipped)}."
        )


def _class_lines(folder):
    """Lines on classes that lack images somewhere."""
    counts = {split: folder.class_counts(split) for split in folder.splits}
    totals = {x: sum(c[x] for c in counts.values()) for x in folder.labels}
    yield from _line(
        [label for label, total in totals.items() if not total],
        "no images, but an output of the network",
    )
    val = _val_split(folder)
    for split, name in ((val, "validation"), ("train", "training")):
        if not folder.sizes.get(split):
            yield f"There are no {name} images."
            return
    single = [x for x, total in totals.items() if total == 1]
    yield from _line(single, "one image only, for training or validation")
    for split, other, name in (
        (val, "train", "validation"),
        ("train", val, "training"),
    ):
        missing = [
            label
            for label in folder.labels
            if counts[other][label]
            and not counts[split][label]
            and label not in single
        ]
        yield from _line(missing, f"no {name} images")


def _imbalance_lines(folder):
    counts = folder.class_counts("train") if "train" in folder.splits else {}
    counts = {label: count for label, count in counts.items() if count}
    if not counts:
        return
    largest, smallest = (f(counts, key=counts.get) for f in (max, min))
    if counts[largest] >= _IMBALANCE * counts[smallest]:
        yield (
            f"The classes are imbalanced: {counts[largest]} training images of "
            f"{largest}, {counts[smallest]} of {smallest}."
        )


def _content_lines(folder):
    """Lines on empty files and on copies."""
    splits, labels = {}, {}
    for split, images in folder.splits.items():
        for name, label in zip(*map(np.ndarray.tolist, images), strict=True):
            path = os.path.join(folder.path, name.decode())
            splits[path], labels[path] = split, label
    empty = [path for path in splits if not os.path.getsize(path)]
    if empty:
        yield (
            f"{_count(empty, 'image', 'images')} without content: "
            f"{_some([_relative(folder, path) for path in empty])}."
        )
    groups = identical_files(sorted(splits.keys() - set(empty)))
    for split in folder.splits:
        if split != "train":
            yield from _copies(
                folder,
                [_firsts(group, splits, {"train", split}) for group in groups],
                f"in train and in {split}",
            )
    yield from _copies(
        folder, [_firsts(group, labels) for group in groups], "in two classes"
    )


def _firsts(paths, kinds, wanted=None):
    """The first path of each kind, or of each wanted kind."""
    firsts = {}
    for path in paths:
        if not wanted or kinds[path] in wanted:
            firsts.setdefault(kinds[path], path)
    return list(firsts.values())


def _copies(folder, copies, places):
    """A line on the copies that are in several places, if there are any."""
    pairs = [
        " = ".join(_relative(folder, path) for path in paths[:2])
        for paths in copies
        if len(paths) > 1
    ]
    if pairs:
        verb = "is" if len(pairs) == 1 else "are"
        yield (
            f"{_count(pairs, 'image', 'images')} {verb} {places}, byte for "
            f"byte: {_some(pairs)}."
        )


def _relative(folder, path):
    return os.path.relpath(path, folder.path)


def _val_split(folder):
    return next((s for s in VAL_SPLITS if folder.sizes.get(s)), None)


def _line(labels, problem):
    """A line on some classes, if there are any."""
    if labels:
        verb = "has" if len(labels) == 1 else "have"
        yield (
            f"{_count(labels, 'class', 'classes')} {verb} {problem}: "
            f"{_some(labels)}."
        )


def _count(items, one, many):
    return f"{len(items)} {one if len(items) == 1 else many}"


def _some(names):
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
