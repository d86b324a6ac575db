"""Equal on one replica and many; equal whatever stopped it on the way."""

import dataclasses
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from keras_resnext.training import Recipe
from keras_resnext.training.run import Run
from tests import training_process as process

pytestmark = pytest.mark.integration

# Replicas add up in another order, so that losses part by the rounding of
# float64, 1e-16, and training makes that a little more. In float32 it is 5e-7
# until the first ReLU whose input is within rounding of zero, and percents
# from there on: see `training_process`.
LOSSES = {"rtol": 1e-9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shades in noise, 56 images to train on, 9 to hold out."""
    root = tmp_path_factory.mktemp("shades")
    rng = np.random.default_rng(0)
    for split, count in (("train", 56), ("test", 9)):
        for i in range(count):
            shade = (40, 120, 200)[i % 3]
            place = root / split / str(shade)
            place.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(-40, 40, (12, 12, 3)) + shade
            Image.fromarray(noise.astype("uint8")).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def sgd(folder):
    return Recipe(
        dataset=str(folder),
        model="resnext11_2x4d",
        image_size=8,
        batch_size=8,
        epochs=3,  # of seven steps
        warmup_epochs=1.0,
        learning_rate=0.00625,
        crop_padding=1,
        flip=True,
        color_jitter=0.2,
        sync_batch_norm=True,
    )


@pytest.fixture(scope="module")
def adamw(sgd):
    return dataclasses.replace(
        sgd,
        optimizer="adamw",
        learning_rate=0.003125,
        weight_decay=0.05,
        global_clipnorm=0.5,
        ema_decay=0.9,
    )


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def recipe(request):
    return request.getfixturevalue(request.param)


def run_once(recipe, workdir, **options):
    process_ = process.start(recipe, workdir, strategy="one", **options)
    losses = process.finish(process_)
    assert len(losses) == 21
    assert np.mean(losses[-7:]) < 0.8 * np.mean(losses[:3])
    return Run(workdir), losses


@pytest.fixture(scope="module")
def exact(recipe, tmp_path_factory):
    """A run on one replica in float64, and its losses."""
    return run_once(recipe, tmp_path_factory.mktemp("exact"), float64=True)


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    """A run on one replica, to the bit, and its losses."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return run_once(recipe, workdir, deterministic=True)


def assert_same_history(run, expected, **tolerance):
    for found, wanted in zip(run.history, expected.history, strict=True):
        for key in ("loss", "val_loss", "val_accuracy"):
            np.testing.assert_allclose(found[key], wanted[key], **tolerance)


def assert_same_weights(run, expected, **tolerance):
    for found, wanted in zip(
        run.load_model().get_weights(),
        expected.load_model().get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, **tolerance)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param("sgd", marks=pytest.mark.slow), "adamw"],
    indirect=True,
)
def test_two_mirrored_replicas(recipe, exact, tmp_path):
    expected, losses = exact
    found = process.finish(
        process.start(
            recipe, tmp_path, cpus=2, strategy="mirrored", float64=True
        )
    )
    np.testing.assert_allclose(found, losses, **LOSSES)
    # Evaluation takes its pictures in float32.
    assert_same_history(Run(tmp_path), expected, rtol=1e-5)


@pytest.mark.slow
def test_statistics_of_all_replicas_are_kept(adamw, tmp_path):
    """Unsynchronised, averaged: whenever it is saved, and in one process."""
    recipe = dataclasses.replace(adamw, sync_batch_norm=False, epochs=2)
    for steps in (0, 3):
        process.finish(
            process.start(
                recipe,
                tmp_path / str(steps),
                cpus=2,
                strategy="mirrored",
                deterministic=True,
                save_every_steps=steps,
                runs=2,
            )
        )
    ours, theirs = (Run(tmp_path / str(steps)) for steps in (3, 0))
    assert_same_history(ours, theirs, rtol=1e-5)
    assert_same_weights(ours, theirs, rtol=1e-4, atol=1e-5)
    again = Run(tmp_path / "0.again")
    assert_same_weights(again, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_workers_that_differ_do_not_go_on(sgd, tmp_path):
    options = {"save_every_steps": 3, "deterministic": True}
    process.finish(
        *start_workers(sgd, tmp_path, process.workers_of_tf_config()),
        statuses=(0,),
    )
    # What a worker with an older view of the folder sees.
    stale = tmp_path / "stale"
    shutil.copytree(tmp_path, stale, ignore=shutil.ignore_patterns("stale"))
    for run in (tmp_path, stale):
        (run / "model.keras").unlink()
    (stale / "checkpoints" / "step-21.index").unlink()
    workers = [
        process.start(sgd, place, environment=variables, **options)
        for place, variables in zip(
            (tmp_path, stale), process.workers_of_tf_config(), strict=True
        )
    ]
    for worker in workers:
        _, err = worker.communicate(timeout=300)
        assert worker.returncode == 1
        assert "must resume from the same checkpoint" in err
        assert "of steps 14, 21" in err


def start_workers(recipe, workdir, environments, **options):
    return [
        process.start(
            recipe, workdir, environment=variables, strategy="auto", **options
        )
        for variables in environments
    ]


@pytest.mark.parametrize(
    ("workers", "recipe"),
    [
        pytest.param(
            process.workers_of_tf_config, "adamw", marks=pytest.mark.slow
        ),
        (process.workers_of_slurm, "adamw"),
        pytest.param(
            process.workers_of_tf_config, "sgd", marks=pytest.mark.slow
        ),
    ],
    indirect=["recipe"],
)
def test_two_workers(workers, recipe, exact, tmp_path):
    expected, losses = exact
    found = process.finish(
        *start_workers(recipe, tmp_path, workers(), float64=True)
    )
    np.testing.assert_allclose(found, losses, **LOSSES)
    assert_same_history(Run(tmp_path), expected, rtol=1e-5)


@pytest.mark.slow
def test_accumulation_is_the_whole_batch(sgd, tmp_path):
    """With batch norms frozen, which would see one part at a time."""
    _, source = run_once(sgd, tmp_path / "source")
    frozen = dataclasses.replace(
        sgd,
        weights=str(tmp_path / "source" / "model.keras"),
        freeze_until="conv4",
        learning_rate=0.0003125,
    )
    whole, parts = (
        process.finish(
            process.start(
                dataclasses.replace(
                    frozen, gradient_accumulation_steps=accumulate
                ),
                tmp_path / str(accumulate),
                strategy="one",
                float64=True,
            )
        )
        for accumulate in (1, 2)
    )
    np.testing.assert_allclose(parts, whole, **LOSSES)
    assert source != whole


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sgd"], indirect=True)
def test_steps_in_one_call_are_the_same(recipe, undisturbed, tmp_path):
    expected, losses = undisturbed
    found = process.finish(
        process.start(
            recipe,
            tmp_path,
            strategy="one",
            steps_per_execution=3,
            deterministic=True,
        )
    )
    # Seven steps an epoch: calls of 3, 3 and 1.
    means = [
        np.mean(losses[7 * epoch + a : 7 * epoch + b])
        for epoch in range(3)
        for a, b in ((0, 3), (3, 6), (6, 7))
    ]
    np.testing.assert_allclose(found, means, rtol=1e-6)
    assert_same_weights(Run(tmp_path), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "trials"), [("sgd", 4), ("adamw", 4)], indirect=["recipe"]
)
def test_killed_and_started_again(trials, recipe, undisturbed, tmp_path):
    """At steps drawn at random."""
    expected, losses = undisturbed
    rng = random.Random(f"{recipe.optimizer}, {trials}")
    options = {"strategy": "one", "deterministic": True, "save_every_steps": 2}
    for trial in range(trials):
        workdir = tmp_path / str(trial)
        kill_at = rng.randint(1, 20)
        process.finish(
            process.start(recipe, workdir, kill_at_step=kill_at, **options),
            statuses=(-9,),
        )
        rest = process.finish(process.start(recipe, workdir, **options))
        assert 21 - kill_at <= len(rest) <= 21 - kill_at + 2
        np.testing.assert_allclose(rest, losses[-len(rest) :], rtol=1e-6)
        assert_same_history(Run(workdir), expected, rtol=1e-6)
        assert_same_weights(Run(workdir), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_one_of_two_workers_killed(killed, sgd, tmp_path):
    options = {"deterministic": True, "save_every_steps": 2}
    expected = tmp_path / "expected"
    process.finish(
        *start_workers(sgd, expected, process.workers_of_tf_config(), **options)
    )
    workdir = tmp_path / "killed"
    workers = [
        process.start(
            sgd,
            workdir,
            environment=variables,
            **options,
            **({"kill_at_step": 10} if index == killed else {}),
        )
        for index, variables in enumerate(process.workers_of_tf_config())
    ]
    # What manages the job ends the others, which would wait.
    workers[killed].communicate(timeout=300)
    assert workers[killed].returncode == -9
    process_left = workers[1 - killed]
    process_left.kill()
    process_left.communicate()
    process.finish(
        *start_workers(sgd, workdir, process.workers_of_tf_config(), **options)
    )
    assert_same_weights(Run(workdir), Run(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("recipe", ["adamw"], indirect=True)
def test_sigterm_saves_and_ends(recipe, undisturbed, tmp_path):
    expected, losses = undisturbed
    options = {"strategy": "one", "deterministic": True}
    first = process.finish(
        process.start(recipe, tmp_path, terminate_at_step=9, **options),
        statuses=(143,),
    )
    rest = process.finish(process.start(recipe, tmp_path, **options))
    # The step under way is finished, and none is lost.
    np.testing.assert_allclose(first + rest, losses, rtol=1e-6)
    assert_same_weights(Run(tmp_path), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_sigterm_of_one_worker_stops_both(sgd, tmp_path):
    workers = [
        process.start(sgd, tmp_path, environment=variables, **options)
        for variables, options in zip(
            process.workers_of_tf_config(),
            ({}, {"terminate_at_step": 9}),
            strict=True,
        )
    ]
    assert len(process.finish(*workers, statuses=(143,))) == 10
    saved = {p.name for p in (tmp_path / "checkpoints").glob("*.index")}
    assert saved == {"step-7.index", "step-10.index"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sgd"], indirect=True)
def test_a_damaged_checkpoint_is_passed_over(recipe, undisturbed, tmp_path):
    expected, losses = undisturbed
    options = {"strategy": "one", "deterministic": True, "save_every_steps": 3}
    process.finish(
        process.start(recipe, tmp_path, kill_at_step=13, **options),
        statuses=(-9,),
    )
    checkpoints = tmp_path / "checkpoints"
    (newest,) = checkpoints.glob("step-12.data-*")
    whole = newest.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("copy"))
        (copy / "checkpoints" / newest.name).write_bytes(damaged)
        again = process.start(recipe, copy, **options)
        out, err = again.communicate(timeout=300)
        assert again.returncode == 0, err[-2000:]
        assert "step-12 is damaged" in err
        np.testing.assert_allclose(
            [float(line) for line in out.splitlines()],
            losses[9:],
            rtol=1e-6,
        )
        assert_same_weights(Run(copy), expected, rtol=1e-6, atol=1e-7)
        shutil.rmtree(copy)
