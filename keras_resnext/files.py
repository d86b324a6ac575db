"""Atomic writes: write to a temporary path, then rename."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator


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
        path: Where the file or folder goes. Missing parents are created.
        overwrite: Whether an existing `path` is replaced. Defaults to
            `False`.

    Yields:
        A temporary path on the same disk. It has the name of `path`, because
        some writers look at the extension.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false; checked
            before and after writing.

    Example:

    >>> with staged("model.tflite") as new:
    ...     new.write_bytes(converted)
    """
    path = pathlib.Path(path)
    check_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}{_mark()}{os.getpid()}-", dir=path.parent
    ) as folder:
        new = pathlib.Path(folder, path.name)
        yield new
        _check_free(path, overwrite)  # another process may have written it
        if new.is_file():
            _use_umask(new)
        if not path.exists() or (path.is_file() and new.is_file()):
            new.replace(path)
            return
        # A folder cannot be replaced in one step. The old one waits outside
        # the temporary folder, which is deleted, until the new one is there.
        old = pathlib.Path(f"{folder}.old")
        try:
            path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
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
    above = next((p for p in path.absolute().parents if p.exists()), path)
    if not above.is_dir():
        raise NotADirectoryError(
            f"`path` must be in a folder; got {path}, and {above} is a file."
        )
    _clean_up(path.parent)
    _check_free(path, overwrite)


def _check_free(path, overwrite):
    if path.exists() and not overwrite:
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
