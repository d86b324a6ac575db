"""The gate for weight files: what they declare, judged before it is read.

A file from a stranger may name other files, wait for ever, or declare arrays
that no memory holds. What is checked here are names, shapes, types, storage
and links. Arrays are not read, except where compressed data or an archive must
be unpacked to be checked, and then never beyond the declared size. Errors give
the reason, to which callers add the path.
"""

import contextlib
import copy
import io
import json
import math
import mmap
import os
import pickletools
import stat
import struct
import typing
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

from keras_resnext.private import unallocated_variables

if TYPE_CHECKING:
    import h5py
    import keras

CONFIG_MEMBER = "config.json"
METADATA_MEMBER = "keras_resnext.json"
WEIGHTS_MEMBER = "model.weights.h5"
_MEMBERS = (CONFIG_MEMBER, "metadata.json", METADATA_MEMBER, WEIGHTS_MEMBER)
_ASSETS = "assets/"  # of Keras' layers with vocabularies

MB = 1 << 20
# Arrays of noise do not shrink; those that are all zeros do, by any factor.
_MOST_INFLATION = 10
_SLACK = MB
# The widest network of the paper has 80 kB, with its optimizer 300 kB.
_MOST_PICKLE = 4 * MB
# Of torch before 1.6: its mark, its version, the machine, tensors, storages.
_PICKLES = 5
_MOST_HEADER = 8 * MB
# All paths of ResNeXt-101 (64x4d) as layers of their own are 20 MB.
_MOST_JSON = 32 * MB
# Of layers; Keras makes a few thousand calls a second. The same has 17,000.
_MOST_CALLS = 40_000
# Of a name, and of a list of names.
_MOST_LETTERS = 1000
_MOST_NAMES = 32 * MB
# Of a zip archive's local headers: what is before the lengths of the name and
# of the extra field, which the content follows.
_NAME_LENGTHS = 26
# safetensors' names of real numbers.
_REAL = {
    *("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64"),
    *("U8", "U16", "U32", "U64"),
}
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class Place(typing.NamedTuple):
    """Where bytes are in a file, or in memory.

    Args:
        start: Position of the first.
        size: How many.
    """

    start: int
    size: int


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what may never answer, or never end, once it is opened.

    Args:
        path: An existing path.

    Raises:
        ValueError: if it is no regular file, nor a link to one.
        OSError: if there is none.

    Example:

    >>> check_regular("model.safetensors")
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "none")
        raise ValueError(f"{path} must be a regular file; it is {kind}.")


def check_safetensors_header(path: str | os.PathLike[str]) -> None:
    """Refuse a header that takes much memory to read.

    What else it declares, safetensors compares with the file itself.

    Args:
        path: A regular file.

    Raises:
        ValueError: the reason.

    Example:

    >>> check_safetensors_header("model.safetensors")
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if _MOST_HEADER < size <= os.path.getsize(path):
        raise ValueError(f"its header must be at most {_MOST_HEADER // MB} MB")


def check_real(name: str, dtype: str) -> None:
    """Refuse a type of safetensors that is not of real numbers.

    Args:
        name: Name of the tensor.
        dtype: Its type, such as `"F32"`.

    Raises:
        ValueError: if it is another than integers and floats of 16 to 64 bits.

    Example:

    >>> check_real("fc.bias", "F32")
    """
    if dtype not in _REAL:
        raise ValueError(f"{name} is of {dtype}, not of real numbers")


def check_pth(path: str | os.PathLike[str]) -> set[Place] | None:
    """Refuse a file of torch's that would unpack to more than its size.

    Args:
        path: A regular file.

    Returns:
        The `Place` of each member, if it is an archive as torch writes since
        1.6; else `None`.

    Raises:
        ValueError: the reason.
        Exception: of any type, from damaged files.

    Example:

    >>> check_pth("resnext50_32x4d-7cdf4587.pth") is None
    True
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            file.seek(0)
            for _ in range(_PICKLES):
                _check_pickle(file)
            return None
    with zipfile.ZipFile(path) as archive:
        members = _checked_members(archive)
        for member in members.values():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"{member.filename} is compressed; torch compresses none"
                )
        for name, member in members.items():
            if name.endswith(".pkl"):
                if member.file_size > _MOST_PICKLE:
                    raise ValueError(f"{name} is {_in_mb(member.file_size)}")
                _check_pickle(io.BytesIO(_read_member(archive, member)))
        return {_place(archive.fp, member) for member in members.values()}


def _place(file, member):
    """Where a member that is not compressed is in a file."""
    file.seek(member.header_offset + _NAME_LENGTHS)
    lengths = struct.unpack("<HH", file.read(4))
    start = member.header_offset + _NAME_LENGTHS + 4 + sum(lengths)
    return Place(start, member.file_size)


def _check_pickle(file):
    """Refuse a pickle that is long, or allocates what a number in it says."""
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        if position - start > _MOST_PICKLE:
            raise ValueError(f"its pickle is above {_in_mb(_MOST_PICKLE)}")
        # torch permits no others that do.
        if opcode.name == "GLOBAL" and argument.endswith(" bytearray"):
            raise ValueError("its pickle makes a bytearray, no tensor")


def check_tensor(name: str, tensor: Any) -> None:
    """Refuse a tensor of torch's that is not an array of its own bytes.

    Args:
        name: Its name.
        tensor: A `torch.Tensor`.

    Raises:
        ValueError: if it is complex, quantised or sparse, is on no device, or
            has more values than are stored, as with a stride of 0.

    Example:

    >>> check_tensor("fc.bias", torch.zeros(10))
    """
    import torch

    real = not (tensor.is_complex() or tensor.is_quantized)
    if not real or tensor.dtype == torch.bool:
        raise ValueError(f"{name} is of {tensor.dtype}, not of real numbers")
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{name} is not an array ({tensor.layout})")
    bytes_declared = tensor.numel() * tensor.element_size()
    bytes_stored = tensor.untyped_storage().nbytes()
    if bytes_declared > bytes_stored:
        raise ValueError(
            f"{name} has {bytes_declared} bytes, of which {bytes_stored} are "
            "stored"
        )


def check_mapped(tensors: Iterable[Any], places: Collection[Place]) -> None:
    """Refuse tensors that are not in members of just their size.

    torch maps a file into memory, takes where a member begins from the archive
    and its size from the pickle, and would go on into the next.

    Args:
        tensors: Each a `torch.Tensor` of one file that is mapped.
        places: What `check_pth` returned for it.

    Raises:
        ValueError: if one of them is not.

    Example:

    >>> check_mapped(state.values(), places)
    """
    storages = [tensor.untyped_storage() for tensor in tensors]
    mapped = {Place(x.data_ptr(), x.nbytes()) for x in storages if x.nbytes()}
    first = min(mapped, default=None)
    # Where the file begins in memory, torch does not say: at a page.
    bases = [
        first.start - x.start
        for x in places
        if first
        and first.size == x.size
        and (first.start - x.start) % mmap.PAGESIZE == 0
    ]
    if first and not any(
        all(Place(x.start - base, x.size) in places for x in mapped)
        for base in bases
    ):
        raise ValueError("its tensors are not the members of the archive")


def check_h5(file: "h5py.File", size: int) -> int:
    """Refuse an HDF5 file that is more than arrays of numbers inside it.

    Args:
        file: The open file.
        size: Its size in bytes.

    Returns:
        How many values its arrays have.

    Raises:
        ValueError: if a link leads elsewhere or to what another leads to; if
            an array is virtual, is stored in another file, has values that
            are not real, or a filter that Keras does not know; if the arrays
            declare much more than is stored.

    Example:

    >>> check_h5(h5py.File("w.weights.h5"), os.path.getsize("w.weights.h5"))
    25097128
    """
    import h5py

    values = declared = stored = 0
    compressed = []
    groups, seen = [file["/"]], {_address(file["/"])}
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{where} is a {type(link).__name__}")
            item = group[name]
            if _address(item) in seen:
                raise ValueError(f"{where} has two names")
            seen.add(_address(item))
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                filters = _check_dataset(item)
                if h5py.h5z.FILTER_DEFLATE in filters:
                    compressed.append((item, filters))
                values += item.size
                declared += item.nbytes
                stored += item.id.get_storage_size()
            else:
                raise ValueError(f"{where} is a type, not an array")
    if stored > size or declared > _MOST_INFLATION * stored + _SLACK:
        raise ValueError(
            f"its arrays declare {_in_mb(declared)}, of which "
            f"{_in_mb(min(stored, size))} are stored"
        )
    for item, filters in compressed:
        _check_inflates(item, filters)
    return values


def _address(item):
    """What tells an object of an HDF5 file from the others."""
    import h5py

    return h5py.h5o.get_info(item.id).addr


def _check_dataset(dataset):
    """The filters of a dataset, if it is a plain array."""
    import h5py

    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{dataset.name} is virtual")
    if properties.get_external_count():
        raise ValueError(f"{dataset.name} is stored in another file")
    dtype = dataset.dtype
    is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and not dtype.names
    if dtype.kind not in "fiub" and not is_bfloat16:
        raise ValueError(f"{dataset.name} is of {dtype}, not of real numbers")
    if dataset.shape is None:
        raise ValueError(f"{dataset.name} has no shape")
    filters = [
        properties.get_filter(i)[0] for i in range(properties.get_nfilters())
    ]
    known = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    if not {*filters} <= known | {h5py.h5z.FILTER_DEFLATE}:
        raise ValueError(f"{dataset.name} has a filter other than gzip")
    if dataset.chunks and _chunk_size(dataset) > max(dataset.nbytes, _SLACK):
        raise ValueError(
            f"{dataset.name} has chunks of {_in_mb(_chunk_size(dataset))}"
        )
    return filters


def _chunk_size(dataset):
    return math.prod(dataset.chunks) * dataset.dtype.itemsize


def _check_inflates(dataset, filters):
    """Refuse chunks that inflate to more than a chunk, which HDF5 allows."""
    import h5py

    deflate = filters.index(h5py.h5z.FILTER_DEFLATE)
    if {*filters[deflate + 1 :]} - {h5py.h5z.FILTER_FLETCHER32}:
        raise ValueError(f"{dataset.name} has its filters in another order")
    chunks = []
    dataset.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if chunk.filter_mask >> deflate & 1:
            continue  # HDF5 leaves out what does not shrink
        _, rest = dataset.id.read_direct_chunk(chunk.chunk_offset)
        inflater, room = zlib.decompressobj(), _chunk_size(dataset) + 4
        while rest and not inflater.eof and room >= 0:
            room -= len(inflater.decompress(rest, MB))
            rest = inflater.unconsumed_tail
        if room < 0:
            raise ValueError(f"{dataset.name} inflates to more than its shape")


def text_attribute(item: "h5py.Group", name: str) -> str:
    """A text that is an attribute of a group.

    Args:
        item: The group.
        name: Name of the attribute.

    Returns:
        The text.

    Raises:
        ValueError: if the attribute is none, or is longer than names are.

    Example:

    >>> text_attribute(file["layers/dense/vars"], "name")
    'predictions'
    """
    # Thousands could share one long text in the file.
    attribute = item.attrs.get_id(name)
    text = item.attrs[name] if attribute.shape == () else None
    text = text.decode() if isinstance(text, bytes) else text
    if not isinstance(text, str) or len(text) > _MOST_LETTERS:
        raise ValueError(f"{item.name} has a {name} that is no name")
    return text


def longest_text(path: str | os.PathLike[str]) -> int:
    """Bytes that a text of variable length can have in an HDF5 file.

    Args:
        path: The file.

    Returns:
        Size of the largest of its heaps, where HDF5 has such texts.

    Example:

    >>> longest_text("resnext50.h5")
    4096
    """
    mark = b"GCOL\1\0\0\0"  # then the size, in eight bytes
    sizes = [0]
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        at = content.find(mark)
        while at >= 0:
            sizes.append(int.from_bytes(content[at + 8 : at + 16], "little"))
            at = content.find(mark, at + 16)
    return max(sizes)


def text_attributes(item: "h5py.Group", name: str, longest: int) -> list[str]:
    """Texts that are an attribute of a group, in Keras 2's files.

    Args:
        item: The group.
        name: Name of the attribute.
        longest: What `longest_text` says of the file.

    Returns:
        The texts.

    Raises:
        ValueError: if the attribute is no list of texts, or could have many
            that are one and the same long text in the file.

    Example:

    >>> text_attributes(file, "layer_names", longest_text(path))[0]
    'conv1_conv'
    """
    attribute = item.attrs.get_id(name)
    if attribute.shape == (0,):
        return []
    kind, size = attribute.dtype.kind, attribute.dtype.itemsize
    if kind not in "SO" or len(attribute.shape or ()) != 1:
        raise ValueError(f"{item.name} has {name} that are not texts")
    if attribute.shape[0] * (longest if kind == "O" else size) > _MOST_NAMES:
        raise ValueError(f"{item.name} has {name} that are no names")
    return [
        x.decode() if isinstance(x, bytes) else str(x) for x in item.attrs[name]
    ]


class KerasArchive(typing.NamedTuple):
    """What `open_keras` found in a `.keras` file.

    Args:
        config: Keras' description of the model, as JSON.
        weights: The open file of its weights.
        values: How many values they have.
    """

    config: bytes
    weights: "h5py.File"
    values: int


@contextlib.contextmanager
def open_keras(path: str | os.PathLike[str]) -> Iterator[KerasArchive]:
    """Open a `.keras` file that holds a model and its weights, and no more.

    Args:
        path: A regular file.

    Yields:
        A `KerasArchive`.

    Raises:
        ValueError: if a member is missing, unknown, compressed to a fraction,
            encrypted or a link; if a description is longer than the weights
            warrant; see `check_h5` for these.
        Exception: of any type, from damaged files.

    Example:

    >>> with open_keras("model.keras") as archive:
    ...     archive.values
    25097128
    """
    import h5py

    with zipfile.ZipFile(path) as archive:
        members = _checked_members(archive)
        for name in (CONFIG_MEMBER, WEIGHTS_MEMBER):
            if name not in members:
                raise ValueError(f"it has no {name}")
        room = min(_MOST_JSON, _SLACK + members[WEIGHTS_MEMBER].file_size)
        for name, member in members.items():
            if name not in _MEMBERS and not name.startswith(_ASSETS):
                raise ValueError(f"it has a member {name!r}")
            if name.endswith(".json") and member.file_size > room:
                raise ValueError(f"{name} is {_in_mb(member.file_size)}")
        # All of them, because Keras unpacks all of them.
        contents = {
            name: _read_member(archive, member)
            for name, member in members.items()
            if not name.startswith(_ASSETS) or member.compress_type
        }
    content = contents[WEIGHTS_MEMBER]
    with h5py.File(io.BytesIO(content), "r") as weights:
        values = check_h5(weights, len(content))
        yield KerasArchive(contents[CONFIG_MEMBER], weights, values)


def _checked_members(archive):
    """The members of a zip archive by name, if they are plain files."""
    size = os.fstat(archive.fp.fileno()).st_size
    members = {}
    for member in archive.infolist():
        name = member.filename
        if name in members:
            raise ValueError(f"it has two members {name!r}")
        if member.flag_bits & 1:
            raise ValueError(f"{name} is encrypted")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{name} is a link")
        if ".." in name.replace("\\", "/").split("/"):
            raise ValueError(f"it has a member {name!r}")
        # The others' readers have no limit.
        if member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise ValueError(f"{name} is compressed in an unknown way")
        members[name] = member
    declared = sum(member.file_size for member in members.values())
    stored = sum(member.compress_size for member in members.values())
    if stored > size or declared > _MOST_INFLATION * size + _SLACK:
        raise ValueError(
            f"its members declare {_in_mb(declared)}; it has {_in_mb(size)}"
        )
    return members


def _read_member(archive, member):
    """The content of a member, if it is as long as declared."""
    # Python and Keras unpack all there is, and cut off the rest.
    longer = copy.copy(member)
    longer.file_size += 1
    with archive.open(longer) as file:
        content = file.read(longer.file_size)
    if len(content) != member.file_size:
        raise ValueError(
            f"{member.filename} is not of the {member.file_size} bytes that it "
            "declares"
        )
    return content


def check_keras(path: str | os.PathLike[str]) -> None:
    """Refuse a `.keras` file that `keras.saving.load_model` must not get.

    Args:
        path: A regular file.

    Raises:
        ValueError: see `open_keras` and `check_described`.
        Exception: of any type, from damaged files.

    Example:

    >>> check_keras("model.keras")
    """
    with open_keras(path) as archive:
        check_described(json.loads(archive.config), archive.values)


def check_description(path: str | os.PathLike[str]) -> None:
    """Refuse a file of JSON that is no regular one, or too large.

    Args:
        path: An existing path.

    Raises:
        ValueError: the reason.

    Example:

    >>> check_description("config.json")
    """
    check_regular(path)
    if (size := os.path.getsize(path)) > _MOST_JSON:
        raise ValueError(f"{path} is {_in_mb(size)}")


def check_described(config: dict[str, Any], values: int) -> None:
    """Refuse the description of a model that is larger than its weights.

    Args:
        config: What `keras.saving.serialize_keras_object` returned. It is
            used up.
        values: How many values the weights have that go with it.

    Raises:
        ValueError: if it is not of a model, or of one with more than twice as
            many values, or with very many layers; if a layer is called on no
            tensor, and would compute at once.

    Example:

    >>> check_described(keras.saving.serialize_keras_object(model), 25097128)
    """
    import keras

    if (calls := _count_calls(config, {})) > _MOST_CALLS:
        raise ValueError(f"its model calls layers {calls} times")

    def describe():
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
        if not isinstance(model, keras.Model):
            raise ValueError(f"it must describe a model; got {type(model)}")
        return model

    if (described := count_values(describe)) > most_values(values):
        raise ValueError(
            f"its model has {described} values, of which {values} are stored"
        )


def count_values(build: "Callable[[], keras.Model]") -> int:
    """How many values the variables of a model have; none is allocated.

    Args:
        build: What builds the model.

    Returns:
        Their number.

    Example:

    >>> count_values(lambda: ResNeXt50(weights=None))
    25097128
    """
    with unallocated_variables():
        return sum(math.prod(x.shape) for x in build().variables)


def most_values(stored: int) -> int:
    """How many values a model may have that goes with a file.

    Args:
        stored: How many values the file has.

    Returns:
        Twice as many, and a million: some are not stored, such as LoRA's.

    Example:

    >>> most_values(0)
    1048576
    """
    return 2 * stored + MB


def _count_calls(config, known):
    """How often layers are called to build a model; models may be nested.

    Drops what is not built, such as optimizers. `known` has what was counted
    of objects that are mentioned again.
    """
    if isinstance(config, list):
        return sum(_count_calls(x, known) for x in config)
    if not isinstance(config, dict):
        return 0
    config.pop("compile_config", None)
    _check_names(config.get("layers"))
    nodes = config.get("inbound_nodes") or []
    # Keras 2's are lists of layers' names.
    if any(isinstance(x, dict) and not _has_tensor(x) for x in nodes):
        raise ValueError(f"its layer {config.get('name')!r} has no inputs")
    inside = sum(
        _count_calls(value, known)
        for key, value in config.items()
        if key != "inbound_nodes"
    )
    number = str(config.get("shared_object_id"))
    if number != "None":
        inside = known[number] = max(inside, known.get(number, 0))
    return max(1, len(nodes)) * (inside + bool(nodes))


def _check_names(layers):
    """Refuse layers of one name, which Keras tries to connect at length."""
    layers = layers if isinstance(layers, list) else []
    names = [
        str(x["name"]) for x in layers if isinstance(x, dict) and "name" in x
    ]
    if len(names) != len(set(names)):
        raise ValueError("its model has several layers of one name")


def _has_tensor(value):
    """Whether a layer's arguments, as JSON, have a tensor among them."""
    if isinstance(value, list):
        return any(map(_has_tensor, value))
    return isinstance(value, dict) and (
        value.get("class_name") == "__keras_tensor__"
        or any(map(_has_tensor, value.values()))
    )


def _in_mb(size):
    return f"{size / MB:.1f} MB"
