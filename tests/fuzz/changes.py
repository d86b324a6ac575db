"""What is done to a file: edits of its bytes, of its parts, of its JSON."""

import copy
import io
import json
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import strategies as st

# Where integers change their size or sign, and just beside.
_EDGES = sorted(
    {
        value
        for bits in (7, 8, 15, 16, 31, 32, 63, 64)
        for value in (2**bits - 1, 2**bits)
    }
    | {0, 1, 2, 3, 255, 65_500, 10**6, 10**9}
)
_INTEGERS = ("<H", ">H", "<I", ">I", "<Q", ">Q")
# Brackets that no parser should follow by recursion, and others.
_INSERTED = (
    *(b"[" * 100_000, b'{"a":' * 30_000, b"\0" * 300, b"\xff" * 300),
    *(b"NaN", b"-1", b"1e999", b"null", b"\xe2\x80\xa8", b"\n", b'"'),
)
_TEXTS = (
    *("", "\n", "\u2028", "\x1b[31m", "[/red]", "a" * 5000, "../../x", "é"),
    *("\ud800", "float32", "bfloat16", "int8", "relu", "tf", "channels_first"),
)
_NUMBERS = (
    *(math.nan, math.inf, -math.inf, 1e308, 1e-308, 0.5, -0.5, 1.5, -1),
    *(-(2**63), 10**400),
    *_EDGES,
)
_EDITS = (1, 1, 1, 2, 3, 6)
_MOST_ITEMS = 5_000
_NEAR = 256  # bytes of a head or an end, where formats say most


class Parts(NamedTuple):
    """How to take a file apart, so that a change can reach what is inside.

    Args:
        split: From the bytes of a file to its parts, as pairs of name and
            bytes.
        join: The inverse, with the checksums of the new parts.
    """

    split: Callable[[bytes], list[tuple[str, bytes]]]
    join: Callable[[list[tuple[str, bytes]]], bytes]


@st.composite
def changed(draw, seeds, parts=None):
    """Files that differ from one of `seeds` in a few places.

    Args:
        draw: Hypothesis' own.
        seeds: Contents of files; the first one counts as much as the others.
        parts: The `Parts` of their format, if a change of a byte would
            otherwise fail at a checksum. Defaults to `None`.

    Returns:
        A strategy for bytes.

    Example:

    >>> changed([b'{"epochs": 10}']).example()
    b'{"epochs": 65535}'
    """
    content = draw(st.one_of(st.just(seeds[0]), st.sampled_from(seeds)))
    if parts and draw(st.integers(0, 3)):
        pieces = parts.split(content)
        if not pieces:  # the seed is damaged itself
            return draw(_edited(content, seeds))
        which = draw(st.integers(0, len(pieces) - 1))
        name, piece = pieces[which]
        what = draw(st.integers(0, 9))
        if what == 0:
            del pieces[which]
        elif what == 1:
            pieces.insert(which, pieces[which])
        else:
            others = [piece for _, piece in pieces]
            pieces[which] = name, draw(_changed_part(piece, others))
        return parts.join(pieces)
    return draw(_changed_part(content, seeds))


@st.composite
def _changed_part(draw, content, others):
    """Change a value in JSON, most of the time, or bytes."""
    value = _parsed(content)
    if isinstance(value, (dict, list)) and draw(st.integers(0, 3)):
        return json.dumps(draw(_changed_json(value))).encode()
    lines = content.splitlines(keepends=True)
    if len(lines) > 1 and isinstance(_parsed(lines[0]), dict):  # JSON lines
        which = draw(st.integers(0, len(lines) - 1))
        lines[which] = draw(_changed_part(lines[which].strip(), [b""])) + b"\n"
        return b"".join(lines)
    return draw(_edited(content, others))


def _parsed(content):
    """The value of a JSON text, if it is one that is not too deep."""
    if content.count(b"[") + content.count(b"{") > _MOST_ITEMS:
        return None
    try:
        return json.loads(content)
    except ValueError:
        return None


@st.composite
def _edited(draw, content, others):
    """Edit bytes in a few places."""
    for _ in range(draw(st.sampled_from(_EDITS))):
        content = draw(_edit(content, others))
    return content


@st.composite
def _edit(draw, content, others):
    at = draw(_positions(len(content)))
    what = draw(st.integers(0, 9))
    if what == 0:
        return content[:at]
    if what == 1:
        length = draw(st.integers(1, 64))
        return content[:at] + content[at + length :]
    if what == 2:
        piece = content[at : at + draw(st.integers(1, 300))]
        times = draw(st.sampled_from((1, 2, 100)))
        return content[:at] + piece * times + content[at:]
    if what == 3:
        other = draw(st.sampled_from(others))
        return content[:at] + other[draw(_positions(len(other))) :]
    if what == 4:
        new = draw(st.one_of(st.sampled_from(_INSERTED), st.binary(max_size=9)))
        return content[:at] + new + content[at:]
    if what in (5, 6):
        form = draw(st.sampled_from(_INTEGERS))
        bits = 8 * struct.calcsize(form)
        new = struct.pack(form, draw(st.sampled_from(_EDGES)) % 2**bits)
    elif what in (7, 8):
        new = bytes([draw(st.integers(0, 255))])
    else:
        bit = 1 << draw(st.integers(0, 7))
        new = bytes(byte ^ bit for byte in content[at : at + 1])
    return content[:at] + new + content[at + len(new) :]


def _positions(size):
    """Any position, with those near the beginning and the end in favour."""
    last = max(size - 1, 0)
    near = st.integers(0, min(last, _NEAR))
    return st.one_of(st.integers(0, last), near, near.map(lambda x: last - x))


@st.composite
def _changed_json(draw, value):
    """Change values anywhere in what a JSON text holds."""
    value = json.loads(json.dumps(value))  # the caller's is left alone
    for _ in range(draw(st.sampled_from(_EDITS))):
        places = list(_places(value))
        if not places:
            return value
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.integers(0, 6))
        if what == 0:
            del holder[key]
        elif what == 1:
            other, name = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = json.loads(json.dumps(other[name]))
        elif what == 2 and isinstance(holder[key], list):
            times = draw(st.sampled_from((0, 2, 1000)))
            holder[key] = (holder[key] * times)[:_MOST_ITEMS]
        elif what == 3 and isinstance(holder, dict):
            holder[draw(st.sampled_from(_TEXTS))] = holder[key]
        else:
            holder[key] = copy.deepcopy(draw(_VALUES))
    return value


_VALUES = st.one_of(
    st.sampled_from((None, True, False, [], {}, [[]], [None], {"": {}})),
    st.sampled_from(_NUMBERS),
    st.sampled_from(_TEXTS),
)


def _places(value):
    """Every list and dict in a value, with each of its keys."""
    keys = {dict: list, list: lambda x: range(len(x))}.get(type(value))
    for key in keys(value) if keys else ():
        yield value, key
        yield from _places(value[key])


# --- formats ----------------------------------------------------------------


def _split_zip(content):
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Of a trap that is small only as it is stored.
            if sum(x.file_size for x in archive.infolist()) > 1 << 22:
                return []
            return [(x.filename, archive.read(x)) for x in archive.infolist()]
    # Of any type, from the traps among the seeds.
    except Exception:
        return []


def _join_zip(parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # two of one name
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def _split_safetensors(content):
    end = 8 + int.from_bytes(content[:8], "little")
    return [("header", content[8:end]), ("arrays", content[end:])]


def _join_safetensors(parts):
    header, *rest = [content for _, content in parts]
    return struct.pack("<Q", len(header)) + header + b"".join(rest)


def _split_png(content):
    parts, at = [("", content[:8])], 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4])
        parts.append(("chunk", content[at + 4 : end]))
        at = end + 4
    return parts


def _join_png(parts):
    return b"".join(
        struct.pack(">I", max(len(content) - 4, 0))
        + content
        + struct.pack(">I", zlib.crc32(content))
        if name
        else content
        for name, content in parts
    )


ZIP = Parts(_split_zip, _join_zip)
SAFETENSORS = Parts(_split_safetensors, _join_safetensors)
PNG = Parts(_split_png, _join_png)
