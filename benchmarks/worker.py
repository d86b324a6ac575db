"""One subject in a process of its own; `benchmarks.harness` starts it.

    python -m benchmarks.worker JOB

It prepares the job, does it once, then reads a number of repetitions from
each line of its input and answers with their seconds. Answers are JSON, a
line each. At the end of its input it answers with its memory and ends.
"""

import ctypes
import importlib
import json
import os
import pathlib
import re
import signal
import sys
import time

import numpy as np

from benchmarks.job import Job
from benchmarks.subjects import SUBJECTS

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main():
    # A worker that is stopped when its parent is killed would stay for ever.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values):
        answers.write(json.dumps(values) + "\n")

    job = Job.from_json(sys.argv[1])
    subject = SUBJECTS[job.subject]
    for library in subject.libraries:
        importlib.import_module(library)
    imported = memory("VmRSS")
    work = subject.prepare(job)
    prepared = memory("VmHWM")
    first = np.asarray(work(), "float64")
    at = time.monotonic()  # one clock for all processes
    # A network that trains from the same weights on the same images goes
    # through the same losses, if its gradients and updates are the same.
    results = [first] + [work() for _ in range(2)]
    if job.task == "inference":
        results = first
    answer(first_result_at=at, results=np.asarray(results).tolist())

    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - start)
        assert np.all(np.isfinite(result)), result
        answer(seconds=seconds)
    answer(imported=imported, prepared=prepared, peak=memory("VmHWM"))


def memory(kind):
    """Bytes: resident now (`VmRSS`) or at most so far (`VmHWM`)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) * 1024


if __name__ == "__main__":
    main()
