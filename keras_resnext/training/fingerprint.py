"""What a run's data set was, to notice that it has changed."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Collection
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from keras_resnext.extras import first_line
from keras_resnext.files import staged
from keras_resnext.training.folders import ImageFolder

_SHOWN = 3  # changes in an error
_THREADS = 8  # network file systems take a while to answer for each file


class Part(NamedTuple):
    """A class in a split of a folder, or a split of a TFDS data set.

    Args:
        images: Number of images.
        digest: Hash of their names and sizes; empty for TFDS.
    """

    images: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The parts of a data set that training depends on.

    Files that were touched or copied, or are in another place, are the same;
    those with another name or size are not.

    Args:
        version: Name, configuration and version of a TFDS data set; empty for
            a folder.
        parts: The `Part` of each split and class, as `"train/cat"`.

    Example:

    >>> open_dataset("photos").fingerprint.parts["train/cat"].images
    80
    """

    version: str
    parts: dict[str, Part]

    @classmethod
    def of_folder(
        cls, folder: ImageFolder, splits: Collection[str]
    ) -> "Fingerprint":
        """The fingerprint of a folder; each image's size is looked up.

        Args:
            folder: An `ImageFolder`.
            splits: Names of the splits that matter.

        Returns:
            A `Fingerprint`.

        Raises:
            OSError: if an image is gone since the folder was listed.
        """
        places = {
            f"{split}/{label}": names
            for split in splits
            for label, names in _names_by_class(folder, split)
        }
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            digests = pool.map(
                lambda names: _digest(folder.path, names), places.values()
            )
            parts = {
                place: Part(len(names), digest)
                for (place, names), digest in zip(
                    places.items(), digests, strict=True
                )
            }
        return cls("", parts)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Fingerprint":
        """Read what `write` wrote.

        Args:
            path: The file.

        Returns:
            A `Fingerprint`.

        Raises:
            ValueError: if the file holds something else.
        """
        try:
            found = json.loads(pathlib.Path(path).read_bytes())
            parts = {
                place: Part(int(images), str(digest))
                for place, (images, digest) in found["parts"].items()
            }
            return cls(str(found["version"]), parts)
        # What another file may lead to.
        except (
            *(AttributeError, KeyError, OverflowError, RecursionError),
            *(TypeError, ValueError),
        ) as error:
            raise ValueError(
                f"{os.fspath(path)} must be the fingerprint of a data set; "
                f"it is not ({first_line(error)})."
            ) from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the fingerprint as JSON, replacing the file if it exists.

        Args:
            path: The file.
        """
        with staged(path, overwrite=True) as new:
            new.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    def difference(self, now: "Fingerprint") -> str:
        """What is different in a later fingerprint.

        Args:
            now: The later one.

        Returns:
            Text for an error message; empty if they are the same.

        Example:

        >>> before.difference(open_dataset("photos").fingerprint)
        'train/cat has 160 images instead of 80'
        """
        if self.version != now.version:
            return f"it is {now.version} instead of {self.version}"
        lines = []
        for place in {**self.parts, **now.parts}:
            before = self.parts.get(place, Part(0, ""))
            after = now.parts.get(place, Part(0, ""))
            if before.images != after.images:
                lines.append(
                    f"{place} has {after.images} images instead of "
                    f"{before.images}"
                )
            elif before != after:
                lines.append(f"{place} has files of other names or sizes")
        more = len(lines) - _SHOWN
        shown = ", ".join(lines[:_SHOWN])
        return f"{shown}, and {more} more changes" if more > 0 else shown

    @property
    def number(self) -> int:
        """A hash that workers can compare, from 0 to 2**31 - 1."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
        return int.from_bytes(digest) >> 1


def _names_by_class(
    folder: ImageFolder, split: str
) -> Iterator[tuple[str, list[bytes]]]:
    """The images of each class of a split, by its name."""
    names, labels = folder.splits[split]
    ends = np.searchsorted(labels, np.arange(len(folder.labels)), "right")
    start = 0
    for label, end in zip(folder.labels, ends, strict=True):
        yield label, names[start:end].tolist()
        start = end


def _digest(folder, names):
    """A hash of names and sizes of files, the same on every machine."""
    files = []
    for name in names:
        size = os.stat(os.path.join(os.fsencode(folder), name)).st_size
        # macOS spells accents in another way than other systems.
        same = unicodedata.normalize("NFC", name.decode()).encode()
        files.append(b"%b\0%d\0" % (same, size))
    return hashlib.blake2b(b"".join(sorted(files)), digest_size=8).hexdigest()
