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
import dataclasses
import errno
import http.client
import os
import pathlib
import re
import socket
import threading
import typing
import urllib.error
import urllib.parse
import urllib.request

from keras_resnext.extras import first_line
from keras_resnext.extras import require
from keras_resnext.files import file_hash
from keras_resnext.files import staged
from keras_resnext.quiet import quiet
from keras_resnext.weights import gate
from keras_resnext.weights.registry import WeightsRecord

ATTEMPTS = 3
TIMEOUT_S = 30
# To connect, whatever is slow: looking up the name, or each address in turn.
CONNECT_S = 4
HUB_SCHEME = "hf://"
WEIGHTS_FILE = "model.safetensors"
_INSTALLED = pathlib.Path(__file__).with_name("published")
_HUB = "https://huggingface.co"
_CHUNK = 1 << 20
# The Hub's rules, which its client checks too, in several lines.
_NAME = r"(?![\w.-]*(--|\.\.))[\w][\w.-]{0,95}(?<![.-])(?<!\.git)"
_REPOSITORY = re.compile(
    rf"(?P<name>{_NAME}/{_NAME})(@(?P<revision>[^@\s]+))?", re.ASCII
)


class Repository(typing.NamedTuple):
    """A repository of the Hugging Face Hub; `str` writes its address.

    Args:
        name: Owner and name, such as `"user/name"`.
        revision: Branch, tag or commit. Defaults to `"main"`.

    Example:

    >>> str(Repository("user/name", "v1"))
    'hf://user/name@v1'
    """

    name: str
    revision: str = "main"

    def __str__(self):
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{HUB_SCHEME}{self.name}{at}"


def is_repository(source: object) -> bool:
    """Whether a source of weights is meant as a repository of the Hub.

    Args:
        source: What a caller gave, of any type.

    Returns:
        Whether it is a string that starts with `hf://`.

    Example:

    >>> is_repository("hf://user/name"), is_repository("imagenet")
    (True, False)
    """
    return isinstance(source, str) and source.startswith(HUB_SCHEME)


def parse_repository(address: str) -> Repository:
    """Take the address of a repository apart.

    Args:
        address: `hf://user/name` or `hf://user/name@revision`, with or without
            the `hf://`.

    Returns:
        A `Repository`.

    Raises:
        ValueError: if it has another form.

    Example:

    >>> parse_repository("hf://user/name@v1")
    Repository(name='user/name', revision='v1')
    """
    match = _REPOSITORY.fullmatch(str(address).removeprefix(HUB_SCHEME))
    if not match:
        raise ValueError(
            "A repository must be user/name or user/name@revision, after "
            "hf:// where it is loaded, with names of letters, digits, _, . and "
            f"- as the Hub allows them; got {address!r}."
        )
    return Repository(match["name"], match["revision"] or "main")


def hub_endpoint() -> str:
    """Address of the Hugging Face Hub, or of `HF_ENDPOINT`."""
    # The client reads the variable only when it is imported.
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or _HUB


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
        repository = Repository(record.address, record.revision)
        return _fetch_from_hub(repository, WEIGHTS_FILE, record.name)
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


def pin(record: WeightsRecord) -> WeightsRecord:
    """The record with the commit that its revision names now.

    Args:
        record: One of `list_weights`, or with another revision.

    Returns:
        The record with a commit of the Hub's as its `revision`, fetched if it
        is not here; unchanged if its file is not the Hub's.

    Raises:
        ConnectionError: if it cannot be fetched, see `fetch`, as the others.
        ValueError: if the file is not the published one.
        OSError: if the cache is not writable.

    Example:

    >>> pin(keras_resnext.get_weights("resnext50", "a1h_in1k")).revision
    '0123456789abcdef0123456789abcdef01234567'
    """
    if record.source != "huggingface":
        return record
    return dataclasses.replace(record, revision=fetch(record).parent.name)


def _find_installed(record):
    path = _INSTALLED / record.address
    if not path.is_file() or file_hash(path, "sha256") != record.sha256:
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


def fetch_repository(repository: Repository, *names: str) -> pathlib.Path:
    """Files of one commit of a repository, downloaded if they are not here.

    Args:
        repository: Which one, at which revision.
        *names: Names of its files.

    Returns:
        The folder that has them, in the cache of `huggingface_hub`.

    Raises:
        ConnectionError: if the download fails, and they are not in the cache.
        ValueError: if the repository, the revision or a file does not exist,
            or the file of weights is none or was changed.
        PermissionError: if the Hub refuses the token.

    Example:

    >>> fetch_repository(Repository("user/name"), "config.json").name
    '0123456789abcdef0123456789abcdef01234567'
    """
    for name in names:
        path = _fetch_from_hub(repository, name, str(repository))
        # The next one from the commit of the first.
        repository = repository._replace(revision=path.parent.name)
    return path.parent


def _fetch_from_hub(repository, name, wanted):
    require("huggingface_hub", extra="weights", purpose=f"Fetching {wanted}")
    from huggingface_hub import constants
    from huggingface_hub import try_to_load_from_cache

    problem = None
    if not constants.HF_HUB_OFFLINE:
        problem = connection_problem(hub_endpoint())
    if problem:
        # Not through `hf_hub_download(local_files_only=True)`, which asks the
        # Hub for a list of its own first (huggingface_hub 2.4), for ten
        # seconds where no name server answers.
        path = try_to_load_from_cache(
            repository.name, name, revision=repository.revision
        )
        if not isinstance(path, str):
            raise _no_download(wanted, repository.name, "huggingface", problem)
    else:
        path = _ask_hub(repository, name, wanted)
    path = pathlib.Path(path)
    if name == WEIGHTS_FILE:
        _check_downloaded(path)
    return path


def _ask_hub(repository, name, wanted):
    """Download a file with the Hub's client, unless it is in its cache."""
    from huggingface_hub import errors
    from huggingface_hub import hf_hub_download

    try:
        with quiet("huggingface_hub"):  # it announces each attempt
            return hf_hub_download(
                repository.name,
                name,
                revision=repository.revision,
                endpoint=hub_endpoint(),
            )
    except (
        errors.RemoteEntryNotFoundError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
    ) as error:
        raise _no_such(repository, name, error) from None
    except Exception as error:  # its own, and its HTTP client's
        if isinstance(error, OSError) and error.errno:
            raise  # the cache is not writable
        if _status(error) in (401, 403):
            raise PermissionError(
                f"The Hub does not let you read {repository} (it answered "
                f"{_status(error)}). Log in with `hf auth login`, or set "
                "HF_TOKEN to a token that may read it."
            ) from None
        raise _no_download(
            wanted, repository.name, "huggingface", _cause(error)
        ) from None


def _no_such(repository, name, error):
    """The error about something that the Hub does not have."""
    from huggingface_hub import errors

    if isinstance(error, errors.RemoteEntryNotFoundError):
        return ValueError(f"{repository} must have a file {name}; it has none.")
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(
            f"{repository} must be a branch, tag or commit of "
            f"{repository.name}; there is none of that name."
        )
    return ValueError(
        f"{repository} must be a repository of the Hugging Face Hub that you "
        "may read; the Hub has none of that name for you. For a private or "
        "gated one, log in with `hf auth login` or set HF_TOKEN."
    )


def _check_downloaded(path):
    """Refuse weights that are not what was published, or first downloaded."""
    # The Hub names large files by their SHA-256. Without links, or from a
    # mirror, the first download is the reference.
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        _check_hash(blob, "sha256", blob.name, [path, blob])
    else:
        _check_opens(path)
        _check_first(path, path.parents[2] / f"{path.parent.name}.sha256")


def _status(error):
    """The Hub's HTTP status, which the client may have wrapped."""
    response = getattr(error.__cause__ or error, "response", None)
    return getattr(response, "status_code", None)


def _cause(error):
    """What the server or the client said first, in one line."""
    return first_line(error.__cause__ or error)


def connection_problem(address: str) -> str | None:
    """Why a server cannot be connected to, within seconds.

    Args:
        address: Its address, with the scheme.

    Returns:
        The reason, in one line; `None` if it can be connected to.
    """
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


def _no_download(name, address, source, problem):
    """The error about a file that is neither here nor can be fetched."""
    mirror, cache = {
        "huggingface": ("HF_ENDPOINT", "HF_HOME"),
        "torchvision": ("KERAS_RESNEXT_MIRROR", "TORCH_HOME"),
        "keras-applications": ("KERAS_RESNEXT_MIRROR", "KERAS_HOME"),
    }[source]
    return ConnectionError(
        f"{name} is not in the cache and cannot be downloaded from "
        f"{address} ({problem}). Use weights=None for random weights, "
        'weights="path/to/file" for a file, or set '
        f"{mirror} to a mirror or {cache} to a filled cache."
    )


def _check_opens(path):
    """Refuse a first download that is, say, a network's sign-in page."""
    from safetensors import SafetensorError
    from safetensors import safe_open

    try:
        gate.check_safetensors_header(path)
        # Checks the header and the file's length.
        with safe_open(path, "numpy"):
            pass
    except (SafetensorError, ValueError) as error:
        reason = f"a safetensors file: {first_line(error)}"
        _refuse(path, reason, [path, path.resolve()])


def _check_first(path, note):
    """Compare a file with the first download, or note it as the first."""
    actual = file_hash(path, "sha256")
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
    _compare(path, kind, file_hash(path, kind), expected, remove)


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


def _download(record, address, path, kind):
    """Download to a temporary path, check the hash, then rename."""
    expected = record.md5 or record.sha256
    known = record.name, record.address, record.source
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
        if problem := connection_problem(address):
            raise _no_download(*known, problem)
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
                    raise _no_download(*known, first_line(error)) from None
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
