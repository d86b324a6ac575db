"""What a larger model, image or batch costs, in time and memory."""

import dataclasses
import statistics
import time

from benchmarks.harness import Worker
from benchmarks.harness import summary
from benchmarks.harness import take_turns
from benchmarks.job import Job

# What each axis changes of ResNeXt-50 (32x4d) at 224 pixels, one image for
# inference and eight for a training step.
AXES = {
    "batch": [{"batch": n} for n in (1, 2, 4, 8, 16)],
    "resolution": [{"size": n} for n in (128, 160, 224, 288, 320)],
    "depth": [{"depth": n} for n in (26, 50, 101, 152)],
    "width": [{"base_width": n} for n in (2, 4, 8, 16)],
    # At constant complexity (paper, table 2).
    "cardinality": [
        {"cardinality": c, "base_width": d}
        for c, d in ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))
    ],
}
SUBJECTS = {
    "inference": "keras_resnext folded",
    "training": "keras_resnext grouped",
}
BATCH = {"inference": 1, "training": 8}


def measure_growth(job: Job, axes=AXES, rounds=3, log=print) -> list[dict]:
    """Time each point of each axis, in turns with the network they start from.

    Args:
        job: The network to start from, and threads.
        axes: Name to the changes of `job` along it. Defaults to all.
        rounds: Turns of both. Defaults to 3.
        log: Called with a line for each point.

    Returns:
        A record for each task and point: what it changed, multiply-adds of
        its step forward, milliseconds, the ratio to the start's milliseconds
        in the same turns, and bytes.
    """
    points = []
    for task, subject in SUBJECTS.items():
        start = dataclasses.replace(
            job, subject=subject, task=task, batch=BATCH[task]
        )
        steady = Worker(start)
        try:
            for axis, changes in axes.items():
                for change in changes:
                    began = time.monotonic()
                    changed = dataclasses.replace(start, **change)
                    point = _measure(changed, steady, rounds)
                    points.append({"task": task, "axis": axis} | point)
                    log(
                        f"{task}, {_describe(change)}: "
                        f"{point['median']:.0f} ms, "
                        f"{time.monotonic() - began:.0f} s"
                    )
        finally:
            steady.kill()
    return points


def _measure(job, steady, rounds):
    worker = Worker(job)
    try:
        seconds = take_turns(
            {"point": worker, "steady": steady},
            rounds,
            repetitions=5 if job.task == "inference" else 1,
            warm_up=1,
        )
        memory = worker.close()
    finally:
        worker.kill()
    ratio = statistics.median(seconds["point"]) / statistics.median(
        seconds["steady"]
    )
    return {
        "batch": job.batch,
        "size": job.size,
        "depth": job.depth,
        "cardinality": job.cardinality,
        "base_width": job.base_width,
        "multiply_adds": job.batch * _multiply_adds(job),
        "ratio": round(ratio, 4),
        **summary(seconds["point"]),
        **memory,
    }


def _multiply_adds(job):
    import keras

    import keras_resnext

    model = keras_resnext.ResNeXt(
        job.stages,
        job.cardinality,
        job.base_width,
        input_shape=(job.size, job.size, 3),
    )
    keras.backend.clear_session()
    return keras_resnext.count_complexity(model).multiply_adds


def _describe(change):
    return ", ".join(f"{key} {value}" for key, value in change.items())
