"""Stopping a run on SIGTERM, as cluster managers request it, or Ctrl-C."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from collections.abc import Iterator

_log = logging.getLogger("keras_resnext")


class TrainingStoppedError(RuntimeError):
    """Training received a signal and stopped after saving a checkpoint.

    Args:
        message: What to tell the user.
        number: The signal. Defaults to SIGTERM, which another worker may have
            received.

    Example:

    >>> TrainingStoppedError("Stopped.", signal.SIGINT).exit_status
    130
    """

    def __init__(self, message: str, number: int = signal.SIGTERM):
        super().__init__(message)
        self.exit_status = 128 + number  # what a shell reports


@contextlib.contextmanager
def stop_flag() -> Iterator[Callable[[], int]]:
    """Catch SIGTERM and the first Ctrl-C; a second one does what it did before.

    Yields:
        A function that returns the signal's number, or 0 if none has come.

    Example:

    >>> with stop_flag() as stop:
    ...     while not stop():
    ...         train_step()
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # only the main thread can handle signals
        return
    came = 0

    def stop(number, frame):
        nonlocal came
        came = number
        if number == signal.SIGINT:
            signal.signal(number, before[number])
            # The line that it interrupts may be one of the log's.
            with contextlib.suppress(RuntimeError):
                _log.warning(
                    "Training will save and stop after the current step or "
                    "evaluation; press Ctrl-C again to stop at once."
                )

    before = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    if before[signal.SIGINT] is signal.SIG_IGN:
        del before[signal.SIGINT]  # as in commands in a shell's background
    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
