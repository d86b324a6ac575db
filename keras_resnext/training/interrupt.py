"""Stopping a run on SIGTERM, as cluster managers request it."""

import contextlib
import signal
import threading
from collections.abc import Callable
from collections.abc import Iterator


class TrainingStoppedError(RuntimeError):
    """Training received SIGTERM and stopped after saving a checkpoint."""

    exit_status = 128 + signal.SIGTERM  # what a shell reports for the signal


@contextlib.contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM; the function it yields says whether one has come."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread can handle signals
        return
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
