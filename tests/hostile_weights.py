"""Weight files that a stranger could send: small, and each with one trap.

`TRAPS` has a writer for each, from a model and a folder to the path. What is
beside the file, such as the secret that it names, is in the same folder.
"""

import functools
import json
import os
import pathlib
import re
import socket
import struct
import tempfile
import warnings
import zipfile
import zlib

import h5py
import keras
import numpy as np

from keras_resnext.names import join_paths
from keras_resnext.weights import convert

GB = 1 << 30
# What is unpacked unless it is refused: more than a refusal may take.
UNPACKED = GB // 4
# The classifier's kernel, which the traps replace, in each format.
LEGACY, GROUP, TENSOR = "predictions", "layers/dense/vars", "fc.weight"
HUGE = (14 * GB // 40, 10)  # 14 GB of float32

TRAPS = {}
# How names of those begin that take a second to write.
COSTLY = (
    *("long_", "lying_", "header", "gzip_bomb", "huge_chunk", "inflating"),
    "deflated",
)


def trap(name):
    """Enter a writer of a file of that name."""

    def enter(write):
        def written(model, folder):
            path = pathlib.Path(folder, name)
            write(model, path)
            return path

        TRAPS[name] = written
        return write

    return enter


@functools.cache
def deflated_zeros():
    """A zlib stream of zeros."""
    stream, zeros = zlib.compressobj(1), bytes(1 << 24)
    parts = [stream.compress(zeros) for _ in range(UNPACKED >> 24)]
    return b"".join([*parts, stream.flush()])


@functools.cache
def _saved(model, ending):
    """What Keras writes, kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"w{ending}")
        (model.save if ending == ".keras" else model.save_weights)(path)
        return path.read_bytes()


# --- HDF5 -------------------------------------------------------------------


def save_legacy_h5(model, path):
    """A valid file in Keras 2's layout."""
    layers = [x for x in model.layers if x.weights]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [x.name.encode() for x in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [str(i) for i in range(len(layer.weights))]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, layer.get_weights(), strict=True):
                group[name] = array


def _beside(group, name):
    return str(pathlib.Path(group.file.filename).with_name(name))


def _secret(group, shape):
    """Another file of this machine's, which could pass for weights."""
    path = _beside(group, "secret.h5")
    with h5py.File(path, "w") as file:
        file["0"] = np.ones(shape, "float32")
        return path, file["0"].id.get_offset()


def external_storage(group, shape):
    path, offset = _secret(group, shape)
    place = [(path, offset, 4 * shape[0] * shape[1])]
    group.create_dataset("0", shape, "float32", external=place)


def external_link(group, shape):
    group["0"] = h5py.ExternalLink(_secret(group, shape)[0], "/0")


def link_to_fifo(group, shape):
    os.mkfifo(_beside(group, "fifo.h5"))
    group["0"] = h5py.ExternalLink(_beside(group, "fifo.h5"), "/0")


def soft_link(group, shape):
    group.file["elsewhere"] = np.ones(shape, "float32")
    group["0"] = h5py.SoftLink("/elsewhere")


def hard_link(group, shape):
    group.file["elsewhere"] = np.ones(shape, "float32")
    group["0"] = group.file["elsewhere"]


def virtual(group, shape):
    layout = h5py.VirtualLayout(shape, "float32")
    layout[:] = h5py.VirtualSource(_secret(group, shape)[0], "0", shape)
    group.create_virtual_dataset("0", layout)


def fill_value(group, shape):
    group.create_dataset("0", HUGE, "float32", chunks=(1 << 16, 10))


def never_written(group, shape):
    group.create_dataset("0", HUGE, "float32")


def _one_chunk(group, shape, chunk):
    """A data set with one chunk, which HDF5 inflates whatever its size."""
    data = group.create_dataset(
        *("0", shape, "float32"),
        chunks=chunk,
        maxshape=(None, None),
        compression="gzip",
    )
    data.id.write_direct_chunk((0, 0), deflated_zeros())


def gzip_bomb(group, shape):
    _one_chunk(group, HUGE, (UNPACKED // 40, 10))


def huge_chunk(group, shape):
    _one_chunk(group, shape, (UNPACKED // 40, 10))


def inflating_chunk(group, shape):
    _one_chunk(group, shape, shape)


def complex_numbers(group, shape):
    group["0"] = np.full(shape, 1 + 1j, "complex64")


def texts(group, shape):
    group["0"] = np.full(shape, "x", "S4")


H5 = (
    *(external_storage, external_link, link_to_fifo, soft_link, hard_link),
    *(virtual, fill_value, never_written, gzip_bomb, huge_chunk),
    *(inflating_chunk, complex_numbers, texts),
)


def _save_h5(model, path, replace):
    legacy = not path.name.endswith(".weights.h5")
    if legacy:
        save_legacy_h5(model, path)
    else:
        path.write_bytes(_saved(model, ".weights.h5"))
    with h5py.File(path, "a") as file:
        group = file[LEGACY if legacy else GROUP]
        shape = group["0"].shape
        del group["0"]
        replace(group, shape)


for _replace in H5:
    for _ending in (".h5", ".weights.h5"):
        trap(_replace.__name__ + _ending)(
            functools.partial(_save_h5, replace=_replace)
        )


@trap("shared_texts.h5")
def _(model, path):
    """Four thousand names that are one text of a megabyte."""
    with h5py.File(path, "w") as file:
        names = ["x" * (1 << 20)] + ["y"] * 3999
        dtype = h5py.string_dtype()
        file.attrs.create("layer_names", names, dtype=dtype)
    content = path.read_bytes()
    # Length, address and number: of all what the first one has.
    start = re.search(rb"\0\0\x10\0.{8}\x01\0\0\0", content, re.DOTALL).start()
    one, end = content[start : start + 16], start + 16 * len(names)
    path.write_bytes(content[:start] + one * len(names) + content[end:])


# --- torch ------------------------------------------------------------------


def tensors(model):
    """A model's weights as torch's tensors, by torchvision's names."""
    import torch

    weights = {x.name: x.get_weights() for x in model.layers if x.weights}
    arrays = convert.to_torch(join_paths(weights)).items()
    return {k: torch.from_numpy(np.ascontiguousarray(x)) for k, x in arrays}


class _Call:
    """Pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def _hostile_tensor(kind, shape):
    import torch

    if kind == "stride":
        return torch.zeros(1, dtype=torch.half).expand(UNPACKED // 40, 10)
    if kind == "complex":
        return torch.ones(shape, dtype=torch.complex64)
    if kind == "sparse":
        return torch.ones(shape).to_sparse()
    if kind == "quantised":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            ones = torch.ones(shape)
            return torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)
    if kind == "meta":
        return torch.zeros(shape, device="meta")
    if kind == "bytearray":
        return _Call(bytearray, (UNPACKED,))
    return _Call(os.mkdir, ("made-by-a-pickle",))


def _save_pth(model, path, kind, archive=True):
    import torch

    state = tensors(model)
    state[TENSOR] = _hostile_tensor(kind, state[TENSOR].shape)
    torch.save(state, path, _use_new_zipfile_serialization=archive)


for _kind in (
    *("stride", "complex", "sparse", "quantised", "meta", "bytearray"),
    "code",
):
    trap(f"{_kind}.pth")(functools.partial(_save_pth, kind=_kind))
for _kind in ("stride", "bytearray"):
    trap(f"old_{_kind}.pth")(
        functools.partial(_save_pth, kind=_kind, archive=False)
    )


def rezip(path, change, **options):
    """Write an archive again; `change` gives each member's new content."""
    with zipfile.ZipFile(path) as archive:
        members = [(x.filename, archive.read(x)) for x in archive.infolist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members:
            if (content := change(name, content)) is not None:
                archive.writestr(name, content)


def _add_deflated(path, name, size):
    """A member of blanks that takes a thousandth of its size."""
    member = zipfile.ZipInfo(name)
    member.compress_type = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(path, "a") as archive,
        archive.open(member, "w") as file,
    ):
        for _ in range(size >> 20):
            file.write(b" " * (1 << 20))


@trap("deflated.pth")
def _(model, path):
    import torch

    torch.save({TENSOR: torch.zeros(UNPACKED // 4)}, path)
    with zipfile.ZipFile(path) as archive:
        (name,) = (x for x in archive.namelist() if x.endswith("data/0"))
    rezip(path, lambda n, content: None if n == name else content)
    _add_deflated(path, name, UNPACKED)


@trap("many.pth")
def _(model, path):
    """As many tensors as members, of one size: any may be any."""
    import torch

    torch.save({str(i): torch.zeros(16) for i in range(2000)}, path)


# --- .keras -----------------------------------------------------------------


def _layer(config, kind):
    return next(
        x for x in config["config"]["layers"] if x["class_name"] == kind
    )


def wide(config):
    _layer(config, "Dense")["config"]["units"] = 10**9
    return config


def deep(config):
    """Twenty models, each of which calls the one inside it twice."""
    x = keras.Input((None,))
    model = keras.Model(x, keras.layers.ReLU()(x))
    for _ in range(20):
        x = keras.Input((None,))
        model = keras.Model(x, model(model(x)))
    config = keras.saving.serialize_keras_object(model)
    # Another shape than theirs: now Keras calls all of them again.
    config["config"]["layers"][0]["config"]["batch_shape"] = (None, 1)
    return config


def eager(config):
    """An operation on a number, which is computed while the file loads."""
    config["config"]["layers"].append(
        {
            "module": "keras.src.ops.numpy",
            "class_name": "Tile",
            "config": {"repeats": UNPACKED // 4},
            "registered_name": "Tile",
            "name": "tile",
            "inbound_nodes": [{"args": [[1.0]], "kwargs": {}}],
        }
    )
    return config


def foreign(config):
    _layer(config, "Dense").update(
        module="theirs", class_name="Theirs", registered_name="Their>Theirs"
    )
    return config


def no_model(config):
    return {**_layer(config, "Dense"), "build_config": None}


def repeated(config):
    """Layers of one name, which Keras tries to connect again and again.

    Thousands of them take it 10 s.
    """
    config["config"]["layers"].append(config["config"]["layers"][-1])
    return config


CONFIGS = (wide, deep, eager, foreign, no_model, repeated)


def change_config(path, change):
    """Replace a `.keras` file's description by what `change` makes of it."""
    rezip(
        path,
        lambda name, content: (
            json.dumps(change(json.loads(content)))
            if name == "config.json"
            else content
        ),
    )


def _save_keras(model, path, change):
    path.write_bytes(_saved(model, ".keras"))
    change(path)


for _change in CONFIGS:
    trap(f"{_change.__name__}.keras")(
        functools.partial(
            _save_keras, change=functools.partial(change_config, change=_change)
        )
    )


def _without(path, name):
    rezip(path, lambda n, content: None if n == name else content)


def long_config(path):
    _without(path, "config.json")
    _add_deflated(path, "config.json", UNPACKED)


def lying_config(path):
    """It declares one byte, and readers unpack all."""
    _without(path, "config.json")
    _add_deflated(path, "config.json", UNPACKED)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<I", content[at + 20] + 5000)
    path.write_bytes(content)


def long_metadata(path):
    _add_deflated(path, "keras_resnext.json", UNPACKED)


def long_asset(path):
    _add_deflated(path, "assets/x", UNPACKED)


def another_member(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("setup.py", "")


def two_configs(path):
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        archive.writestr("config.json", "{}")


def linked_member(path):
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("assets/x")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")


def upward_member(path):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("assets/../../x", "")


def encrypted(path):
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    content[at + 8] |= 1
    path.write_bytes(content)


def packed_with_bzip2(path):
    rezip(path, lambda name, content: content, compression=zipfile.ZIP_BZIP2)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-5000])


def changed_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def trapped_weights(path):
    def change(name, content):
        if name != "model.weights.h5":
            return content
        h5 = path.with_suffix(".h5")
        h5.write_bytes(content)
        with h5py.File(h5, "a") as file:
            shape = file[GROUP]["0"].shape
            del file[GROUP]["0"]
            external_link(file[GROUP], shape)
        return h5.read_bytes()

    rezip(path, change)


ARCHIVES = (
    *(long_config, lying_config, long_metadata, long_asset, another_member),
    *(two_configs, linked_member, upward_member, encrypted),
    *(packed_with_bzip2, cut_off, changed_byte, trapped_weights),
)
for _change in ARCHIVES:
    trap(f"{_change.__name__}.keras")(
        functools.partial(_save_keras, change=_change)
    )


# --- safetensors, and what is no file ---------------------------------------


@trap("header.safetensors")
def _(model, path):
    """Thirty megabytes of names, which safetensors' own limit permits."""
    entry = '"%s":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = ",".join(entry % f"{i:x}" for i in range(30_000_000 // 60))
    path.write_bytes(
        struct.pack("<Q", len(names) + 2) + b"{%b}" % names.encode()
    )


@trap("overlapping.safetensors")
def _(model, path):
    entry = {"dtype": "F32", "shape": [1 << 20], "data_offsets": [0, 4 << 20]}
    header = json.dumps({f"x{i}": entry for i in range(1000)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 << 20))


@trap("complex.safetensors")
def _(model, path):
    from safetensors.torch import save_file

    state = tensors(model)
    state[TENSOR] = _hostile_tensor("complex", state[TENSOR].shape)
    save_file(state, path)


@trap("hole.safetensors")
def _(model, path):
    """A classifier of 14 GB, in an honest file that is mostly a hole."""
    from safetensors.torch import save_file

    state = tensors(model)
    del state[TENSOR]
    save_file(state, path)
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    header[TENSOR] = {
        "dtype": "F32",
        "shape": HUGE[::-1],
        "data_offsets": [len(body), len(body) + 4 * HUGE[0] * 10],
    }
    header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    os.truncate(path, path.stat().st_size + 4 * HUGE[0] * 10)


def _fifo(model, path):
    os.mkfifo(path)


def _device(model, path):
    path.symlink_to("/dev/zero")


def _socket(model, path):
    # Unix' limit on names is short: the file is made where it is.
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


for _kind in (_fifo, _device, _socket):
    for _ending in (".safetensors", ".pth", ".keras", ".h5", ".weights.h5"):
        trap(f"{_kind.__name__[1:]}{_ending}")(_kind)
