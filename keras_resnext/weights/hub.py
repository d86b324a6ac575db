"""Published files, from where they are published into their users' caches."""

import contextlib
import errno
import hashlib
import http.client
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request

from keras_resnext.extras import require
from keras_resnext.files import staged
from keras_resnext.weights.registry import WeightsRecord

ATTEMPTS = 3
TIMEOUT_S = 30
_CHUNK = 1 << 20


def fetch(record: WeightsRecord) -> pathlib.Path:
    """The file of a record, downloaded if it is not there yet.

    Files of the Hugging Face Hub are kept by `huggingface_hub` in its cache,
    which `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and so on govern; others
    where torch (`TORCH_HOME`) and Keras (`KERAS_HOME`) keep theirs. For
    others, `KERAS_RESNEXT_MIRROR` replaces the server's address.

    Args:
        record: What to fetch.

    Returns:
        Path of a file whose hash was checked just now: with the published
        one, or with that of the first download, which is written beside it.

    Raises:
        ConnectionError: if the file cannot be downloaded. What has arrived
            stays, and the next call goes on from there.
        ValueError: if it is not the file that was published. It is removed.
        OSError: if the cache cannot be written.

    Example:

    >>> fetch(keras_resnext.get_weights("resnext50", "tv2_in1k")).name
    'model.safetensors'
    """
    if record.source == "huggingface":
        return _fetch_from_hub(record)
    address = record.address
    if mirror := os.environ.get("KERAS_RESNEXT_MIRROR"):
        address = mirror.rstrip("/") + urllib.parse.urlsplit(address).path
    name = address.rpartition("/")[2]
    path = _cache_folder(record.source) / name
    kind = "md5" if record.md5 else "sha256"
    _download(address, path, kind, record.md5 or record.sha256)
    return path


def _cache_folder(source):
    if source == "keras-applications":
        home = os.environ.get("KERAS_HOME") or "~/.keras"
        return pathlib.Path(home, "models").expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or f"{cache}/torch"
    return pathlib.Path(home, "hub", "checkpoints").expanduser()


def _fetch_from_hub(record):
    require(
        "huggingface_hub", extra="weights", purpose=f"Fetching {record.name}"
    )
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            record.address,
            "model.safetensors",
            revision=record.revision,
            # Read here, because the client reads it when it is imported.
            endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None,
        )
    except Exception as error:  # the client's, and those of its own client
        if isinstance(error, OSError) and error.errno:
            raise  # about the cache's folder
        raise ConnectionError(
            f"{record.name} is not in the cache and cannot be downloaded from "
            f"{record.address}: {_first_line(error)}"
        ) from error
    path = pathlib.Path(path)
    # The Hub's own name for a large file is its SHA-256; where there are no
    # links (or another server), what was there first decides.
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        _check_hash(blob, "sha256", blob.name, [path, blob])
    else:
        _check_opens(path)
        _check_first(path, path.parents[2] / f"{path.parent.name}.sha256")
    return path


def _check_opens(path):
    """Before its hash is noted, a first download must be what was asked for.

    Such as not the page on which a network asks its guests to sign in.
    """
    from safetensors import SafetensorError
    from safetensors import safe_open

    try:
        # Reads the header, and that the file ends where it says.
        with safe_open(path, "numpy"):
            pass
    except SafetensorError as error:
        _refuse(path, f"a safetensors file: {error}", [path, path.resolve()])


def _check_first(path, note):
    found = _hash(path, "sha256")
    with contextlib.suppress(OSError):
        first = note.read_text().strip()
        if re.fullmatch("[0-9a-f]{64}", first):
            _compare(path, "sha256", found, first, [path, path.resolve()], note)
            return
    # A cache may be for reading only.
    with contextlib.suppress(OSError), staged(note, overwrite=True) as new:
        new.write_text(found + "\n")


def _check_hash(path, kind, expected, remove):
    _compare(path, kind, _hash(path, kind), expected, remove)


def _compare(path, kind, found, expected, remove, note=None):
    if found.startswith(expected):
        return
    which = "the published file"
    if note:
        which = f"the file of the first download (noted in {note})"
    _refuse(
        path, f"{which}, whose {kind} is {expected}; its own is {found}", remove
    )


def _refuse(path, expected, remove):
    removed = True
    for file in remove:
        try:
            file.unlink(missing_ok=True)
        except OSError:
            removed = False
    raise ValueError(
        f"{path} must be {expected}. It "
        + ("was removed." if removed else "could not be removed.")
    )


def _hash(path, kind):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _download(address, path, kind, expected):
    """Download into a file beside `path`, check it, then rename it."""
    if path.is_file():
        _check_hash(path, kind, expected, [path])
        return
    require("filelock", extra="weights", purpose=f"Downloading {path.name}")
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Of two processes, the second finds the first one's file.
    with FileLock(path.with_name(path.name + ".lock")):
        if path.is_file():
            return
        for attempt in range(ATTEMPTS):
            try:
                _go_on(address, partial)
                break
            except (OSError, EOFError, http.client.HTTPException) as error:
                # Only what a second attempt may change.
                status = getattr(error, "code", None)
                final = attempt == ATTEMPTS - 1
                if error.__class__ is PermissionError:
                    raise
                if getattr(error, "errno", None) == errno.ENOSPC:
                    partial.unlink(missing_ok=True)
                    raise
                if final or (status and status < 500):
                    raise ConnectionError(
                        f"{address} cannot be downloaded: {_first_line(error)}"
                    ) from error
        _check_hash(partial, kind, expected, [partial])
        partial.replace(path)


def _go_on(address, partial):
    """Append to `partial` what it lacks."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or it is another file
            error.close()
            return
        raise
    with response:
        if response.status != 206:  # the whole file again
            have = 0
        total = have + int(response.headers.get("Content-Length", 0))
        with (
            open(partial, "ab" if have else "wb") as file,
            _progress(partial.stem, have, total) as advance,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
    size = partial.stat().st_size
    if size < total:
        raise EOFError(f"the connection ended after {size} of {total} bytes")


@contextlib.contextmanager
def _progress(name, have, total):
    # Here, because importing it takes longer than the rest of the package.
    from rich.console import Console
    from rich.progress import BarColumn
    from rich.progress import DownloadColumn
    from rich.progress import Progress
    from rich.progress import TextColumn
    from rich.progress import TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    # Not among what a command prints, which may go into a file.
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total or None, completed=have)
        yield lambda size: progress.advance(task, size)


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
