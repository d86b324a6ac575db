"""Killed with SIGKILL at any moment: nothing is lost, and it goes on.

The moments are those of a first run, see `killed_process`.
"""

import contextlib
import json
import re
import shutil
import time

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from keras_resnext.classifier import Classifier
from keras_resnext.training import Run
from keras_resnext.training.strategy import lost_worker_explained
from tests import killed_process as process
from tests.small_disk import run_on_disk
from tests.training_process import workers_of_tf_config

KILLS, CHAINS = 25, 5
TRAINING = [
    "0 watch tensorboard/events*",
    "2 watch checkpoints/step-2_new_temp/*",
    "3 watch .best.keras.staged-*/best.keras",
    "4 watch checkpoints/step-4_new.data-*",
    "5 step",
    "6 watch checkpoints/step-6_new_temp",
    "8 watch checkpoints/step-8_new.index",
    "9 watch checkpoints/step-9_new.data-*",
]
EXPORT = [
    "0 watch .saved_model.staged-*/*/variables/*",
    "0 watch .saved_model.staged-*/*/saved_model.pb",
    "0 watch .model.tflite.staged-*/*",
    "0 watch .model.onnx.staged-*/*",
]


def read_checkpoint(index):
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


READERS = {
    ".index": read_checkpoint,
    ".json": lambda path: json.loads(path.read_bytes()),
    ".jsonl": lambda path: [*map(json.loads, path.read_text().splitlines())],
    ".keras": Classifier.load,
    ".onnx": onnxruntime.InferenceSession,
    ".pb": lambda path: (
        path.name != "saved_model.pb" or tf.saved_model.load(str(path.parent))
    ),
    ".png": lambda path: Image.open(path).load(),
    ".tflite": lambda path: Interpreter(str(path)).allocate_tensors(),
}


def files(folder):
    """Names of what is in a folder; TensorBoard's depend on the time."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "events.out.tfevents" not in path.name
    }


def assert_whole(folder):
    """Whatever has its final name can be read."""
    for name in files(folder):
        path = folder / name
        final = not re.search(r"\.staged-[^/]*(?<!\.old)/|_new", name)
        if final and path.suffix in READERS:
            READERS[path.suffix](path)


def finished(folder):
    """What has been written as a whole; a folder may wait to be put back."""
    names = {path.name for path in folder.glob("*")}
    waiting = {path.name for path in folder.glob(".*.old")}
    return {name for name in names if not name.startswith(".")} | {
        name[1:].partition(".staged-")[0] for name in waiting
    }


def assert_same_run(folder, expected):
    assert files(folder) == files(expected)
    for found, wanted in zip(
        Run(folder).history, Run(expected).history, strict=True
    ):
        assert {**found, "images_per_second": 0} == {
            **wanted,
            "images_per_second": 0,
        }
    for name in ("best.keras", "model.keras"):
        for found, wanted in zip(
            Classifier.load(folder / name).model.get_weights(),
            Classifier.load(expected / name).model.get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)


def assert_same_export(folder, expected):
    assert files(folder) == files(expected)
    for name in ("model.onnx", "saved_model/variables/variables.index"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes()
    # The labels in it have the time of day.
    np.testing.assert_array_equal(
        run_tflite(folder / "model.tflite"),
        run_tflite(expected / "model.tflite"),
    )


def run_tflite(path):
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (image,) = interpreter.get_input_details()
    (scores,) = interpreter.get_output_details()
    pixels = np.random.default_rng(0).integers(0, 256, image["shape"])
    interpreter.set_tensor(image["index"], pixels.astype(image["dtype"]))
    interpreter.invoke()
    return interpreter.get_tensor(scores["index"])


def finish(started, status=0):
    """Wait for a process, and return the lines that are its errors."""
    try:
        _, errors = started.communicate(timeout=900)
    finally:
        started.kill()
        started.wait()
    assert started.returncode == status, errors[-3000:]
    assert "Traceback" not in errors
    return [x for x in errors.splitlines() if x.startswith("Error: ")]


class Command:
    """A command, a run of it that was not killed, and its moments."""

    def __init__(self, arguments, place, watched, check, source=None):
        self.arguments, self.source = arguments, source
        self.check = check
        self.expected, self.log = place / "expected", place / "moments"
        self.watched = watched
        self.note_moments()

    def note_moments(self):
        finish(self.start(self.expected, log=self.log))
        self.moments = process.moments(self.log)

    def start(self, folder, **options):
        return process.start(
            folder, self.arguments(folder), source=self.source, **options
        )

    def line(self, folder):
        return process.command(folder, self.arguments(folder))

    def chain(self, number):
        """Every fifth of 25 moments that are spread evenly."""
        count = KILLS - len(self.watched)
        spread = np.linspace(0, len(self.moments) - 1, count).astype(int)
        chosen = self.watched + [self.moments[i] for i in spread]
        chosen.sort(key=lambda moment: int(moment.split()[0]))
        return chosen[number::CHAINS]

    def kill_again_and_again(self, folder, moments):
        """Each start goes on from the last kill; then one is left alone."""
        for moment in moments:
            before = finished(folder)
            finish(self.start(folder, kill_at=moment), -9)
            assert_whole(folder)
            assert finished(folder) >= before
        finish(self.start(folder))
        self.check(folder, self.expected)


@pytest.fixture(scope="module")
def train(toy_recipe, tmp_path_factory):
    place = tmp_path_factory.mktemp("train")
    toy_recipe.save(place / "recipe.json")

    def arguments(workdir):
        return [
            *("train", "--recipe", place / "recipe.json"),
            *("--workdir", workdir, "--deterministic"),
            *("--save-every-steps", 2),
        ]

    return Command(arguments, place, TRAINING, assert_same_run)


@pytest.fixture(scope="module")
def finetune(train, shades, tmp_path_factory):
    """An epoch of the head, then two of the whole network."""

    def arguments(workdir):
        return [
            *("finetune", shades, "--workdir", workdir),
            *("--weights", train.expected, "--batch-size", 8),
            *("--epochs", 3, "--head-epochs", 1, "--save-every-steps", 2),
            "--deterministic",
        ]

    place = tmp_path_factory.mktemp("finetune")
    return Command(arguments, place, TRAINING, assert_same_run, train.expected)


@pytest.fixture(scope="module")
def export(train, tmp_path_factory):
    def arguments(folder):
        return [
            *("export", train.expected, "--output", folder),
            *("--overwrite", "--max-images", 2),
        ]

    place = tmp_path_factory.mktemp("export")
    command = Command(arguments, place, EXPORT, assert_same_export)
    command.note_moments()  # of one over an older one
    return command


@pytest.mark.slow
def test_two_kills(train, tmp_path):
    """While it starts and while it saves; all others are slow."""
    train.kill_again_and_again(
        tmp_path / "run",
        ["0 os.rename recipe.json 1", "3 watch checkpoints/step-3_new.index"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(CHAINS))
@pytest.mark.parametrize("name", ["train", "finetune"])
def test_training(name, number, request, tmp_path):
    command = request.getfixturevalue(name)
    folder = tmp_path / "run"
    command.kill_again_and_again(folder, command.chain(number))


def test_a_lost_worker_is_one_line():
    several = object.__new__(tf.distribute.MultiWorkerMirroredStrategy)
    lost = tf.errors.UnavailableError(None, None, "Graph execution error:\n")
    with (
        pytest.raises(RuntimeError, match="Another worker has ended or cannot"),
        lost_worker_explained(several),
    ):
        raise lost
    with (
        pytest.raises(tf.errors.UnavailableError),
        lost_worker_explained(tf.distribute.get_strategy()),
    ):
        raise lost


@contextlib.contextmanager
def running(train, folder, kills=(None, None)):
    """Two workers, which do not outlive the test."""
    arguments = [*train.arguments(folder), "--strategy", "multiworker"]
    workers = [
        process.start(folder, arguments, kill_at=moment, environment=variables)
        for moment, variables in zip(kills, workers_of_tf_config(), strict=True)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


@pytest.fixture(scope="module")
def two_workers(train, tmp_path_factory):
    """A run of two workers that were not killed."""
    folder = tmp_path_factory.mktemp("two") / "run"
    with running(train, folder) as workers:
        for worker in workers:
            finish(worker)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills",
    [
        [
            ("0 os.rename recipe.json 1", None),
            (None, "2 step"),
            ("4 watch checkpoints/step-4_new.data-*", None),
            ("6 step", "6 step"),
            (None, "9 step"),
        ],
        [
            (None, "1 step"),
            ("3 watch .best.keras.staged-*/best.keras", None),
            ("5 step", "5 step"),
            (None, "8 step"),
            ("9 open .model.keras.staged/model.keras 2", None),
        ],
    ],
    ids=["chief first", "worker first"],
)
def test_two_workers(kills, train, two_workers, tmp_path):
    """Whoever is left ends with one line; both are started again."""
    folder = tmp_path / "run"
    for moments in kills:
        with running(train, folder, moments) as workers:
            killed = [w for w, m in zip(workers, moments, strict=True) if m]
            for worker in killed:
                finish(worker, -9)
            started = time.monotonic()
            for worker in workers:
                if worker in killed:
                    continue
                (error,) = finish(worker, 1)
                assert error == (
                    "Error: Another worker has ended or cannot be reached; "
                    "start all of them again to resume."
                )
        assert time.monotonic() - started < 120
        assert_whole(folder)
    with running(train, folder) as workers:
        for worker in workers:
            finish(worker)
    assert_same_run(folder, two_workers)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(CHAINS))
def test_export(number, export, tmp_path):
    """Over an older export, all of which is there at any moment."""
    folder = shutil.copytree(export.expected, tmp_path / "export")
    export.kill_again_and_again(folder, export.chain(number))


# Where there is too little space for the first file and for later ones, then
# none to write at all; what is there after each try is copied.
DISK = """
mount -t tmpfs -o size=100m x $0
cp -a $BEFORE $0/run 2>/dev/null
for size in $SIZES; do
    mount -o remount,size=$size x $0 || exit 1
    "$@" && exit 2
    cp -a $0/run $0.$size || mkdir $0.$size
done
mount -o remount,size=100m,ro x $0
"$@" && exit 3
cp -a $0/run $0.ro
mount -o remount,rw x $0
"$@" && cp -a $0/run $0.done
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "again"),
    [
        ("train", ["4k", "16k", "1m", "6m", "14m"], False),
        ("finetune", ["4k", "1m", "14m"], False),
        ("export", ["4k", "1m", "4m", "7m"], False),
        ("export", ["9m", "10m"], True),
    ],
)
def test_full_and_read_only_disks(
    name, sizes, again, request, tmp_path, monkeypatch
):
    """One line that names the file and the reason; then it goes on."""
    command = request.getfixturevalue(name)
    monkeypatch.setenv("BEFORE", str(command.expected) if again else "")
    monkeypatch.setenv("SIZES", " ".join(sizes))
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(process.ROOT)
    disk = tmp_path / "disk"
    folder = disk / "run"
    errors = run_on_disk(disk, DISK, command.line(folder))
    reasons = ["No space left on device"] * len(sizes)
    reasons.append("Read-only file system")
    for error, reason in zip(errors, reasons, strict=True):
        assert reason in error
        assert str(folder) in error
        assert "{{" not in error
    for size in sizes:
        assert_whole(tmp_path / f"disk.{size}")
        if again:
            command.check(tmp_path / f"disk.{size}", command.expected)
    assert files(tmp_path / "disk.ro") == files(tmp_path / f"disk.{sizes[-1]}")
    command.check(tmp_path / "disk.done", command.expected)
