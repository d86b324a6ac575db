"""A run knows its data and its folder, whatever has happened to them."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnext.files import held
from keras_resnext.training import Run
from keras_resnext.training import TrainingStoppedError
from keras_resnext.training import train
from keras_resnext.training.checkpoints import Checkpoints
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.fingerprint import Fingerprint
from keras_resnext.training.interrupt import stop_flag
from keras_resnext.training.log import RunLog
from tests import training_process as process
from tests.small_disk import run_on_disk

# What a file system or a data set may have for a name.
ODD_NAMES = ["a\nb", "c\x85d", "e\u2028f", "g\rh", '"i', "j\u3000k", " l "]


@pytest.fixture
def data(shades, tmp_path):
    """A copy of the three shades that may be changed."""
    return shutil.copytree(shades, tmp_path / "data")


@pytest.fixture
def recipe(toy_recipe, data):
    return dataclasses.replace(toy_recipe, dataset=str(data))


@pytest.fixture
def started(recipe, tmp_path):
    """A run that has not done a step."""
    run = Run(tmp_path / "run")
    run.start(recipe, open_dataset(recipe.dataset))
    return run


def state(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
    }


def epoch_entry(epoch):
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    return {"epoch": epoch, **dict.fromkeys(names, 0.5)}


def double(data):
    for path in [*data.glob("train/*/*.png")]:
        shutil.copy(path, path.with_name(f"again_{path.name}"))


def cut(data):
    for path in data.glob("train/*/[3-9].png"):
        path.unlink()


def crop(data):
    """The same names, and bytes that are as many as nobody expects."""
    Image.new("RGB", (9, 9)).save(data / "test" / "40" / "0.png")


def rename(data):
    (data / "train" / "40" / "0.png").rename(data / "train" / "40" / "9.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (double, "train/120 has 16 images instead of 8, train/200 has 16"),
        (cut, "train/120 has 3 images instead of 8, "),
        (crop, "test/40 has files of other names or sizes. Restore"),
        (rename, "train/40 has files of other names or sizes. Restore"),
    ],
)
def test_changed_images_are_refused(
    started, recipe, data, tmp_path, change, message
):
    before = state(started.path)
    train_up_to_start(recipe, started.path)
    change(data)
    with pytest.raises(
        ValueError, match="start a new run in another `workdir`"
    ) as refused:
        train(recipe, started.path)
    assert message in str(refused.value)
    assert f"when {started.path} started; {data} has changed: " in str(
        refused.value
    )
    assert "\n" not in str(refused.value)
    assert state(started.path) == before


def train_up_to_start(recipe, workdir):
    """Start training, and stop before anything long begins."""

    class StartedError(Exception):
        pass

    def start(data):
        raise StartedError

    with pytest.raises(StartedError):
        train(recipe, workdir, on_start=start)


def test_accents_are_the_same_however_they_are_spelled(data):
    """As one letter, or, on macOS, as a letter and its accent."""
    place = data / "train" / "40"
    found = set()
    for name in "caf\u00e9.png", "cafe\u0301.png", "cafe.png":
        (place / "0.png").rename(place / name)
        found.add(open_dataset(data).fingerprint.number)
        (place / name).rename(place / "0.png")
    assert len(found) == 2


def test_copies_and_what_is_not_trained_on_are_the_same(started, recipe, data):
    """Another time of a file, another split, a file that is no image."""
    shutil.copytree(data, data.with_name("copy"))
    copy = open_dataset(data.with_name("copy")).fingerprint
    assert copy == open_dataset(data).fingerprint
    assert copy.number == open_dataset(data).fingerprint.number
    os.utime(data / "train" / "40" / "0.png", (0, 0))
    (data / "extra" / "40").mkdir(parents=True)
    shutil.copy(data / "train/40/0.png", data / "extra/40/0.png")
    (data / "train" / "40" / "notes.txt").write_text("")
    train_up_to_start(recipe, started.path)


def test_images_that_were_added_to_an_unsplit_folder_are_refused(
    recipe, data, tmp_path
):
    """A run of it keeps its validation images; the schedule would not fit."""
    shutil.rmtree(data / "test")
    recipe = dataclasses.replace(recipe, dataset=str(data / "train"))
    run = Run(tmp_path / "run")
    run.start(recipe, run.open_dataset(recipe))
    train_up_to_start(recipe, run.path)
    shutil.copy(data / "train/40/0.png", data / "train/40/9.png")
    with pytest.raises(ValueError, match="train/40 has 7 images instead of 6"):
        train(recipe, run.path)
    assert run.open_dataset().num_examples("validation") == 6


def test_many_changes_are_counted(data):
    before = open_dataset(data).fingerprint
    for path in data.glob("*/*/0.png"):
        path.unlink()
    assert before.difference(open_dataset(data).fingerprint) == (
        "train/120 has 7 images instead of 8, train/200 has 7 images instead "
        "of 8, train/40 has 7 images instead of 8, and 3 more changes"
    )


def make_old(run):
    """What earlier versions wrote."""
    text = "".join(f"{label}\n" for label in run.labels)
    (run.path / "labels.txt").write_bytes(text.encode())
    run.data_file.unlink()
    (run.path / "labels.json").unlink()


def test_runs_of_earlier_versions_go_on(started, recipe, data):
    make_old(started)
    double(data)  # nobody knows
    assert started.labels == ["120", "200", "40"]
    train_up_to_start(recipe, started.path)
    started.start(recipe, open_dataset(data))
    assert Fingerprint.read(started.data_file) == open_dataset(data).fingerprint
    cut(data)
    with pytest.raises(ValueError, match="has changed: train/120 has"):
        train(recipe, started.path)


def test_less_data_do_not_finish_a_run_of_an_earlier_version(
    started, recipe, data
):
    """Three steps were an epoch; of a step each, they would be all three."""
    make_old(started)
    started.checkpoints.mkdir()
    (started.checkpoints / "step-3.index").write_text("")
    started.write_history([epoch_entry(1)])
    train_up_to_start(recipe, started.path)
    cut(data)
    with pytest.raises(
        ValueError, match="1 steps an epoch, .* 3 steps in 1 whole epochs"
    ):
        train(recipe, started.path)
    assert not started.model_file.exists()


@pytest.mark.parametrize("old", [False, True])
def test_class_names_of_any_characters(old, recipe, tmp_path):
    data = tmp_path / "odd"
    names = sorted(ODD_NAMES)
    for split in ("train", "val"):
        for name in names:
            place = data / split / name
            place.mkdir(parents=True)
            Image.new("L", (8, 8)).save(place / "0.png")
    recipe = dataclasses.replace(recipe, dataset=str(data), batch_size=4)
    run = Run(tmp_path / "run")
    run.start(recipe, open_dataset(data))
    assert run.labels == names
    if old:
        make_old(run)
    train_up_to_start(recipe, run.path)
    (data / "val" / names[0]).rename(data / "val" / "another")
    with pytest.raises(ValueError, match="`dataset` must have the classes"):
        train(recipe, run.path)


def test_files_of_any_names(tmp_path):
    run = Run(tmp_path)
    names = [f"/data/{name}.png" for name in ODD_NAMES] + ['"x"']
    run.write_bad_images(names[:3])
    run.write_bad_images(names)
    assert run.bad_images == names
    lines = (tmp_path / "bad_images.txt").read_text().splitlines()
    assert len(lines) == len(names)
    assert lines[-2:] == ["/data/ l .png", r'"\"x\""']
    (tmp_path / "bad_images.txt").write_text("/a b.png\n/c.png\n")  # as before
    assert run.bad_images == ["/a b.png", "/c.png"]


def test_data_dir_of_any_name(recipe, tmp_path):
    for name in ("a b", *ODD_NAMES):
        place = tmp_path / name
        place.mkdir()
        run = Run(tmp_path / "run")
        run.start(recipe, open_dataset(recipe.dataset), place)
        assert run.data_dir == str(place)


BROKEN = {
    "recipe.json": ["", "[]", '{"epochs": "a"}', "{", b"\xe4", "[" * 9999],
    "labels.json": ["", "{}", '["a", 1]', "[", b'["\xe4"]', "[" * 9999],
    "history.jsonl": [
        *("{}\n", "[]\n", "1\n", '{"epoch": 1}\n', "{\n", "\n", b"\xe4\n"),
        '{"epoch": 1, "loss": "a", "accuracy": 1, "val_loss": 1, '
        '"val_accuracy": 1}\n',
    ],
    "data.json": [
        *("", "[]", "{}", b"\xe4", '{"version": "", "parts": {"a": 1}}'),
        '{"version": "", "parts": []}',
        "[" * 9999,
    ],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in BROKEN for content in BROKEN[name]],
)
def test_broken_files_are_named(name, content, started, recipe):
    started.write_history([epoch_entry(1)])
    file = started.path / name
    content = content if isinstance(content, bytes) else content.encode()
    file.write_bytes(content)
    readers = {
        "recipe.json": lambda: started.recipe,
        "labels.json": lambda: started.labels,
        "history.jsonl": lambda: started.history,
        "data.json": lambda: started.check_data(open_dataset(recipe.dataset)),
    }
    with pytest.raises(ValueError, match=f"{name} must ") as refused:
        readers[name]()
    assert "\n" not in str(refused.value)
    assert file.read_bytes() == content


def test_an_epoch_is_added_to_the_history(started):
    """Replaced after each of 86,400 epochs, it would take a terabyte."""
    file = started.path / "history.jsonl"
    log = RunLog(started, 0, writes=True)
    for epoch in (1, 2, 3):
        before = file.stat().st_ino, file.read_bytes()
        log.add_epoch(epoch, epoch_entry(epoch))
        assert file.stat().st_ino == before[0]
        assert file.read_bytes().startswith(before[1])
    assert started.history == [epoch_entry(epoch) for epoch in (1, 2, 3)]


def test_half_a_line_of_history_is_left_out(started):
    """Of a process that was killed; the next one goes on behind the others."""
    file = started.path / "history.jsonl"
    started.write_history([epoch_entry(1), epoch_entry(2)])
    whole = file.read_bytes()
    second = whole.index(b"\n") + 1
    for end in range(second, len(whole) + 1):
        file.write_bytes(whole[:end])
        epochs = [entry["epoch"] for entry in started.history]
        assert epochs == ([1, 2] if end >= len(whole) - 1 else [1])
    for end in (second + 1, len(whole) - 2, len(whole) - 1):
        file.write_bytes(whole[:end])
        done = len(started.history)
        RunLog(started, done, writes=True).add_epoch(9, epoch_entry(done + 1))
        assert [e["epoch"] for e in started.history] == [*range(1, done + 2)]


def test_old_labels_in_another_encoding_are_named(started):
    make_old(started)
    (started.path / "labels.txt").write_bytes(b"K\xe4fer\n")
    with pytest.raises(ValueError, match=r"labels.txt must be text in UTF-8"):
        _ = started.labels


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99, "all but a byte"])
def test_a_damaged_model_is_not_finished(kept, started):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.save(started.model_file)
    model.save(started.best_model_file)
    assert started.finished
    whole = started.model_file.read_bytes()
    if kept == "all but a byte":
        weights = whole.index(model.get_weights()[0].tobytes())
        damaged = whole[:weights] + b"?" + whole[weights + 1 :]
    else:
        damaged = whole[
            : kept if isinstance(kept, int) else int(kept * len(whole))
        ]
    started.model_file.write_bytes(damaged)
    assert not started.finished
    with pytest.raises(ValueError, match="model.keras"):
        started.load_model()
    with pytest.raises(ValueError, match="must be a finished run to be ext"):
        started.extended(9)
    started.finish_with_best()
    assert started.finished
    started.best_model_file.write_bytes(damaged)
    with pytest.raises(ValueError, match="best.keras must be the model of"):
        started.finish_with_best()


def test_another_archive_is_no_model(tmp_path):
    run = Run(tmp_path)
    with zipfile.ZipFile(run.model_file, "w") as archive:
        archive.writestr("holiday.jpg", b"")
    assert not run.finished


@pytest.mark.integration
def test_a_damaged_model_is_written_again(
    toy_run, toy_recipe, tmp_path, caplog
):
    run = Run(shutil.copytree(toy_run.path, tmp_path / "run"))
    run.model_file.write_bytes(b"")
    train(toy_recipe, run.path)
    assert "model.keras is damaged, and is written again" in caplog.text
    for found, wanted in zip(
        run.load_model().get_weights(),
        toy_run.load_model().get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
    shutil.rmtree(run.checkpoints)
    run.model_file.write_bytes(b"")
    with pytest.raises(ValueError, match="there is no checkpoint to write it"):
        train(toy_recipe, run.path)


def test_a_run_has_one_writer(started, recipe):
    before = state(started.path)
    message = f"`workdir` must be .*/run is in use by process {os.getpid()} on"
    with (
        held(started.path, argument="workdir"),
        pytest.raises(BlockingIOError, match=message),
    ):
        train(recipe, started.path)
    assert state(started.path) == before
    train_up_to_start(recipe, started.path)
    assert state(started.path) == before


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal; a shell ignores it for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_wish(number):
    before = signal.getsignal(number)
    with stop_flag() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop() == number
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("interruptible")
def test_the_second_interrupt_stops_at_once(caplog):
    with stop_flag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() == signal.SIGINT
        assert "press Ctrl-C again to stop at once" in caplog.text
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_shell_has_told_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_flag() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.integration
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("sent", "last"), [(4, 5), pytest.param(3, 3, marks=pytest.mark.slow)]
)
def test_an_interrupt_saves_and_ends(sent, last, recipe, toy_run, tmp_path):
    """After the step that follows, or after an epoch's evaluation."""
    steps = []

    def interrupt(progress):
        steps.append(progress.step)
        if progress.step == sent:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(
        TrainingStoppedError, match=f"after step {last} of 9"
    ) as stopped:
        train(recipe, tmp_path / "run", on_step=interrupt)
    assert stopped.value.exit_status == 130
    run = train(recipe, tmp_path / "run", on_step=interrupt)
    assert steps == list(range(1, 10))
    for found, wanted in zip(run.history, toy_run.history, strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-3)


@pytest.mark.integration
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_deleted_folder_stops_the_run(epoch, recipe, tmp_path):
    def delete(progress):
        if progress.step == 3 * epoch - 1:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(FileNotFoundError, match="run was deleted or moved"):
        train(recipe, tmp_path / "run", on_step=delete)
    assert not (tmp_path / "run").exists()


@pytest.mark.integration
def test_a_folder_deleted_at_the_end_is_not_ready(recipe, tmp_path):
    def delete(entry):
        if entry["epoch"] == 3:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(FileNotFoundError, match="run was deleted or moved"):
        train(recipe, tmp_path / "run", on_epoch=delete)
    assert not (tmp_path / "run").exists()


def test_checkpoints_do_not_bring_a_deleted_folder_back(tmp_path):
    checkpoints = Checkpoints(
        tmp_path / "run" / "checkpoints", keep=1, value=tf.Variable(1.0)
    )
    with pytest.raises(FileNotFoundError, match="run/checkpoints"):
        checkpoints.save(1)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_has_its_name_once_it_is_written(tmp_path):
    """Half an index as the only one would end the run for good."""
    variable = tf.Variable(1.0)
    checkpoints = Checkpoints(tmp_path, keep=1, value=variable)

    def write(prefix):
        original(prefix)
        raise SystemExit  # as if it was killed

    with pytest.MonkeyPatch.context() as patch:
        original = checkpoints._checkpoint.write
        patch.setattr(checkpoints._checkpoint, "write", write)
        with pytest.raises(SystemExit):
            checkpoints.save(1)
    assert not checkpoints.steps
    assert checkpoints.restore() is None
    checkpoints.save(1)
    variable.assign(2.0)
    checkpoints.save(2)
    assert {path.stem for path in tmp_path.iterdir()} == {"step-2"}
    variable.assign(0.0)
    assert checkpoints.restore() == 2
    assert variable.numpy() == 2.0


def test_what_is_left_of_old_checkpoints_is_removed(tmp_path):
    """By processes killed while they wrote or removed one."""
    checkpoints = Checkpoints(tmp_path, keep=2, value=tf.Variable(1.0))
    for step in (1, 2, 3):
        checkpoints.save(step)
    (tmp_path / "step-1.data-00000-of-00001").write_text("")
    (tmp_path / "step-2.index").unlink()
    (tmp_path / "step-2_new_temp").mkdir()
    (tmp_path / "step-2_temp").mkdir()  # of earlier versions
    (tmp_path / "step-9.data-00000-of-00001").write_text("")  # not reached
    checkpoints.save(4)
    assert sorted(path.stem for path in tmp_path.iterdir()) == [
        *("step-3", "step-3", "step-4", "step-4", "step-9")
    ]


@pytest.mark.integration
@pytest.mark.usefixtures("interruptible")
def test_a_second_training_is_refused_until_the_first_is_killed(
    recipe, tmp_path
):
    """With SIGKILL, which cleans nothing up."""
    recipe = dataclasses.replace(recipe, epochs=1000)
    workdir = tmp_path / "run"
    first = process.start(recipe, workdir)
    try:
        for _ in range(4):
            assert first.stdout.readline()
        with pytest.raises(
            BlockingIOError, match=f"in use by process {first.pid} on "
        ):
            train(recipe, workdir)
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    steps = Checkpoints(workdir / "checkpoints", keep=1).steps
    assert steps

    def stop(progress):
        assert progress.step == steps[0] + 1
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStoppedError):
        train(
            recipe, workdir, on_step=lambda p: p.step > steps[0] + 1 or stop(p)
        )
    assert not (workdir / ".keras_resnext.lock").exists()


def start_two_workers(recipe, workdir):
    return [
        process.start(
            recipe, workdir, environment=variables, strategy="multiworker"
        )
        for variables in process.workers_of_tf_config()
    ]


@pytest.mark.slow
def test_a_second_job_of_two_workers_is_refused(recipe, tmp_path):
    """On all of its workers; the first job's are not disturbed."""
    recipe = dataclasses.replace(recipe, epochs=1000)

    first, second = start_two_workers(recipe, tmp_path / "run"), []
    try:
        for _ in range(4):
            assert first[0].stdout.readline()
        second = start_two_workers(recipe, tmp_path / "run")
        errors = []
        for worker in second:
            _, error = worker.communicate(timeout=300)
            assert worker.returncode == 1
            errors.append(error)
        assert f"in use by process {first[0].pid} on" in errors[0]
        assert f"chief cannot write to {tmp_path / 'run'}" in errors[1]
        assert all(worker.poll() is None for worker in first)
    finally:
        for worker in (*first, *second):
            worker.kill()
            worker.communicate()


@pytest.mark.slow
def test_workers_have_the_same_data(recipe, data, tmp_path):
    """In another place, if need be; not cut on the way there."""
    copy = shutil.copytree(data, tmp_path / "copy")
    places = (data, copy)

    def start(workdir):
        return [
            process.start(
                dataclasses.replace(recipe, dataset=str(place)),
                workdir,
                environment=variables,
                strategy="multiworker",
            )
            for place, variables in zip(
                places, process.workers_of_tf_config(), strict=True
            )
        ]

    assert len(process.finish(*start(tmp_path / "same"))) == 9
    (copy / "train" / "40" / "0.png").unlink()
    for worker in start(tmp_path / "other"):
        _, error = worker.communicate(timeout=300)
        assert worker.returncode == 1
        assert "`dataset` must be the same on all workers" in error


# Slow, because the folder may be deleted in the middle of a write, and the
# workers then end with other errors.
@pytest.mark.slow
def test_a_folder_deleted_under_two_workers_stops_both(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, epochs=1000)
    workers = start_two_workers(recipe, tmp_path / "run")
    try:
        for _ in range(4):
            assert workers[0].stdout.readline()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        errors = []
        for worker in workers:
            _, error = worker.communicate(timeout=300)
            assert worker.returncode == 1
            errors.append(error)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert "run was deleted or moved while this process" in errors[0]
    assert "The chief cannot write to" in errors[1]


def test_json_is_readable_by_others(started):
    assert json.loads((started.path / "labels.json").read_text()) == [
        "120",
        "200",
        "40",
    ]
    found = json.loads(started.data_file.read_text())
    assert found["parts"]["train/40"][0] == 8


def train_on_disk(place, script, recipe):
    """Run a script that mounts a disk at $0 and trains there with "$@"."""
    recipe.save(place / "recipe.json")
    train_there = [sys.executable, "-m", "keras_resnext", "train"]
    train_there += ["--recipe", str(place / "recipe.json")]
    train_there += ["--workdir", str(place / "disk" / "run")]
    return run_on_disk(place / "disk", script, train_there)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_training_goes_on_with_space(
    recipe, tmp_path
):
    """Where there is no space for the best model, then for a checkpoint."""
    script = """
mount -t tmpfs -o size=1m x $0
"$@" && exit 1
mount -o remount,size=4m x $0
"$@" && exit 2
mount -o remount,size=100m x $0
"$@" && test -s $0/run/model.keras
"""
    full, fuller = train_on_disk(tmp_path, script, recipe)
    where = tmp_path / "disk" / "run"
    assert full.endswith(f"No space left on device: '{where / 'best.keras'}'")
    assert fuller == (
        f"Error: {where}/checkpoints/step-3 cannot be written: No space left "
        "on device."
    )


@pytest.mark.integration
def test_a_read_only_disk_is_one_line(recipe, tmp_path):
    script = """
mount -t tmpfs x $0
mount -o remount,ro x $0
! "$@"
"""
    (error,) = train_on_disk(tmp_path, script, recipe)
    assert error.endswith(f"Read-only file system: '{tmp_path}/disk/run'")
