"""All subjects on all tasks, from the same weights."""

import dataclasses
import datetime
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.harness import Worker
from benchmarks.harness import WorkerError
from benchmarks.harness import summary
from benchmarks.harness import take_turns
from benchmarks.job import Job

# Errors of float32 add up like a random walk: 2^-24 of the activations at
# each of a hundred layers, some ten roundings each; five times that. In
# bfloat16 weights and activations of 53 convolutions are rounded to 2^-9.
TOLERANCE = {
    "float32": 5 * 2**-24 * 1000**0.5,
    "bfloat16": 5 * 2**-9 * 106**0.5,
}
# Losses after updates follow from gradients, which jump where a ReLU's input
# crosses zero; PyTorch's own in float32 are a percent off those in float64.
# Leaving out momentum would change the third loss by more than this.
LATER_TOLERANCE = {"float32": 5e-3, "bfloat16": TOLERANCE["bfloat16"]}
REFERENCE = "PyTorch"
EVERYWHERE = (
    "keras_resnext folded",
    "keras_resnext constant",
    "keras_resnext grouped",
)
FIT = "keras_resnext fit"
LATE = "keras_resnext after keras"
EXPLICIT = ("keras_resnext concatenated", "keras_resnext branches")
KERAS = ("stock Keras", "zeromodels")
TORCH = ("PyTorch", "PyTorch channels_last", "PyTorch compiled")


@dataclasses.dataclass(frozen=True)
class Group:
    """A task, who does it, and how often."""

    task: str
    dtype: str
    batch: int
    subjects: tuple[str, ...]
    rounds: int
    repetitions: int
    warm_up: int = 1  # in each turn, to get its caches back

    @property
    def name(self):
        return f"{self.task}, batch {self.batch}, {self.dtype}"


GROUPS = (
    Group(
        "inference",
        "float32",
        1,
        (
            *EVERYWHERE,
            LATE,
            *EXPLICIT,
            *KERAS,
            *TORCH,
            "ONNX Runtime",
            "LiteRT",
            "OpenVINO",
        ),
        rounds=15,
        repetitions=8,
        warm_up=2,
    ),
    Group(
        "inference",
        "float32",
        8,
        (*EVERYWHERE, *EXPLICIT, *KERAS, *TORCH, "ONNX Runtime", "OpenVINO"),
        rounds=8,
        repetitions=3,
    ),
    Group(
        "inference",
        "bfloat16",
        1,
        (*EVERYWHERE, *TORCH, "OpenVINO"),
        rounds=15,
        repetitions=8,
        warm_up=2,
    ),
    Group(
        "inference",
        "bfloat16",
        8,
        (*EVERYWHERE, *TORCH, "OpenVINO"),
        rounds=8,
        repetitions=3,
    ),
    Group(
        "training",
        "float32",
        8,
        ("keras_resnext grouped", FIT, *EXPLICIT, *TORCH),
        rounds=6,
        repetitions=2,
    ),
    Group(
        "training",
        "bfloat16",
        8,
        ("keras_resnext grouped", *TORCH),
        rounds=6,
        repetitions=2,
    ),
    # Keras' own grouped convolutions take many seconds an image.
    Group(
        "training",
        "float32",
        2,
        ("keras_resnext grouped", *KERAS),
        rounds=3,
        repetitions=1,
        warm_up=0,
    ),
)
_EAGER = ("PyTorch", "PyTorch channels_last")
_RUNTIMES = ("ONNX Runtime", "LiteRT", "OpenVINO")
# The claims of `benchmarks.report`, in fewer rounds and without explicit forms.
HEADLINE = (
    Group(
        "inference",
        "float32",
        1,
        (*EVERYWHERE, LATE, "stock Keras", *_EAGER, *_RUNTIMES),
        rounds=8,
        repetitions=6,
        warm_up=2,
    ),
    Group(
        "inference",
        "float32",
        8,
        (*EVERYWHERE, "stock Keras", *_EAGER, "ONNX Runtime", "OpenVINO"),
        rounds=5,
        repetitions=2,
    ),
    Group(
        "training",
        "float32",
        8,
        ("keras_resnext grouped", FIT, *_EAGER),
        rounds=6,
        repetitions=2,
    ),
    Group(
        "training",
        "bfloat16",
        8,
        ("keras_resnext grouped", *_EAGER),
        rounds=6,
        repetitions=2,
    ),
)
# What is imported before the clock starts, and what it then measures.
IMPORTS = {
    "keras": ("", "import keras"),
    "keras_resnext": ("", "import keras_resnext"),
    "keras_resnext.ResNeXt50, with keras already there": (
        "import keras",
        "import keras_resnext; keras_resnext.ResNeXt50",
    ),
    "zeromodels": ("", "import zeromodels.models.resnext"),
    "torch": ("", "import torch"),
}


def compare(
    job: Job, groups=GROUPS, starts=3, log=print
) -> Iterator[dict[str, object]]:
    """Time groups, one after another.

    Args:
        job: Network, image size and threads for all.
        groups: What to time. Defaults to everything.
        starts: How often each process of the first group is started, for the
            time to the first result. Defaults to 3.
        log: Called with a line about what happens.

    Yields:
        A record for each group, as `benchmarks.report` reads it.

    Raises:
        ValueError: if two subjects do not compute the same, or none starts.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = dataclasses.replace(job, folder=folder)
        log("preparing weights, images and exports")
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.prepare", job.to_json()],
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).parents[1],
        )
        if done.returncode:
            raise RuntimeError(f"Preparing failed: {done.stderr[-1000:]}")
        for group in groups:
            once = group is not groups[0]
            yield _time_group(job, group, 1 if once else starts, log)


def _time_group(job, group, starts, log):
    began = time.monotonic()
    workers, found = {}, {}
    try:
        for subject in group.subjects:
            started = dataclasses.replace(
                job,
                subject=subject,
                task=group.task,
                dtype=group.dtype,
                batch=group.batch,
            )
            try:
                workers[subject] = Worker(started)
            except WorkerError as error:
                log(str(error))
                found[subject] = {"error": str(error)}
                continue
            found[subject] = {
                "first_result_s": [round(workers[subject].first_result, 2)]
            }
        if not workers:
            raise ValueError(f"{group.name}: no subject could be started.")
        for subject, difference in check(group, workers).items():
            found[subject]["difference"] = difference
        seconds = take_turns(
            workers, group.rounds, group.repetitions, group.warm_up
        )
        for subject in workers:
            found[subject].update(summary(seconds[subject]))
        for subject, worker in workers.items():
            found[subject].update(worker.close())
        for _ in range(starts - 1):
            for subject, closed in workers.items():
                again = Worker(closed.job)
                found[subject]["first_result_s"].append(
                    round(again.first_result, 2)
                )
                again.kill()
    finally:
        for worker in workers.values():
            worker.kill()
    log(f"{group.name}: {time.monotonic() - began:.0f} s")
    return {
        "task": group.task,
        "dtype": group.dtype,
        "batch": group.batch,
        "date": datetime.date.today().isoformat(),
        "subjects": found,
    }


def check(group: Group, workers: dict) -> dict[str, float]:
    """Refuse workers that do not compute what the others do.

    Args:
        group: What they work on.
        workers: By subject. PyTorch is what others are compared with, or the
            first of them where it takes no part.

    Returns:
        Each one's largest difference, relative to the largest value.

    Raises:
        ValueError: if one exceeds the tolerance; it says which.
    """
    reference = workers.get(REFERENCE) or next(iter(workers.values()))
    differences = {}
    for subject, worker in workers.items():
        found, expected = worker.results, reference.results
        pairs = [(found, expected, TOLERANCE)]
        if group.task == "training":  # losses, the first without an update
            pairs = [
                (found[:1], expected[:1], TOLERANCE),
                (found[1:], expected[1:], LATER_TOLERANCE),
            ]
        for found, expected, tolerances in pairs:
            difference = np.abs(np.subtract(found, expected)).max()
            difference /= np.abs(expected).max()
            if not difference <= tolerances[group.dtype]:
                raise ValueError(
                    f"{group.name}: {subject} must compute what "
                    f"{reference.job.subject} does; its results differ by "
                    f"{difference:.1e} of the largest, allowed are "
                    f"{tolerances[group.dtype]:.1e}."
                )
        differences[subject] = float(f"{difference:.2g}")
    return differences


def time_imports(rounds: int = 7) -> dict[str, float]:
    """Median seconds of each import, in a Python that did nothing else yet."""
    seconds = {name: [] for name in IMPORTS}
    for index in range(rounds + 1):
        for name, (before, statement) in IMPORTS.items():
            code = (
                f"{before}\nimport time; start = time.perf_counter(); "
                f"{statement}; print(time.perf_counter() - start)"
            )
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
            )
            if index:  # the first reads files from the disk
                seconds[name].append(float(done.stdout))
    return {
        name: round(statistics.median(values), 4)
        for name, values in seconds.items()
    }
