"""Atomic writes, and folders to which one process at a time writes."""

import contextlib
import datetime
import errno
import hashlib
import os
import pathlib
import re
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Callable
from collections.abc import Iterator

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

_LOCK = ".keras_resnext.lock"
_RECORD = b"process "  # how it begins
# What a file system without locks answers.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Folders that this process holds; deleted ones must not come back.
_held = set()
# Errors of writing, which do not say to what.
_CANNOT_WRITE = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}


@contextlib.contextmanager
def staged(
    path: str | os.PathLike[str], *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Write a file or folder that appears at `path` only once it is complete.

    Write to the path that the context yields. If the context ends normally,
    it is renamed to `path`; after an exception it is deleted and `path` is
    unchanged. Temporary files of killed processes of this machine in the same
    folder are deleted first, and replaced folders restored.

    Args:
        path: Where the file or folder goes. Missing parents are created,
            but not a folder that this process holds, see `held`.
        overwrite: Whether an existing `path` is replaced; of a link, the link
            itself, and what it points to stays. Defaults to `False`.

    Yields:
        A temporary path on the same disk. It has the name of `path`, because
        some writers look at the extension.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false; checked
            before and after writing.
        OSError: if it cannot be written; `path` is unchanged.

    Example:

    >>> with staged("model.tflite") as new:
    ...     new.write_bytes(converted)
    """
    path = pathlib.Path(path)
    check_free(path, overwrite=overwrite)
    if path.parent.absolute() not in _held:
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}{_mark()}{os.getpid()}-", dir=path.parent
    ) as folder:
        new = pathlib.Path(folder, path.name)
        with _named(path):
            yield new
        _check_free(path, overwrite)  # another process may have written it
        if new.is_file():
            _use_umask(new)
        if not os.path.lexists(path) or not (path.is_dir() or new.is_dir()):
            new.replace(path)
            return
        # A folder cannot be replaced in one step. The old one waits outside
        # the temporary folder, which is deleted, until the new one is there.
        old = pathlib.Path(f"{folder}.old")
        try:
            path.rename(old)
            new.rename(path)
        except BaseException:
            if os.path.lexists(old) and not os.path.lexists(path):
                old.rename(path)
            raise
        _remove(old)


def check_free(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check, before long work, that `staged` can write to a path.

    Args:
        path: Where something will be written.
        overwrite: Whether an existing `path` may be replaced.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        NotADirectoryError: if one of its parents is a file.

    Example:

    >>> check_free("new.tflite", overwrite=False)
    """
    path = pathlib.Path(path)
    parents = path.absolute().parents
    above = next((p for p in parents if os.path.lexists(p)), path)
    if not above.is_dir():
        what = "a file" if above.exists() else "a link to nothing"
        raise NotADirectoryError(
            f"`path` must be in a folder; got {path}, and {above} is {what}."
        )
    _clean_up(path.parent)
    _check_free(path, overwrite)


def file_hash(path: str | os.PathLike[str], kind: str = "sha256") -> str:
    """A hash of a file's content, in hexadecimal.

    Args:
        path: The file.
        kind: Name of the hash. Defaults to `"sha256"`.

    Example:

    >>> len(file_hash("photo.jpg"))
    64
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def add_line(path: str | os.PathLike[str], line: str) -> None:
    """Add a line to a file; a kill may leave the first part of it there.

    Args:
        path: The file; created if it is missing.
        line: The line, without its end.

    Raises:
        OSError: if it cannot be written; the first part may be there.

    Example:

    >>> add_line("history.jsonl", json.dumps({"epoch": 1}))
    """
    with _named(path), open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(f"{line}\n")


@contextlib.contextmanager
def held(
    folder: str | os.PathLike[str], *, argument: str
) -> Iterator[Callable[[], None]]:
    """Be the only process that writes to a folder.

    The operating system locks a file in the folder, which names this process,
    until the context or the process ends, however it does. The folder is
    created if it is missing, and deleted at the end if it is then empty.

    Where there are no locks, as on Windows and some network file systems, a
    second process takes the folder over, and the first one notices.

    Args:
        folder: The folder.
        argument: Name of the argument that `folder` was, for the errors.

    Yields:
        A function to call before and after writing. It raises `OSError` if the
        folder was deleted or moved, or another process has taken it over.

    Raises:
        BlockingIOError: if another process holds it; the error names it.
        OSError: if the folder cannot be written to.

    Example:

    >>> with held("runs/x", argument="workdir") as check:
    ...     check()
    """
    folder = pathlib.Path(folder)
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path, holder = folder / _LOCK, _this_process()

    def check():
        found = _read_lock(path)
        if not found:
            raise FileNotFoundError(
                f"{folder} was deleted or moved while this process was writing "
                f"to it: {path} is gone."
            )
        if found != holder:
            raise BlockingIOError(
                f"{folder} was taken over by {_named_in(found)}, while this "
                "process was writing to it."
            )

    with _locked(path, holder, argument):
        _held.add(folder.absolute())
        try:
            yield check
        except OSError:
            check()  # a write may have failed because the folder is gone
            raise
        finally:
            _held.discard(folder.absolute())
            # While it is locked, or it might be the next process' file.
            with contextlib.suppress(OSError):
                if _read_lock(path) == holder:
                    path.unlink()
                for made in missing:
                    made.rmdir()


def check_not_held(folder: str | os.PathLike[str], *, argument: str) -> None:
    """Check, before long work, that `held` can hold a folder.

    Args:
        folder: The folder; it need not exist.
        argument: Name of the argument that `folder` is, for the error.

    Raises:
        BlockingIOError: if another process holds it.

    Example:

    >>> check_not_held("runs/x", argument="workdir")
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path = pathlib.Path(folder, _LOCK)
        with _open_lock(path, os.O_RDWR) as file:
            _lock(file, path, argument)


def clear_up(folder: str | os.PathLike[str]) -> None:
    """Delete what killed processes of this machine left in a folder.

    `staged` and `held` do the same where they write. What cannot be deleted
    stays.

    Args:
        folder: The folder.

    Example:

    >>> clear_up("runs/x")
    """
    _clean_up(pathlib.Path(folder))
    if pathlib.Path(folder, _LOCK).exists():
        # Another process may use it, or the folder be read-only.
        with contextlib.suppress(OSError), held(folder, argument="folder"):
            pass


@contextlib.contextmanager
def _locked(path, holder, argument):
    """A file that this process has locked and written `holder` to."""
    for _ in range(100):
        with _open_lock(path, os.O_RDWR | os.O_CREAT) as file:
            _lock(file, path, argument)
            with _named(path):
                file.seek(0)
                file.truncate()
                file.write(holder.encode())
                file.flush()
            # Its last holder may have deleted it after it was opened here.
            if _read_lock(path) == holder:
                yield
                return
    raise OSError(f"{path} does not keep what is written to it.")


def _open_lock(path, flags):
    """Open a file that was written by `_locked`, or is new; never another's.

    A folder that was downloaded may have a link to any file in its place.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileExistsError(
                f"{path} must be the lock of this folder; it is a link."
            ) from error
        raise
    content = b""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        content = file.read(len(_RECORD))
        if content in (b"", _RECORD):
            return file
    file.close()
    raise FileExistsError(
        f"{path} must be the lock of this folder; it is another program's."
    )


def _lock(file, path, argument):
    """Lock an open file, until it is closed, or say who has locked it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BlockingIOError(
            f"`{argument}` must be a folder that no other process writes to; "
            f"{path.parent} is in use by {_named_in(_read_lock(path))}."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _this_process():
    """A line that names this process, and one that no other will write."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        f"{_RECORD.decode()}{os.getpid()} on {socket.gethostname()} since "
        f"{now:%Y-%m-%d %H:%M:%S} UTC\n{uuid.uuid4()}\n"
    )


def _read_lock(path):
    """What the holder of a lock has written; empty if there is none."""
    try:
        return path.read_bytes()[:1000].decode(errors="replace")
    except FileNotFoundError:
        return ""


def _named_in(text):
    """The process that a lock's file names, if it already does."""
    return text.partition("\n")[0] or "another process"


@contextlib.contextmanager
def _named(path):
    """Add the path to errors of writing, most of which name none."""
    try:
        yield
    except OSError as error:
        if error.errno in _CANNOT_WRITE and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _check_free(path, overwrite):
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(
            f"`path` must not exist unless `overwrite` is true; {path} exists."
        )


def _mark():
    """What separates a file's name from the id of the process writing it."""
    return f".staged-{socket.gethostname()}-"


def _clean_up(folder):
    """Delete, or restore, what killed processes of this machine left."""
    staging = re.compile(
        rf"\.(?P<name>.+){re.escape(_mark())}(?P<owner>\d{{1,9}})"
        r"-[a-z0-9_]+(?P<old>\.old)?"
    )
    for left in folder.glob("*.staged-*"):
        match = staging.fullmatch(left.name)
        if not match or _is_running(int(match["owner"])):
            continue
        path = folder / match["name"]
        # Another process may do the same, or the folder be read-only.
        with contextlib.suppress(OSError):
            if match["old"] and not os.path.lexists(path):
                left.rename(path)  # killed between the two renames
            else:
                _remove(left)


def _use_umask(file):
    """Give a file the mode of any new file; some writers make theirs 0600."""
    probe = file.with_name(f"{file.name}.mode")
    probe.touch()
    file.chmod(probe.stat().st_mode)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
