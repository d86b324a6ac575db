"""Folders of images by class: listed once, and split if they are not.

Two layouts are read: `<split>/<class>/<image>` and `<class>/<image>`. The
second is split here, the same way on every machine.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import unicodedata
from typing import NamedTuple

import numpy as np

from keras_resnext.extras import first_line
from keras_resnext.files import staged
from keras_resnext.images import IMAGE_SUFFIXES

# The validation split's name, by preference. ImageNet's "test" has no labels,
# so it comes last.
VAL_SPLITS = ("validation", "val", "valid", "test")
VAL_FRACTION = 0.2
SPLIT_SEED = 0
# What systems leave behind, besides hidden files.
_IGNORED = ("thumbs.db", "desktop.ini", "__macosx")
_LAYOUTS = "<class>/<image> or <split>/<class>/<image>"


class Images(NamedTuple):
    """The images of a split, sorted by class and name.

    Args:
        names: Paths relative to the folder, array of bytes `(images,)`.
        labels: Indices of their classes, int64 `(images,)`.
    """

    names: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class MadeSplit:
    """A validation split that was made here, not by the user's folders.

    Args:
        validation: Paths of the validation images relative to the folder,
            with slashes, sorted. All other images are for training.
        fraction: Fraction of each class that was chosen for validation.
            Defaults to 0.2.
        seed: Seed of the choice. Defaults to 0.

    Example:

    >>> MadeSplit.of({"cat": ["cat/1.jpg", "cat/2.jpg"]}).validation
    ['cat/1.jpg']
    """

    validation: list[str]
    fraction: float = VAL_FRACTION
    seed: int = SPLIT_SEED

    @classmethod
    def of(cls, classes: dict[str, list[str]]) -> "MadeSplit":
        """Choose validation images, stratified by class.

        An image is chosen by a hash of its name, so neither the order of the
        listing nor the machine matters.

        Args:
            classes: Paths of each class's images.

        Returns:
            A `MadeSplit` with at least one image of each class that has two
            or more, and none of the others.
        """
        chosen = []
        for names in classes.values():
            count = max(1, round(VAL_FRACTION * len(names)))
            if len(names) > 1:
                chosen += sorted(names, key=_hash_of_name)[:count]
        return cls(sorted(chosen))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "MadeSplit":
        """Read what `write` wrote.

        Args:
            path: The file.

        Returns:
            A `MadeSplit`.

        Raises:
            ValueError: if the file holds something else.
        """
        try:
            made = cls(**json.loads(pathlib.Path(path).read_bytes()))
            known = isinstance(made.validation, list)
            if not known or not all(
                isinstance(n, str) for n in made.validation
            ):
                raise TypeError("`validation` must be a list of names")
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"`split_file` must be a recorded split; {os.fspath(path)} is "
                f"not ({first_line(error)})."
            ) from error
        return made

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the split as JSON, replacing the file if it exists.

        Args:
            path: The file.
        """
        with staged(path, overwrite=True) as new:
            new.write_text(json.dumps(dataclasses.asdict(self), indent=1))


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of images by class, as `open_folder` lists it.

    Args:
        path: The folder.
        labels: Names of the classes, sorted. A class folder without images is
            a class too.
        splits: The `Images` of each split, by its name.
        skipped: Paths, relative to the folder, of files and folders that are
            no images where images are expected; folders end in a slash.
        made_split: The split that was made here; `None` for a folder that has
            splits.

    Example:

    >>> folder = open_folder("photos")
    >>> folder.labels, folder.class_counts("validation")
    (['cat', 'dog'], {'cat': 20, 'dog': 31})
    """

    path: str
    labels: list[str]
    splits: dict[str, Images]
    skipped: list[str]
    made_split: MadeSplit | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: len(split.names) for name, split in self.splits.items()}

    def class_counts(self, split: str) -> dict[str, int]:
        """Number of images of each class in a split.

        Args:
            split: Name of the split.

        Returns:
            A dict with all classes, in the order of their indices.
        """
        counts = np.bincount(
            self.splits[split].labels, minlength=len(self.labels)
        )
        return dict(zip(self.labels, counts.tolist(), strict=True))


def open_folder(
    path: str | os.PathLike[str], split_file: str | os.PathLike | None = None
) -> ImageFolder:
    """List a folder of images by class.

    A folder with subfolders named train, validation, val, valid or test (in
    any case) has splits. Any other folder has classes only: a fifth of each
    class becomes the split "validation", the rest "train", see `MadeSplit.of`.

    Hidden files and folders are ignored, and so is what Windows and macOS
    leave behind (`Thumbs.db`). Links are followed.

    Args:
        path: The folder.
        split_file: File with the split that was made when the folder was
            first used; it is used if it exists. Images that were added since
            are for training. Defaults to `None`.

    Returns:
        An `ImageFolder`.

    Raises:
        ValueError: if there are no images in class folders, or `split_file`
            does not fit the folder.

    Example:

    >>> open_folder("photos").sizes
    {'train': 203, 'validation': 51}
    """
    path = os.fspath(path)
    skipped = []
    splits = _split_folders(path)
    if splits:
        files, _, others = _entries(path)
        skipped += files + others
    listing = {
        split: _list_classes(path, folder, skipped)
        for split, folder in (splits or {"": ""}).items()
    }
    if not any(names for split in listing.values() for names in split.values()):
        raise ValueError(_without_images(path, skipped))
    made = None
    recorded = split_file is not None and os.path.exists(split_file)
    if recorded and splits:
        raise ValueError(
            "`split_file` must not exist for a folder that has splits; "
            f"{path} has {', '.join(splits)}, and {os.fspath(split_file)} "
            "exists."
        )
    if not splits:
        made = _recorded(split_file, path, listing[""]) if recorded else None
        made = made or MadeSplit.of(listing[""])
        listing = _apply(made, listing[""])
    labels = sorted({label for split in listing.values() for label in split})
    return ImageFolder(
        path,
        labels,
        {split: _images(classes, labels) for split, classes in listing.items()},
        sorted(skipped),
        made,
    )


def _entries(path):
    """Sorted names of files, of folders, and of what can be neither."""
    files, folders, others = [], [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name.lower() in _IGNORED:
                continue
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            if shown != name:  # not UTF-8
                others.append(shown)
            elif entry.is_dir():
                folders.append(name)
            elif entry.is_file():
                files.append(name)
            else:  # such as a link to nothing
                others.append(name)
    return sorted(files), sorted(folders), sorted(others)


def _split_folders(path):
    """Folder of each split by its name; none if there are classes only."""
    _, folders, _ = _entries(path)
    names = {folder: folder.lower() for folder in folders}
    known = [f for f in folders if names[f] in ("train", *VAL_SPLITS)]
    inside = [_entries(os.path.join(path, folder)) for folder in known]
    if not any(classes for _, classes, _ in inside):
        images = [name for files, *_ in inside for name in files]
        if len(known) == len(folders) and any(map(_is_image, images)):
            raise ValueError(
                f"`dataset` must be a folder of {_LAYOUTS}; {path} has images "
                f"directly in {', '.join(known)}."
            )
        return {}  # or classes that have these names
    splits = {names[f] if f in known else f: f for f in folders}
    if len(splits) < len(folders):
        raise ValueError(
            "`dataset` must have one folder for each split; "
            f"{path} has {', '.join(folders)}."
        )
    return splits


def _list_classes(path, split, skipped):
    """Relative paths of the images of each class of a split."""
    prefix = f"{split}/" if split else ""
    files, folders, others = _entries(os.path.join(path, split))
    skipped += [prefix + name for name in files + others]
    classes = {}
    for label in folders:
        place = f"{prefix}{label}/"
        files, deeper, others = _entries(os.path.join(path, place))
        classes[label] = [place + name for name in files if _is_image(name)]
        others += [name for name in files if not _is_image(name)]
        others += [f"{name}/" for name in deeper]
        skipped += [place + name for name in others]
    return classes


def _is_image(name):
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _without_images(path, skipped):
    """What is wrong with a folder in which no image was found."""
    start = f"`dataset` must be a folder of {_LAYOUTS}; {path} has "
    direct = [n for n in skipped if "/" not in n and _is_image(n)]
    deeper = [n for n in skipped if n.endswith("/")]
    if direct:
        return f"{start}images directly in it, such as {direct[0]}."
    if deeper:
        return f"{start}no image there; {deeper[0]} is nested too deep."
    if skipped:
        return (
            f"{start}no image there that ends in {', '.join(IMAGE_SUFFIXES)}, "
            f"only others, such as {skipped[0]}."
        )
    return f"{start}no image."


def _hash_of_name(name):
    """A number of its own for each name, and the name if two had the same.

    macOS spells accents in another way than other systems.
    """
    same = unicodedata.normalize("NFC", f"{SPLIT_SEED}/{name}")
    return hashlib.blake2b(same.encode(), digest_size=8).digest(), name


def _recorded(split_file, path, classes):
    """The split in a file, if all of its images are still there."""
    made = MadeSplit.read(split_file)
    present = {name for names in classes.values() for name in names}
    gone = [name for name in made.validation if name not in present]
    if gone:
        more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
        raise ValueError(
            f"`dataset` must have the validation images recorded in "
            f"{os.fspath(split_file)}; {path} no longer has "
            f"{', '.join(gone[:5])}{more}."
        )
    return made


def _apply(made, classes):
    """Images of each class, in train and in validation."""
    chosen = set(made.validation)
    return {
        split: {
            label: [n for n in names if (n in chosen) == (split != "train")]
            for label, names in classes.items()
        }
        for split in ("train", "validation")
    }


def _images(classes, labels):
    """A split's `Images`."""
    names = [classes.get(label, []) for label in labels]
    counts = [len(same) for same in names]
    return Images(
        np.array([name.encode() for same in names for name in same], "S"),
        np.repeat(np.arange(len(labels), dtype="int64"), counts),
    )
