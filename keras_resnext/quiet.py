"""Keeps other libraries' progress bars and advice off the screen."""

import contextlib
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

_level_set_here = None
_redirecting = threading.RLock()


def limit_tensorflow_log(level: str) -> None:
    """Hide messages of TensorFlow's C++ code, unless the user chose a level.

    TensorFlow reads the variable when it is imported. What its libraries
    write before that is shown at every level.

    Args:
        level: Hides information with `"1"`, warnings with `"2"`, errors with
            `"3"`.

    Example:

    >>> limit_tensorflow_log("1")
    >>> os.environ["TF_CPP_MIN_LOG_LEVEL"]
    '1'
    """
    global _level_set_here
    chosen = os.environ.get(LOG_LEVEL)
    if chosen == _level_set_here and "tensorflow" not in sys.modules:
        os.environ[LOG_LEVEL] = _level_set_here = level


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
    """Hide what any code of this process writes to standard error.

    It is shown after all if an exception ends the context. Nothing is hidden
    with `TF_CPP_MIN_LOG_LEVEL=0`.

    Example:

    >>> with hidden_stderr():
    ...     import tensorflow as tf
    """
    if os.environ.get(LOG_LEVEL) == "0" or not _is_open(2):
        yield
        return
    # Two threads would each restore the other's file.
    with _redirecting, tempfile.TemporaryFile() as hidden:
        if sys.stderr:
            sys.stderr.flush()
        standard_error = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(standard_error, hidden.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Let loggers show errors only.

    Args:
        *loggers: Names, such as `"tensorflow"`.

    Example:

    >>> with quiet("tensorflow"):
    ...     tf.saved_model.save(module, path)
    """
    quieted = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in quieted]
    for logger in quieted:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(quieted, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def silent(*messages: str) -> Iterator[None]:
    """Hide what Python code writes to standard error, and some warnings.

    Args:
        *messages: Regular expressions that match the start of the warnings.

    Example:

    >>> with silent(".*preserve_all_tensors"):
    ...     interpreter = Interpreter(path)
    """
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        yield
