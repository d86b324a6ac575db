"""Read weight files as arrays, under a grouped model's layer names."""

import importlib.util
import os
import pathlib
from collections.abc import Callable

import numpy as np

from keras_resnext.extras import first_line
from keras_resnext.extras import require
from keras_resnext.names import join_paths
from keras_resnext.weights import convert


def reader_of(path: str | os.PathLike[str]) -> Callable | None:
    """The reader of a file, chosen by its name; `None` if there is none.

    Args:
        path: A file, or the folder of a training run.

    Returns:
        A function from the path to a dict of layer name to arrays, as of a
        grouped model. It runs no code from the file.

    Example:

    >>> reader_of("model.safetensors").__name__
    'read_safetensors'
    """
    if pathlib.Path(path).is_dir():
        return read_workdir
    name = pathlib.Path(path).name
    for ending, reader in READERS.items():
        if name.endswith(ending):
            return reader
    return None


def read(path: str | os.PathLike[str]) -> dict[str, list[np.ndarray]]:
    """Read a weight file of any format.

    Args:
        path: A file, or the folder of a training run.

    Returns:
        Layer name to arrays, as of a grouped model.

    Raises:
        ValueError: if the file is damaged or of another format than its name
            says.
        ModuleNotFoundError: if its reader needs a module that is missing.

    Example:

    >>> sorted(read("model.safetensors"))[0]
    'conv1_bn'
    """
    try:
        return reader_of(path)(path)
    except ImportError:
        raise
    # On damaged files, libraries raise errors of any type.
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(
            f"{path} does not contain ResNeXt weights: {reason}"
        ) from error


def read_safetensors(path):
    require("safetensors", extra="weights", purpose="Reading .safetensors")
    import safetensors
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file: {error}"
        ) from error
    return convert.from_torch(tensors)


def require_torch(what: object) -> None:
    """Check that torch, which reads `.pth` files, is installed.

    Args:
        what: What will be read.

    Raises:
        ModuleNotFoundError: if torch is not installed.

    Example:

    >>> require_torch("resnext50_32x4d.imagenet1k_v1")
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError(
            f"{what} is a .pth file, which only torch can read; install torch, "
            "or choose weights in another format (`list_weights`)."
        )


def read_pth(path):
    require_torch(path)
    import pickle

    import torch

    try:
        # Tensors only: a pickle could hold code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        # torch's own message explains how to run the code in the file.
        raise ValueError(
            f"{path} is not a plain tensor checkpoint; it was not unpickled."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not state or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{path} has no named tensors.")
    # DataParallel prefixes all names.
    return convert.from_torch(
        {
            name.removeprefix("module."): tensor.float().numpy()
            for name, tensor in state.items()
        }
    )


def read_legacy_h5(path):
    """Keras 2's layout: one group per layer, names in attributes."""
    import h5py

    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file: {error}") from error
    with file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise ValueError(
                f"{path} has no layer names, as .h5 files of Keras 2 have; "
                "files of Keras 3 end in .weights.h5 or .keras."
            )
        weights = {}
        for layer in _texts(root.attrs["layer_names"]):
            names = _texts(root[layer].attrs["weight_names"])
            if names:
                weights[layer] = [_array(root[layer], name) for name in names]
    kernel = weights.get("conv2_block1_2_conv", [None])[0]
    if kernel is not None and kernel.shape[2] > kernel.shape[3]:
        return convert.from_keras_applications(weights)
    return join_paths(weights)


def _array(group, name):
    values = np.asarray(group[name][()])
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of {values.dtype}, not of numbers")
    return values


def read_weights_h5(path):
    """Keras 3's layout: groups by class and order, each with its name."""
    import h5py

    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"{path} is not an HDF5 file: {error}") from error
    with file:
        weights = {}
        for group in file["layers"].values():
            values = group.get("vars", {})
            if "name" in getattr(values, "attrs", ()) and len(values):
                names = map(str, range(len(values)))
                arrays = [_array(values, name) for name in names]
                weights[values.attrs["name"]] = arrays
    return join_paths(weights)


def read_keras(path):
    import keras

    if not os.path.isfile(path):
        raise ValueError(
            f"{path} does not exist; training writes it at its end."
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        reason = first_line(error)
        if "File not found" in reason:  # Keras says so of damaged files
            reason = "it is not a complete archive"
        raise ValueError(f"{path} is not a .keras file: {reason}") from error
    return join_paths(
        {x.name: x.get_weights() for x in model.layers if x.weights}
    )


def read_workdir(path):
    return read_keras(pathlib.Path(path, "model.keras"))


def _texts(values):
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


READERS = {
    ".safetensors": read_safetensors,
    ".pth": read_pth,
    ".keras": read_keras,
    ".weights.h5": read_weights_h5,  # before the other .h5
    ".h5": read_legacy_h5,
}
