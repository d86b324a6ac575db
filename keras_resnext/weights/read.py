"""Open weight files, under a grouped model's layer names."""

import contextlib
import importlib.util
import os
import pathlib
import typing
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from keras_resnext.extras import first_line
from keras_resnext.extras import require
from keras_resnext.names import join_paths
from keras_resnext.names import join_shapes
from keras_resnext.names import whole_name
from keras_resnext.weights import convert
from keras_resnext.weights import gate

Shapes = dict[str, list[tuple[int, ...]]]


class StoredWeights(typing.NamedTuple):
    """Weights in an open file, of which no array has been read yet.

    Args:
        shapes: Layer name to shapes, as of a grouped model.
        read: A function from the names of some of these layers to a dict of
            layer name to arrays.
    """

    shapes: Shapes
    read: Callable[[Collection[str]], dict[str, list[np.ndarray]]]


def reader_of(path: str | os.PathLike[str]) -> Callable | None:
    """The reader of a file, chosen by its name; `None` if there is none.

    Args:
        path: A file, or the folder of a training run.

    Returns:
        A function from the path to a context that yields `StoredWeights`. It
        runs no code from the file.

    Example:

    >>> reader_of("model.safetensors").__name__
    'open_safetensors'
    """
    if pathlib.Path(path).is_dir():
        return open_workdir
    name = pathlib.Path(path).name
    for ending, reader in READERS.items():
        if name.endswith(ending):
            return reader
    return None


@contextlib.contextmanager
def open_weights(path: str | os.PathLike[str]) -> Iterator[StoredWeights]:
    """Open a weight file of any format, once the gate has let it pass.

    Args:
        path: A file, or the folder of a training run.

    Yields:
        `StoredWeights`, to be read while the context lasts.

    Raises:
        ValueError: if the file is damaged, of another format than its name
            says, no regular file, or refused for what it declares, see
            `keras_resnext.weights.gate`.
        ModuleNotFoundError: if its reader needs a module that is missing.
        PermissionError: if the file may not be read.
        MemoryError: if there is too little memory to read it.

    Example:

    >>> with open_weights("model.safetensors") as stored:
    ...     stored.shapes["conv1_conv"]
    [(7, 7, 3, 64)]
    """
    try:
        with reader_of(path)(path) as stored:
            yield stored
    except (ImportError, PermissionError):
        raise
    except MemoryError as error:
        raise MemoryError(f"There is too little memory for {path}.") from error
    # On damaged files, libraries raise errors of any type.
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        known = isinstance(error, ValueError)
        reason = first_line(error) if known else repr(error)
        raise ValueError(
            f"{path} does not contain ResNeXt weights: {reason}"
        ) from error


@contextlib.contextmanager
def open_safetensors(path):
    require("safetensors", extra="weights", purpose="Reading .safetensors")
    import safetensors

    gate.check_regular(path)
    gate.check_safetensors_header(path)
    try:
        file = safetensors.safe_open(path, "numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file: {first_line(error)}"
        ) from error
    with file:
        shapes = {}
        for name in file.keys():  # noqa: SIM118, it is no dict
            tensor = file.get_slice(name)
            gate.check_real(name, tensor.get_dtype())
            shapes[name] = tensor.get_shape()
        yield _of_torch(shapes, file.get_tensor)


def _of_torch(shapes, read):
    """Stored weights from shapes by torch's names, and what reads a tensor."""
    layers = convert.torch_layers(shapes)
    return StoredWeights(
        {
            layer: [convert.keras_shape(shapes[name]) for name in names]
            for layer, names in layers.items()
        },
        lambda wanted: convert.from_torch(
            {name: read(name) for layer in wanted for name in layers[layer]}
        ),
    )


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


@contextlib.contextmanager
def open_pth(path):
    gate.check_regular(path)
    require_torch(path)
    try:
        places = gate.check_pth(path)
        import torch

        # Tensors only: a pickle could hold code.
        is_archive = places is not None
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=is_archive
        )
    except (ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # of any type on damaged files
        # torch's own message explains how to run the code in the file.
        known = isinstance(error, ValueError)
        reason = f" ({first_line(error)})" if known else ""
        raise ValueError(
            f"{path} is not a plain tensor checkpoint; it was not unpickled"
            f"{reason}."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not state or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{path} has no named tensors.")
    for name, tensor in state.items():
        gate.check_tensor(name, tensor)
    if is_archive:
        gate.check_mapped(state.values(), places)
    # DataParallel prefixes all names.
    state = {k.removeprefix("module."): x.detach() for k, x in state.items()}
    yield _of_torch(
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        lambda name: state[name].float().numpy(),
    )


@contextlib.contextmanager
def open_legacy_h5(path):
    """Keras 2's layout: one group per layer, names in attributes."""
    with _open_h5(path) as file:
        longest = gate.longest_text(path)
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise ValueError(
                f"{path} has no layer names, as .h5 files of Keras 2 have; "
                "files of Keras 3 end in .weights.h5 or .keras."
            )
        layers = {}
        for layer in gate.text_attributes(root, "layer_names", longest):
            group = root[layer]
            names = gate.text_attributes(group, "weight_names", longest)
            if names:
                layers[layer] = [group[name] for name in names]
        stored = _of_layers(layers)
        kernel = stored.shapes.get("conv2_block1_2_conv", [()])[0]
        if len(kernel) == 4 and kernel[2] > kernel[3]:
            stored = _of_keras_applications(layers)
        yield stored


@contextlib.contextmanager
def _open_h5(path):
    import h5py

    gate.check_regular(path)
    try:
        file = h5py.File(path, "r")
    except PermissionError:
        raise
    except OSError as error:
        raise ValueError(
            f"{path} is not an HDF5 file: {first_line(error)}"
        ) from error
    with file:
        gate.check_h5(file, os.path.getsize(path))
        yield file


def _of_layers(layers):
    """Stored weights from data sets by layer, of a model in any form."""
    return StoredWeights(
        join_shapes({k: [x.shape for x in v] for k, v in layers.items()}),
        lambda wanted: join_paths(
            {
                layer: [_array(x) for x in values]
                for layer, values in layers.items()
                if whole_name(layer) in wanted
            }
        ),
    )


def _of_keras_applications(layers):
    """Stored weights from data sets by keras-applications' layers."""

    def read(wanted):
        arrays = {
            layer: [_array(x) for x in values]
            for layer, values in layers.items()
            if convert.from_keras_applications_shapes({layer: []}).keys()
            & set(wanted)
        }
        return convert.from_keras_applications(arrays)

    shapes = {k: [x.shape for x in v] for k, v in layers.items()}
    return StoredWeights(convert.from_keras_applications_shapes(shapes), read)


def _array(dataset):
    """The values of a data set that the gate let pass."""
    values = dataset[()]
    if values.dtype.kind == "V":  # as Keras stores them
        return values.view(ml_dtypes.bfloat16)
    return np.asarray(values)


@contextlib.contextmanager
def open_weights_h5(path):
    """Keras 3's layout: groups by class and order, each with its name."""
    with _open_h5(path) as file:
        yield _of_keras(file)


def _of_keras(file):
    """Stored weights from an open file in Keras 3's layout."""
    layers = {}
    for group in file["layers"].values():
        values = group.get("vars", {})
        if len(values) and "name" in values.attrs:
            name = gate.text_attribute(values, "name")
            layers[name] = [values[str(i)] for i in range(len(values))]
    return _of_layers(layers)


@contextlib.contextmanager
def open_keras(path):
    """The weights in a `.keras` file; the model is not built."""
    if not os.path.exists(path):
        raise ValueError(
            f"{path} does not exist; training writes it at its end."
        )
    gate.check_regular(path)
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(gate.open_keras(path))
            stored = _of_keras(archive.weights)
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # of any type on damaged files
            raise ValueError(
                f"{path} is not a .keras file: {first_line(error)}"
            ) from error
        yield stored


def open_workdir(path):
    return open_keras(pathlib.Path(path, "model.keras"))


READERS = {
    ".safetensors": open_safetensors,
    ".pth": open_pth,
    ".keras": open_keras,
    ".weights.h5": open_weights_h5,  # before the other .h5
    ".h5": open_legacy_h5,
}
