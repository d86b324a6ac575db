"""Eight bits and fewer, after training and in training, on Fashion-MNIST.

The published network is trained on for one epoch, by the same recipe and with
the same seeds: in floating point, rounded to eight bits, and with weights
rounded to four and three. Files of eight bits run in LiteRT; fewer are
simulated in Keras, because no runtime here computes with them.
"""

import base64
import dataclasses
import importlib.metadata
import pathlib
import shutil
import statistics
import tempfile
import time

import numpy as np

from benchmarks import machine
from benchmarks.study import read_records
from benchmarks.study import right_images
from benchmarks.study import write_records
from benchmarks.verdict import p_text
from benchmarks.verdict import paired
from keras_resnext.training import RECIPES

SEEDS = 3
CALIBRATION = 100  # images, the default of `keras-resnext export`
RECIPE = dataclasses.replace(
    RECIPES["fashion_mnist"],
    weights="fashion_mnist",
    epochs=1,
    warmup_epochs=0,
    learning_rate=0.001,  # a hundredth of what it was trained with
)
# Whose steps are timed.
NETWORKS = (("resnext29_8x4d_f64", 64, 28), ("resnext50_32x4d", 8, 224))
# Bits of the weights in training, and what is measured of the network.
RUNS = {
    0: ("float32", "dynamic", "int8", "4-bit weights", "3-bit weights"),
    8: ("QAT int8",),
    4: ("QAT 4-bit weights",),
    3: ("QAT 3-bit weights",),
}
QUESTIONS = (
    ("int8", "float32"),
    ("QAT int8", "float32"),
    ("QAT int8", "int8"),
    ("4-bit weights", "float32"),
    ("QAT 4-bit weights", "float32"),
    ("QAT 4-bit weights", "4-bit weights"),
    ("3-bit weights", "float32"),
    ("QAT 3-bit weights", "float32"),
    ("QAT 3-bit weights", "3-bit weights"),
)


def run_quantization(
    path: pathlib.Path,
    runs: pathlib.Path,
    *,
    recipe=RECIPE,
    seeds: int = SEEDS,
    log=print,
) -> list[dict]:
    """Train and measure what has no record yet.

    Args:
        path: JSON lines, one a network and way of rounding it.
        runs: Folder of the run under way, which goes on if it was stopped.
        recipe: A `Recipe` in floating point.
        seeds: Number of seeds.
        log: Called with a line for each record.

    Returns:
        The records that there are.
    """
    import keras

    from keras_resnext import Classifier
    from keras_resnext.training import train

    records = read_records(path)
    for bits, ways in RUNS.items():
        for seed in range(seeds):
            done = {r["way"] for r in records if r["seed"] == seed}
            if {*ways} <= done:
                continue
            folder = runs / f"{bits}_{seed}"
            run = train(
                dataclasses.replace(recipe, weight_bits=bits, seed=seed),
                folder,
                keep=1,
            )
            classifier = Classifier.load(run.path)
            for way, right in measure(classifier, run.open_dataset(), bits):
                records.append(_record(way, seed, right))
                log(describe(records[-1]))
            write_records(path, records)
            shutil.rmtree(folder)
            keras.backend.clear_session()
    return records


def measure(classifier, data, bits):
    """Which test images a network gets right, in each way of rounding it.

    Args:
        classifier: The trained `Classifier`.
        data: Its `ImageData`.
        bits: Of its weights in training, 0 for a plain network.

    Yields:
        A way, see `RUNS`, and bool `(images,)`.
    """
    from keras_resnext import quantization_aware
    from keras_resnext.export import Session
    from keras_resnext.export import to_tflite
    from keras_resnext.export.verify import Limits
    from keras_resnext.training.datasets import read_images

    transform, model = classifier.transform, classifier.model
    split = data.val_split
    images, classes = read_images(
        data, split, transform, count=data.num_examples(split)
    )
    ranges, _ = read_images(
        data, "train", transform, count=CALIBRATION, shuffle_seed=0
    )

    def right(scores):
        return np.argmax(scores, axis=-1) == classes

    def predicted(network):
        return right(network.predict(transform.normalize(images), verbose=0))

    if 0 < bits < 8:
        yield f"QAT {bits}-bit weights", predicted(model)
        return
    session = Session(classifier, images=images)

    def file(quantize, calibration=None):
        with tempfile.TemporaryDirectory() as folder:
            artifact = to_tflite(
                session,
                pathlib.Path(folder, "model.tflite"),
                quantize=quantize,
                calibration=calibration,
                limits=Limits(),
            )
        return right(artifact.scores)

    if bits == 8:
        yield "QAT int8", file("int8")
        return
    yield "float32", predicted(model)
    yield "dynamic", file("dynamic")
    yield "int8", file("int8", ranges)
    for fewer in (4, 3):
        rounded = quantization_aware(
            model, weight_bits=fewer, calibration=transform.normalize(ranges)
        )
        yield f"{fewer}-bit weights", predicted(rounded)


def measure_steps(
    networks=NETWORKS, rounds: int = 4, calls: int = 5
) -> list[dict]:
    """Time a step of `fit` with fake quantisation beside a plain one.

    The networks take turns in one process.

    Args:
        networks: Name, batch size and image size of each network.
        rounds: Turns of each state.
        calls: Steps in a turn, of which the first is not counted.

    Returns:
        A record for each network and state: milliseconds, and the ratio to
        the plain network's.
    """
    records = []
    for name, batch, size in networks:
        steps = dict(_make_steps(name, batch, size))
        times = {state: [] for state in steps}
        for _ in range(rounds):
            for state, step in steps.items():
                step()
                for _ in range(calls - 1):
                    started = time.perf_counter()
                    step()
                    times[state].append(time.perf_counter() - started)
        plain = statistics.median(times["plain"])
        for state, seconds in times.items():
            median = statistics.median(seconds)
            records.append(
                {
                    "network": name,
                    "batch": batch,
                    "state": state,
                    "ms": 1000 * median,
                    "ratio": median / plain,
                }
            )
    return records


def _make_steps(name, batch, size):
    """A traced training step for each state of the ranges and statistics."""
    import keras
    import tensorflow as tf

    from keras_resnext import Observer
    from keras_resnext import quantization_aware
    from keras_resnext.variants import build

    rng = np.random.default_rng(0)
    images = rng.random((batch, size, size, 3)).astype("float32")
    data = tf.data.Dataset.from_tensors((images, np.arange(batch) % 10))
    for state, observer in (
        ("plain", None),
        ("batch statistics", Observer()),
        ("frozen statistics", Observer(freeze_statistics_after=0)),
        (
            "frozen ranges too",
            Observer(freeze_statistics_after=0, freeze_ranges_after=1),
        ),
    ):
        model = build(
            name, weights=None, input_shape=(size, size, 3), classes=10
        )
        if observer is not None:
            model = quantization_aware(model, observers=observer)
        model.compile(
            keras.optimizers.SGD(0.001, momentum=0.9),
            "sparse_categorical_crossentropy",
        )
        model.make_train_function()
        batches = iter(data.repeat())

        def step(model=model, batches=batches):
            float(model.train_function(batches)["loss"])

        step()
        yield state, step


def _record(way, seed, right):
    about = machine.describe()
    return {
        "way": way,
        "seed": seed,
        "error": 100 * float(1 - right.mean()),
        "right": base64.b64encode(np.packbits(right)).decode(),
        "images": len(right),
        "date": about["date"],
        "cpu": about["cpu"],
        "instructions": about["instructions"],
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras", "tensorflow", "ai-edge-litert")
        },
    }


def describe(record: dict) -> str:
    """A record as a line of text.

    Args:
        record: One of `run_quantization`.
    """
    return f"{record['way']}, seed {record['seed']}: {record['error']:.2f} %"


def report(records: list[dict]) -> str:
    """A table of errors, and what paired tests say, in Markdown.

    Args:
        records: Result of `run_quantization`.
    """
    rights = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        rights.setdefault(record["way"], []).append(right_images(record))
    seeds = max(map(len, rights.values()))
    columns = [f"seed {seed}" for seed in range(seeds)]
    lines = [
        f"| rounding | {' | '.join(columns)} | mean |",
        f"|---|{'---|' * (seeds + 1)}",
    ]
    for way, found in rights.items():
        errors = [100 * (1 - right.mean()) for right in found]
        cells = [f"{error:.2f}" for error in [*errors, np.mean(errors)]]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    lines += [
        "",
        "| question | difference in points | over seeds | "
        "by image, median seed |",
        "|---|---|---|---|",
    ]
    for one, other in QUESTIONS:
        if len(rights.get(one, ())) == len(rights.get(other, ())) > 1:
            answer = paired(rights[one], rights[other], len(QUESTIONS))
            low, high = answer["interval"]
            lines.append(
                f"| {one} instead of {other} | {answer['difference']:+z.2f} "
                f"({low:+z.2f} to {high:+z.2f}) | {p_text(answer['p_seeds'])} "
                f"| {p_text(answer['p_images'])} |"
            )
    return "\n".join(lines) + "\n"
