"""Processes that take turns, so that all see the machine in the same state."""

import contextlib
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.job import Job


class WorkerError(RuntimeError):
    """A worker ended before it answered."""


class Worker:
    """A process that prepares a job and then works on request.

    Between its turns it is stopped with a signal, because the thread pools of
    some libraries spin for a while after their work and would take processor
    time from whoever is next.

    Args:
        job: What to time.

    Attributes:
        pid: Number of the process.
        first_result: Seconds from starting Python to the first result.
        results: Logits, or the losses of the first three training steps.

    Raises:
        WorkerError: if the process ends; with the last lines it printed.
    """

    def __init__(self, job: Job):
        self.job = job
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`close`)
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            cwd=pathlib.Path(__file__).parents[1],
        )
        self.pid = self._process.pid
        answer = self._read()
        self.first_result = answer["first_result_at"] - started
        self.results = answer["results"]
        self._process.send_signal(signal.SIGSTOP)

    def run(self, repetitions: int, warm_up: int = 0) -> list[float]:
        """Seconds of each repetition, after some that do not count."""
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # `_read` says why it ended
            self._process.stdin.write(f"{warm_up + repetitions}\n")
        seconds = self._read()["seconds"]
        self._process.send_signal(signal.SIGSTOP)
        return seconds[warm_up:]

    def close(self) -> dict[str, int]:
        """End it; bytes resident after imports, and most after that."""
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        memory = self._read()
        self.kill()
        return memory

    def kill(self):
        """End it at once, stopped or not; again does no harm."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def _read(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        self.kill()
        raise WorkerError(
            f"{self.job.subject} ended with {self._process.returncode}: "
            + " / ".join(lines[-3:])
        )


def take_turns(
    workers: dict, rounds: int, repetitions: int, warm_up: int
) -> dict:
    """Let each worker run in each round; seconds by the workers' keys."""
    seconds = {key: [] for key in workers}
    for index in range(rounds):
        # Backwards every other time: none always follows the same one.
        for key in list(workers)[:: 1 if index % 2 else -1]:
            seconds[key] += workers[key].run(repetitions, warm_up)
    return seconds


def summary(seconds: list[float]) -> dict:
    """Median and quartiles, in milliseconds."""
    if len(seconds) < 2:
        return {"median": 1e3 * seconds[0], "runs": 1}
    low, median, high = statistics.quantiles(
        (1e3 * s for s in seconds), n=4, method="inclusive"
    )
    return {
        "median": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "runs": len(seconds),
    }
