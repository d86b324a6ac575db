"""Fashion-MNIST without a network: Debian's package, as TFDS expects it.

TensorFlow Datasets builds `fashion_mnist` from four files that it knows by
hash. Debian's `dataset-fashion-mnist` has the same compressed data, but its
gzip headers have lost the files' names and times; they are put back here.
"""

import gzip
import os
import pathlib
import struct
import subprocess
import tempfile

import numpy as np

PACKAGE = "dataset-fashion-mnist"
# The time in each file's header, in seconds since 1970.
_TIMES = {
    "train-images-idx3-ubyte.gz": 1504176606,
    "train-labels-idx1-ubyte.gz": 1504176606,
    "t10k-images-idx3-ubyte.gz": 1504176627,
    "t10k-labels-idx1-ubyte.gz": 1504176627,
}
_PLAIN, _NAMED = (
    b"\x1f\x8b\x08\x00",
    b"\x1f\x8b\x08\x08",
)  # gzip, deflate, flags


def prepare(
    source: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
) -> pathlib.Path:
    """Prepare `fashion_mnist` for TFDS, unless that is done.

    TFDS checks the hashes of all four files.

    Args:
        source: Folder with the four `.gz` files, somewhere below it. Defaults
            to `None`: `apt-get` downloads Debian's package; nothing is
            installed.
        data_dir: Where TFDS keeps its data sets. Defaults to `None`, TFDS'
            own default.

    Returns:
        The prepared data set's folder.

    Raises:
        FileNotFoundError: if a file, or `apt-get`, is missing.
        ValueError: if a file is not a gzip file.

    Example:

    >>> prepare()  # or `make fashion`
    """
    from keras_resnext.files import staged
    from keras_resnext.training.datasets import open_dataset

    data = open_dataset("fashion_mnist", data_dir)
    ready = pathlib.Path(data.builder.data_path)
    if not ready.exists():
        manual = ready.parents[1] / "downloads" / "manual"
        with tempfile.TemporaryDirectory() as place:
            source = source or _download(pathlib.Path(place))
            found = {name: _find(pathlib.Path(source), name) for name in _TIMES}
            for name, path in found.items():
                with staged(manual / name, overwrite=True) as new:
                    new.write_bytes(restore(path.read_bytes(), name))
        data.prepare()
    return ready


def restore(content: bytes, name: str) -> bytes:
    """The published file, byte by byte, from one with another gzip header.

    Args:
        content: A gzip file with nothing in its header, or with a name.
        name: The published file's name, which ends in `.gz`.

    Returns:
        The same compressed data behind the published header.

    Raises:
        ValueError: if `content` does not begin like this.

    Example:

    >>> restore(path.read_bytes(), "t10k-labels-idx1-ubyte.gz")[:4]
    b'\\x1f\\x8b\\x08\\x08'
    """
    if content[:4] == _PLAIN:
        data = content[10:]
    elif content[:4] == _NAMED and b"\0" in content[10:]:
        data = content[content.index(b"\0", 10) + 1 :]
    else:
        raise ValueError(
            f"`content` of {name} must be a gzip file with an empty header or "
            f"a name in it; it begins with {content[:4]!r}."
        )
    time = struct.pack("<I", _TIMES[name])
    inner = name.removesuffix(".gz").encode()
    return _NAMED + time + b"\x00\x03" + inner + b"\0" + data


def read(source: str | os.PathLike) -> tuple[tuple, tuple]:
    """Training and test images without TFDS, in the files' order.

    Args:
        source: Folder with the four `.gz` files, somewhere below it.

    Returns:
        Two pairs of pixels, uint8 `(images, 28, 28)`, and labels, uint8
        `(images,)`.

    Raises:
        FileNotFoundError: if a file is missing.

    Example:

    >>> (pixels, labels), test = read("fashion-mnist/")
    """
    train_images, train_labels, test_images, test_labels = (
        _read_idx(_find(pathlib.Path(source), name)) for name in _TIMES
    )
    return (train_images, train_labels), (test_images, test_labels)


def _read_idx(path):
    """An array from a gzip file of MNIST's format."""
    content = gzip.decompress(path.read_bytes())
    # Two zeros, the type (8 is uint8), the number of dimensions, their sizes.
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, "uint8", offset=4 + 4 * rank).reshape(shape)


def _download(place):
    """Debian's package, unpacked."""
    # Root cannot hand the download to another user in a temporary folder.
    sandbox = ["-o", "APT::Sandbox::User=root"]
    try:
        subprocess.run(
            ["apt-get", "download", "-qq", *sandbox, PACKAGE],
            cwd=place,
            check=True,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "`source` must be a folder with Fashion-MNIST's four .gz files "
            "where there is no apt-get."
        ) from error
    except subprocess.CalledProcessError as error:
        raise FileNotFoundError(
            f"apt-get could not download {PACKAGE}; its message is above. Run "
            "`apt-get update`, or give a folder with the four .gz files as "
            "`source` (--source)."
        ) from error
    (package,) = place.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, place / "files"], check=True)
    return place / "files"


def _find(folder, name):
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        raise FileNotFoundError(
            f"`source` must have the file {name}; {folder} does not have it."
        )
    return path
