"""Download published weights into the caches of their own libraries.

Files outside the Hugging Face Hub are downloaded here, because neither
`keras.utils.get_file` (Keras 3.15) nor `torch.hub` (torch 2.13) resumes a
broken download, retries, or locks the file between processes. `get_file` also
writes to the final path, leaves a wrong file there, downloads an altered one
again instead of refusing it, and compares whole hashes, of which torchvision
publishes eight digits; `torch.hub` does not check a cached file and needs
torch.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import pathlib
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request

from keras_resnext.extras import first_line
from keras_resnext.extras import require
from keras_resnext.files import staged
from keras_resnext.quiet import quiet
from keras_resnext.weights.registry import WeightsRecord

ATTEMPTS = 3
TIMEOUT_S = 30
# To connect, whatever is slow: looking up the name, or each address in turn.
CONNECT_S = 4
_INSTALLED = pathlib.Path(__file__).with_name("published")
_HUB = "https://huggingface.co"
_CHUNK = 1 << 20


def fetch(record: WeightsRecord) -> pathlib.Path:
    """The file of a record, downloaded if it is not here.

    Files of the Hugging Face Hub go into the cache of `huggingface_hub`,
    which `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and so on configure; the
    others into torch's (`TORCH_HOME`) or Keras' (`KERAS_HOME`).
    `KERAS_RESNEXT_MIRROR` replaces the server of the others. This package's own
    file is where the package is installed.

    Args:
        record: What to fetch.

    Returns:
        Path of the file. Its hash was compared with the published one or, if
        none is published, with that of the first download, which is stored
        next to it.

    Raises:
        ConnectionError: if the download fails; within five seconds where
            there is no network. The next call resumes it.
        ValueError: if the file is not the published one. A downloaded file is
            deleted.
        OSError: if the cache is not writable.

    Example:

    >>> fetch(keras_resnext.get_weights("resnext50", "tv2_in1k")).name
    'model.safetensors'
    """
    if record.source == "huggingface":
        return _fetch_from_hub(record)
    if record.source == "package":
        return _find_installed(record)
    address = record.address
    if mirror := os.environ.get("KERAS_RESNEXT_MIRROR"):
        address = mirror.rstrip("/") + urllib.parse.urlsplit(address).path
    name = address.rpartition("/")[2]
    path = _cache_folder(record.source) / name
    kind = "md5" if record.md5 else "sha256"
    _download(record, address, path, kind)
    return path


def _find_installed(record):
    path = _INSTALLED / record.address
    if not path.is_file() or _hash(path, "sha256") != record.sha256:
        raise ValueError(
            f"{path} must be the published file of {record.name}; it is "
            "missing or was changed. Reinstall keras_resnext."
        )
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
    from huggingface_hub import constants
    from huggingface_hub import hf_hub_download

    # The client reads the variable only when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB
    problem = None
    if not constants.HF_HUB_OFFLINE:
        problem = _connection_problem(endpoint)
    try:
        with quiet("huggingface_hub"):  # it announces each attempt
            path = hf_hub_download(
                record.address,
                "model.safetensors",
                revision=record.revision,
                endpoint=endpoint,
                local_files_only=bool(problem),
            )
    except Exception as error:  # its own, and its HTTP client's
        if isinstance(error, OSError) and error.errno:
            raise  # the cache is not writable
        raise _no_download(record, problem or _cause(error)) from None
    path = pathlib.Path(path)
    # The Hub names large files by their SHA-256. Without links, or from a
    # mirror, the first download is the reference.
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        _check_hash(blob, "sha256", blob.name, [path, blob])
    else:
        _check_opens(path)
        _check_first(path, path.parents[2] / f"{path.parent.name}.sha256")
    return path


def _cause(error):
    """What the server or the client said first, in one line."""
    return first_line(error.__cause__ or error)


def _connection_problem(address):
    """Why a server cannot be connected to; `None` if it can."""
    url = urllib.parse.urlsplit(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(url.hostname):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = url.port or (80 if url.scheme == "http" else 443)
    problems = [f"no answer within {CONNECT_S} s"]

    def connect():
        try:
            socket.create_connection((url.hostname, port), CONNECT_S).close()
            problems.append(None)
        except OSError as error:
            problems.append(error.strerror or first_line(error))

    # A name server that does not answer cannot be given a time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_S)
    problem = problems[-1]
    return problem and f"{url.hostname}:{port}: {problem}"


def _no_download(record, problem):
    """The error about a file that is neither here nor can be fetched."""
    mirror, cache = {
        "huggingface": ("HF_ENDPOINT", "HF_HOME"),
        "torchvision": ("KERAS_RESNEXT_MIRROR", "TORCH_HOME"),
        "keras-applications": ("KERAS_RESNEXT_MIRROR", "KERAS_HOME"),
    }[record.source]
    return ConnectionError(
        f"{record.name} is not in the cache and cannot be downloaded from "
        f"{record.address} ({problem}). Use weights=None for random weights, "
        'weights="path/to/file" for a file, or set '
        f"{mirror} to a mirror or {cache} to a filled cache."
    )


def _check_opens(path):
    """Refuse a first download that is, say, a network's sign-in page."""
    from safetensors import SafetensorError
    from safetensors import safe_open

    try:
        # Checks the header and the file's length.
        with safe_open(path, "numpy"):
            pass
    except SafetensorError as error:
        _refuse(path, f"a safetensors file: {error}", [path, path.resolve()])


def _check_first(path, note):
    """Compare a file with the first download, or note it as the first."""
    actual = _hash(path, "sha256")
    with contextlib.suppress(OSError):
        first = note.read_text().strip()
        if re.fullmatch("[0-9a-f]{64}", first):
            _compare(
                path, "sha256", actual, first, [path, path.resolve()], note
            )
            return
    # The cache may be read-only.
    with contextlib.suppress(OSError), staged(note, overwrite=True) as new:
        new.write_text(actual + "\n")


def _check_hash(path, kind, expected, remove):
    _compare(path, kind, _hash(path, kind), expected, remove)


def _compare(path, kind, actual, expected, remove, note=None):
    """Refuse a file whose hash is not the expected one."""
    if actual.startswith(expected):
        return
    which = "the published file"
    if note:
        which = f"the file of the first download (noted in {note})"
    _refuse(
        path,
        f"{which}, whose {kind} is {expected}; its own is {actual}",
        remove,
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
        + ("was deleted." if removed else "could not be deleted.")
    )


def _hash(path, kind):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _download(record, address, path, kind):
    """Download to a temporary path, check the hash, then rename."""
    expected = record.md5 or record.sha256
    if path.is_file():
        _check_hash(path, kind, expected, [path])
        return
    require("filelock", extra="weights", purpose=f"Downloading {path.name}")
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # A second process waits here, then uses the first one's file.
    with FileLock(path.with_name(path.name + ".lock")):
        if path.is_file():
            return
        if problem := _connection_problem(address):
            raise _no_download(record, problem)
        for attempt in range(ATTEMPTS):
            try:
                _resume(address, partial)
                break
            except (OSError, EOFError, http.client.HTTPException) as error:
                # Retry only what may succeed the next time.
                status = getattr(error, "code", None)
                final = attempt == ATTEMPTS - 1
                if error.__class__ is PermissionError:
                    raise
                if getattr(error, "errno", None) == errno.ENOSPC:
                    partial.unlink(missing_ok=True)
                    raise
                if final or (status and status < 500):
                    raise _no_download(record, first_line(error)) from None
        _check_hash(partial, kind, expected, [partial])
        partial.replace(path)


def _resume(address, partial):
    """Download the rest of a file, appending to `partial`."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # complete, or another file: the hash decides
            error.close()
            return
        raise
    with response:
        if response.status != 206:  # the server sends all of it
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
    # Imported here because it is slow to import.
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
    # Not to stdout, which may be redirected to a file.
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total or None, completed=have)
        yield lambda size: progress.advance(task, size)
