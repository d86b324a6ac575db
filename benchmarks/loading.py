"""Input pipelines: images per second, and the cost of the training loop.

JPEG photographs of 500x375 pixels become batches of random resized crops of
224 pixels, half of them flipped, in this package's pipeline and torchvision's.
Steps of `keras_resnext.training.train`, which reads such files, are timed
beside the bare compiled step on a batch in memory.
"""

import dataclasses
import itertools
import pathlib
import queue
import statistics
import tempfile
import threading

import numpy as np

from benchmarks.harness import Worker
from benchmarks.harness import summary
from benchmarks.harness import take_turns
from benchmarks.job import Job

IMAGES, BATCH, BATCHES = 1024, 32, 8
SHAPE = (500, 375)  # width and height of many images of ImageNet
TASKS = {
    "loading": ("keras_resnext images", "torchvision images"),
    "training": ("keras_resnext loop", "keras_resnext grouped"),
}


def write_photographs(folder):
    """Write random crops of two photographs, a class each."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for number, photo in enumerate(load_sample_images().images):
        height, width = photo.shape[:2]
        for split, count in (("train", IMAGES // 2), ("val", 2)):
            place = pathlib.Path(folder, split, str(number))
            place.mkdir(parents=True)
            for index in range(count):
                side = rng.uniform(0.6, 1)
                left = int(rng.uniform(0, 1 - side) * width)
                top = int(rng.uniform(0, 1 - side) * height)
                box = (
                    left,
                    top,
                    left + int(side * width),
                    top + int(side * height),
                )
                part = Image.fromarray(photo).resize(SHAPE, box=box)
                part.save(place / f"{index}.jpg", quality=90)


def our_images(job):
    """Build a function that takes some batches from our pipeline."""
    import tensorflow as tf

    from keras_resnext.training.datasets import open_dataset
    from keras_resnext.training.pipeline import training_batches

    tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    data = open_dataset(job.folder)
    recipe = _recipe(job, BATCH)
    batches = itertools.chain.from_iterable(
        training_batches(data, recipe, epoch) for epoch in itertools.count()
    )
    return lambda: _take([images for images, _, _ in _some(batches)])


def their_images(job):
    """The same for torchvision's, with a process for each thread."""
    import torch

    from benchmarks.subjects import import_torchvision

    torchvision = import_torchvision()
    transforms = torchvision.transforms
    torch.set_num_threads(1)
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(job.size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = torch.utils.data.DataLoader(
        torchvision.datasets.ImageFolder(f"{job.folder}/train", change),
        batch_size=BATCH,
        shuffle=True,
        num_workers=job.threads,
        persistent_workers=True,
    )

    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    return lambda: _take([images for images, _ in _some(batches)])


def _some(batches):
    return itertools.islice(batches, BATCHES)


def _take(images):
    """A pixel, which shows that the batches have arrived."""
    assert len(images) == BATCHES
    return float(images[-1][0, 0, 0, 0])


def our_loop(job):
    """Build a function that lets `train`, which waits, do one step."""
    import tensorflow as tf

    from keras_resnext.training import train

    tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    go, done = queue.Queue(), queue.Queue()

    def on_step(progress):
        done.put(progress.last_loss)
        go.get()

    workdir = tempfile.mkdtemp(prefix="loop-")
    threading.Thread(
        target=train,
        args=(_recipe(job, job.batch), workdir),
        kwargs={"strategy": "one", "on_step": on_step},
        daemon=True,
    ).start()
    waits = itertools.chain([False], itertools.repeat(True))

    def work():
        if next(waits):
            go.put(None)
        return done.get()

    return work


def _recipe(job, batch):
    from keras_resnext.training import Recipe

    return Recipe(
        dataset=job.folder,
        model=f"resnext{job.depth}_{job.cardinality}x{job.base_width}d",
        image_size=job.size,
        batch_size=batch,
        epochs=1000,
        crop_padding=0,
        random_resized_crop_scale=0.08,
        flip=True,
        learning_rate=1e-4,
    )


def measure_loading(job: Job, rounds: int = 6, log=print) -> dict:
    """Time both tasks.

    Args:
        job: Network, image size and threads.
        rounds: Turns of each subject. Defaults to 6.
        log: Called with a line for each task.

    Returns:
        Seconds by task and subject, as `harness.summary` has them, and the
        ratios of medians.
    """
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(folder)
        for task, subjects in TASKS.items():
            batch = 8 if task == "training" else BATCH
            workers = {}
            try:
                for subject in subjects:
                    # The bare step reads no files.
                    files = folder if subject != "keras_resnext grouped" else ""
                    asked = dataclasses.replace(
                        job,
                        subject=subject,
                        task=task,
                        batch=batch,
                        folder=files,
                    )
                    workers[subject] = Worker(asked)
                seconds = take_turns(workers, rounds, repetitions=3, warm_up=1)
            finally:
                for worker in workers.values():
                    worker.kill()
            ours, theirs = (
                statistics.median(seconds[subject]) for subject in subjects
            )
            results[task] = {
                "subjects": {s: summary(seconds[s]) for s in subjects},
                "ratio": round(ours / theirs, 4),
            }
            log(f"{task}: {subjects[0]} / {subjects[1]} = {ours / theirs:.3f}")
    images = BATCH * BATCHES
    for values in results["loading"]["subjects"].values():
        values["images_per_second"] = round(1e3 * images / values["median"], 1)
    return results
