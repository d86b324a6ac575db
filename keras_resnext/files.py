"""Write beside, then rename: what stood there before is never half-lost."""

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
    path: str | os.PathLike, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """A place to write a file or folder that appears only once it is whole.

    Inside the context, write to the path it yields. When the context ends
    well, that is renamed to `path`; when it ends in an exception, it is
    removed and `path` is as it was. What processes of this machine that were
    killed left in the same folder is removed, or put back, by the next.

    Args:
        path: Where the file or folder shall be in the end. Parents are made.
        overwrite: Whether something may stand there already. Defaults to
            `False`.

    Yields:
        A path beside it with the same name, so that writers which look at
        the ending see the right one.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false; at once,
            and again before it is put in place.

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
        new = pathlib.Path(folder) / path.name
        yield new
        _check_free(path, overwrite)  # it may have come meanwhile
        if not path.exists() or (path.is_file() and new.is_file()):
            new.replace(path)
            return
        # Folders cannot be replaced in one step. The old one waits beside,
        # where nothing removes it, until the new one is in place.
        old = pathlib.Path(f"{folder}.old")
        try:
            path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        _remove(old)


def _mark():
    """What stands between a file's name and the process that writes it."""
    return f".staged-{socket.gethostname()}-"


def _clear_up(folder):
    """Remove, or put back, what killed processes of this machine left."""
    staging = re.compile(
        rf"\.(?P<name>.+){re.escape(_mark())}(?P<owner>\d{{1,9}})"
        r"-[a-z0-9_]+(?P<old>\.old)?"
    )
    for left in folder.glob("*.staged-*"):
        found = staging.fullmatch(left.name)
        if not found or _runs(int(found["owner"])):
            continue
        path = folder / found["name"]
        # Another process may be at it, or have more rights here.
        with contextlib.suppress(OSError):
            if found["old"] and not os.path.lexists(path):
                left.rename(path)  # killed before the new one was in place
            else:
                _remove(left)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_free(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Refuse to write over something, before long work.

    What killed processes left beside it does not count, and is cleared up.

    Args:
        path: Where something is going to be written.
        overwrite: Whether something may stand there already.

    Raises:
        FileExistsError: if something does and `overwrite` is false.
        NotADirectoryError: if a file stands where a folder would have to be.

    Example:

    >>> check_free("new.tflite", overwrite=False)
    """
    path = pathlib.Path(path)
    above = next((p for p in path.absolute().parents if p.exists()), path)
    if not above.is_dir():
        raise NotADirectoryError(
            f"`path` must lie in a folder; got {path}, and {above} is a file."
        )
    _clear_up(path.parent)
    _check_free(path, overwrite)


def _check_free(path, overwrite):
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"`path` must be free, or `overwrite` true; {path} exists."
        )
