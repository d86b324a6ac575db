"""Keeps other libraries' progress bars and advice off the screen."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator


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
