"""Pictures of several requests, run together."""

import asyncio
import collections
import concurrent.futures
import threading

import numpy as np


class Batcher:
    """Runs what waits as one batch, in a thread of its own.

    A batch takes what has come while the one before it ran, so that nothing
    waits for a batch to fill: one picture alone is run at once.

    Args:
        run: A function from an array `(pictures, ...)` to as many answers.
        largest: Most pictures of a batch.

    Example:

    >>> batcher = Batcher(network.run, 16)
    >>> scores = await asyncio.gather(*map(batcher.submit, pictures))
    """

    def __init__(self, run, largest):
        self._run = run
        self._largest = largest
        self._waiting = collections.deque()
        self._lock = threading.Lock()
        self._is_running = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "batches")

    def submit(self, picture):
        """Let a picture run with the next batch.

        Args:
            picture: Array `(...)`, of the same shape as all others.

        Returns:
            A future of its answer in the running loop. If the batch fails, it
            has the error.

        Example:

        >>> scores = await batcher.submit(pixels)
        """
        answer = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append((picture, answer))
            starts = not self._is_running
            self._is_running = True
        if starts:
            self._thread.submit(self._work)
        return answer

    def _work(self):
        """Run batches until nothing waits, in the thread.

        Here rather than in the loop, which may be busy with a request when a
        batch ends: the next one begins without it.
        """
        while batch := self._take():
            pictures, futures = zip(*batch, strict=True)
            try:
                answers, error = self._run(np.stack(pictures)), None
            except Exception as failure:
                answers, error = [None] * len(futures), failure
            futures[0].get_loop().call_soon_threadsafe(
                _answer, futures, answers, error
            )

    def _take(self):
        """The next batch; an empty one ends the work."""
        batch = []
        with self._lock:
            while self._waiting and len(batch) < self._largest:
                picture, answer = self._waiting.popleft()
                if not answer.cancelled():  # as gRPC's may be
                    batch.append((picture, answer))
            self._is_running = bool(batch)
        return batch


def _answer(futures, answers, error):
    """Answer a batch, but for those who no longer wait."""
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)
