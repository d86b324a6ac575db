"""The harness that times others: its protocol, its checks, its tables."""

import base64
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from scipy.stats import ttest_1samp

import keras_resnext
from benchmarks import compare
from benchmarks import exporting
from benchmarks import growth
from benchmarks import machine
from benchmarks import on_tensorflow
from benchmarks import quantization
from benchmarks import report
from benchmarks import study
from benchmarks import tuning
from benchmarks import verdict
from benchmarks.harness import Worker
from benchmarks.harness import WorkerError
from benchmarks.harness import summary
from benchmarks.harness import take_turns
from benchmarks.job import Job
from keras_resnext.training import RECIPES

pytestmark = pytest.mark.integration

SMALL = Job("", size=64, depth=26)


def stored(name):
    return json.loads((report.FOLDER / "avx512" / name).read_text())


def test_job_survives_the_command_line():
    job = Job("LiteRT", batch=3, folder="a b")
    assert Job.from_json(job.to_json()) == job


def test_summary_is_numpys():
    seconds = list(np.random.default_rng(0).gamma(2, size=31))
    found = summary(seconds)
    low, median, high = 1e3 * np.quantile(seconds, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(
        [*found["quartiles"], found["median"]], [low, high, median], atol=1e-3
    )
    assert found["runs"] == 31
    assert summary([0.5]) == {"median": 500.0, "runs": 1}


def test_everyone_takes_every_turn():
    order = []

    def worker(name):
        def run(repetitions, warm_up):
            order.append(name)
            return [len(order)] * repetitions

        return types.SimpleNamespace(run=run)

    seconds = take_turns(
        {name: worker(name) for name in "abc"}, 2, repetitions=2, warm_up=1
    )
    assert "".join(order) == "cbaabc"
    assert seconds == {"a": [3, 3, 4, 4], "b": [2, 2, 5, 5], "c": [1, 1, 6, 6]}


def test_a_worker_works_and_its_end_is_explained():
    worker = Worker(dataclasses.replace(SMALL, subject="keras_resnext folded"))
    try:
        assert np.shape(worker.results) == (1, 1000)
        assert 0 < worker.first_result < 300
        seconds = worker.run(3, warm_up=2)
        assert len(seconds) == 3
        assert all(0 < s < 60 for s in seconds)
        memory = worker.close()
    finally:
        worker.kill()
    assert memory["imported"] < memory["prepared"] <= memory["peak"]

    absent = dataclasses.replace(SMALL, subject="LiteRT", folder="/nowhere")
    with pytest.raises(WorkerError, match="LiteRT ended with 1: .*nowhere"):
        Worker(absent)

    killed = Worker(dataclasses.replace(SMALL, subject="keras_resnext folded"))
    os.kill(killed.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="folded ended with -9"):
        killed.run(1)


def test_a_worker_ends_with_its_parent():
    """Even if it is stopped, and the parent killed."""
    job = dataclasses.replace(SMALL, subject="keras_resnext folded")
    code = (
        "import os, signal, sys\n"
        "from benchmarks.harness import Worker\n"
        "from benchmarks.job import Job\n"
        "print(Worker(Job.from_json(sys.argv[1])).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code, job.to_json()],
        stdout=subprocess.PIPE,
        text=True,
        cwd=report.README.parent,
    )
    assert parent.returncode == -signal.SIGKILL
    status = pathlib.Path("/proc", parent.stdout.strip(), "status")
    deadline = time.monotonic() + 10
    # Whoever inherits it may be slow to take note of its end.
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_start_is_said():
    group = compare.Group("inference", "float32", 1, ("LiteRT",), 1, 1)
    lines = []
    with pytest.raises(ValueError, match="no subject could be started"):
        compare._time_group(
            dataclasses.replace(SMALL, folder="/nowhere"),
            group,
            1,
            lines.append,
        )
    assert "LiteRT ended with 1" in lines[0]


@pytest.mark.slow
def test_libraries_compute_the_same():
    """On a small network; `make bench` does it for all subjects, in full."""
    pytest.importorskip("openvino", reason="`make peers` installs the peers")
    inferring = (
        "PyTorch",
        "keras_resnext constant",
        "zeromodels",
        "ONNX Runtime",
        "LiteRT",
        "OpenVINO",
        "Keras on JAX",
    )
    training = (
        "PyTorch",
        "keras_resnext grouped",
        "keras_resnext fit",
        "Keras on JAX",
    )
    groups = [
        compare.Group("inference", "float32", 1, inferring, 1, 2),
        compare.Group("training", "float32", 4, training, 1, 1),
    ]
    found = list(compare.compare(SMALL, groups, starts=1))
    assert len(found) == 2
    for group in found:
        for subject, values in group["subjects"].items():
            assert "error" not in values, (subject, values)
            assert values["median"] > 0
            assert values["peak"] > values["imported"] > 0
            assert len(values["first_result_s"]) == 1


def test_another_function_is_refused():
    group = compare.Group("training", "float32", 4, ("a", "b"), 1, 1)

    def workers(results):
        return {
            name: types.SimpleNamespace(
                results=losses, job=types.SimpleNamespace(subject=name)
            )
            for name, losses in (("PyTorch", [7.0, 6.5, 6.0]), ("b", results))
        }

    found = compare.check(group, workers([7.0, 6.501, 6.01]))
    assert found == {"PyTorch": 0.0, "b": pytest.approx(0.01 / 6.5, rel=0.1)}
    for wrong in ([7.001, 6.5, 6.0], [7.0, 6.5, 6.1], [7.0, np.nan, 6.0]):
        with pytest.raises(ValueError, match="b must compute what PyTorch"):
            compare.check(group, workers(wrong))


@pytest.mark.slow
def test_growth_counts_what_it_changes():
    axes = {"resolution": [{"size": 64}, {"size": 128}]}
    points = growth.measure_growth(
        dataclasses.replace(SMALL, size=64), axes, rounds=1, log=print
    )
    assert [p["task"] for p in points] == ["inference"] * 2 + ["training"] * 2
    small, large = (p["multiply_adds"] for p in points[:2])
    assert 3.9 < large / small < 4.1
    training = [p for p in points if p["task"] == "training"]
    assert training[0]["multiply_adds"] == 8 * small
    assert training[1]["peak"] > training[0]["peak"]


@pytest.mark.slow
def test_study_goes_on_where_it_stopped(tmp_path, monkeypatch):
    fields = study.FIELDS | {
        "dataset": "digits",
        "image_size": 8,
        "epochs": 1,
        "warmup_epochs": 0.5,
    }
    seeds = {
        ("resnext11_1x8d_f32", True): 2,
        ("resnext11_4x2d_f32", True): 1,
        ("resnext11_4x2d_f32", False): 1,
    }
    file, lines = tmp_path / "study.jsonl", []

    def run(**options):
        return study.run_study(
            file,
            on_tensorflow.Learner(tmp_path / "runs"),
            fields=fields,
            seeds=seeds,
            log=lines.append,
            **options,
        )

    assert run(minutes=0) == []
    run()
    records = study.read_records(file)
    assert [(r["model"], r["residual"], r["seed"]) for r in records] == [
        *((model, residual, 0) for model, residual in seeds),
        ("resnext11_1x8d_f32", True, 1),
    ]
    assert len({record["loss"] for record in records}) == len(lines) == 4
    assert not list((tmp_path / "runs").iterdir())
    for record in records:
        right = study.right_images(record)
        assert right.size == 360
        error = 100 * (1 - right.mean())
        assert error == pytest.approx(record["error"])

    def refuse(*_, **__):
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr("keras_resnext.training.trainer._Training", refuse)
    assert run() == records
    fields["weight_decay"] = 0.1
    with pytest.raises(ValueError, match="others, in weight_decay"):
        run()
    fields["weight_decay"] = study.FIELDS["weight_decay"]
    study.write_records(file, [records[0] | {"backend": "jax"}])
    with pytest.raises(ValueError, match="on tensorflow; its are of jax"):
        run()
    file.write_text(file.read_text()[:-5])
    with pytest.raises(ValueError, match="study.jsonl must have a JSON record"):
        run()


class MadeUpLearner:
    """Errors of a recipe that is best at a rate of 0.1 and a decay of 1e-3."""

    backend = "tensorflow"

    def __init__(self):
        self.recipes = []

    def prepare(self, recipes):
        pass

    def __call__(self, recipe, weights=None):
        self.recipes.append(recipe)
        wrong = 100 * abs(np.log(recipe.learning_rate / 0.1))
        wrong += 100 * abs(np.log(recipe.weight_decay / 1e-3)) + recipe.seed
        right = np.arange(1000) >= wrong
        return {
            "right": right,
            "accuracy": right.mean(),
            "loss": 0.2,
            "images_per_second": 100.0,
            "params": 1000,
        }


def test_tuning_keeps_what_is_best(tmp_path):
    learner = MadeUpLearner()
    groups = (
        ("learning_rate", (0.05, 0.1, 0.2)),
        ("weight_decay", (5e-4, 1e-3)),
        ("learning_rate", (0.05, 0.1, 0.2)),
    )

    def run(learner, **options):
        return tuning.run_tuning(
            tmp_path / "tuning.jsonl",
            learner,
            groups=groups,
            seeds=2,
            log=lambda line: None,
            **options,
        )

    assert run(learner, minutes=-1) == []
    records = run(learner)
    # Of the second group one is known, of the third one.
    tried = [(r.learning_rate, r.weight_decay, r.seed) for r in learner.recipes]
    assert tried == [
        *((rate, 5e-4, s) for rate in (0.05, 0.1, 0.2) for s in (0, 1)),
        *((0.1, 1e-3, s) for s in (0, 1)),
        *((rate, 1e-3, s) for rate in (0.05, 0.2) for s in (0, 1)),
    ]
    assert all(r.val_fraction == 0.1 for r in learner.recipes)
    again = MadeUpLearner()
    assert run(again) == records
    assert not again.recipes
    learner.backend = "jax"
    with pytest.raises(ValueError, match="on jax; its are of tensorflow"):
        run(learner)
    on_test_images = dataclasses.replace(tuning.START, val_fraction=0.0)
    with pytest.raises(ValueError, match="`val_fraction` above 0; got 0"):
        run(learner, start=on_test_images)


def test_shipped_recipe_is_the_best_that_was_tried():
    """Of the fields that were tried; the number of epochs was not."""
    records = study.read_records(report.FOLDER / "fashion_tuning.jsonl")
    fields = ("model", "random_erasing")
    found = {}
    for record in records:
        key = tuple(tuning.value_of(record, field) for field in fields)
        found.setdefault(key, []).append(record["error"])
    best = min(found, key=lambda key: np.mean(found[key]))
    recipe = RECIPES["fashion_mnist"]
    assert best == tuple(getattr(recipe, field) for field in fields)
    for record in study.read_records(report.FOLDER / "fashion_mnist.jsonl"):
        trained = record["recipe"] | {"model": record["model"]}
        for field in dataclasses.fields(recipe):
            if field.name in trained:
                value = getattr(recipe, field.name)
                value = list(value) if isinstance(value, tuple) else value
                assert trained[field.name] == value, field.name


def made_up(question, difference, seeds, changed):
    """Records of two networks; some `changed` images differ, each way."""
    rng = np.random.default_rng(0)
    records = []
    for seed in range(seeds):
        right = rng.random(10_000) > 0.08
        other = right.copy()
        flipped = rng.permutation(np.flatnonzero(right))[
            : changed + round(100 * difference) + rng.integers(-3, 4)
        ]
        mended = rng.permutation(np.flatnonzero(~right))[:changed]
        other[flipped], other[mended] = False, True
        for (model, residual), found in (
            (question.one, other),
            (question.other, right),
        ):
            packed = base64.b64encode(np.packbits(found)).decode()
            records.append(
                {
                    "model": model,
                    "residual": residual,
                    "seed": seed,
                    "images": 10_000,
                    "right": packed,
                    "error": 100 * (1 - found.mean()),
                    "loss": 0.2,
                    "training_loss": 0.1,
                    "multiply_adds": 1e7,
                    "params": 1e5,
                }
            )
    return records


def test_study_says_what_numbers_show(tmp_path):
    question = verdict.QUESTIONS[1]
    records = made_up(question, 1.5, 6, changed=300)
    found = verdict.compare(question, records)
    assert found["difference"] == pytest.approx(1.5, abs=0.05)
    low, high = found["interval"]
    assert low < 1.5 < high
    assert found["shown"]
    first, asked, *_ = verdict.answers(records)
    assert "1.00 times the multiply-adds" in asked
    assert first == "32 paths instead of one, at constant cost: not run yet."
    assert asked.startswith("no shortcuts, one path: error +1.5")
    assert asked.endswith("a difference. In the paper, on ImageNet: +7.3.")
    # The seeds agree, and the images do not: 315 against 300.
    small = made_up(question, 0.15, 6, changed=300)
    found = verdict.compare(question, small)
    assert found["p_seeds"] < 0.01 < found["p_images"]
    assert not found["shown"]
    page = verdict.page(
        [
            r | {"recipe": study.FIELDS, "device": "x", "backend": "jax"}
            for r in records
        ]
    )
    assert "| resnext11_1x16d_f64, no shortcuts | 10.0 | 100 | 6 | " in page
    assert "| 31.2 (resnet50, no shortcuts) |" in page
    verdict.draw_study(records, tmp_path / "study.svg")
    assert "<svg" in (tmp_path / "study.svg").read_text()


def test_page_of_the_study_has_the_stored_numbers():
    records = study.read_records(report.FOLDER / "study.jsonl")
    assert (report.FOLDER / "study.md").read_text() == verdict.page(records)


def test_power_is_that_of_the_test():
    """Counted in 20,000 experiments."""
    deviation, seeds = 0.28, 4
    effect = verdict.detectable(deviation, seeds, questions=2)
    differences = np.random.default_rng(0).normal(
        effect, deviation, (20_000, seeds)
    )
    found = ttest_1samp(differences, 0, axis=1).pvalue < 0.05 / 2
    # Three standard deviations of a share.
    assert found.mean() == pytest.approx(0.8, abs=3 * (0.16 / 20_000) ** 0.5)


def test_page_of_int8_has_the_stored_numbers():
    path = report.FOLDER / "quantization.jsonl"
    records = study.read_records(path)
    ways = [way for found in quantization.RUNS.values() for way in found]
    seeds = range(quantization.SEEDS)
    assert sorted((r["way"], r["seed"]) for r in records) == sorted(
        (way, seed) for way in ways for seed in seeds
    )
    page = report.README.with_name("docs") / "int8.md"
    assert quantization.report(records) in page.read_text()


@pytest.mark.slow  # tracing fake quantisation takes a minute
def test_steps_are_timed_beside_the_plain_network():
    (plain, *others) = quantization.measure_steps(
        [("resnext11_1x4d", 4, 8)], rounds=1, calls=2
    )
    assert (plain["state"], plain["ratio"]) == ("plain", 1)
    assert len(others) == 3
    for record in others:
        assert record["ratio"] == pytest.approx(record["ms"] / plain["ms"])


def test_readme_has_the_stored_numbers():
    text = report.README.read_text()
    for mark in report.MARKS:
        assert text.count(mark) == 1
    assert report.readme_table(report.stored_results()) in text


def test_claims_are_computed():
    results = stored("comparison.json")
    for claim in report.claims(results):
        assert claim["holds"] == (claim["ratio"] >= claim["floor"])
    group = report.group_of(results, "inference", 1, "float32")
    group["LiteRT"]["median"] = 2 * group["OpenVINO"]["median"]
    (litert,) = (x for x in report.claims(results) if x["ours"] == "LiteRT")
    assert litert["ratio"] == 0.5
    assert not litert["holds"]


def test_a_time_as_a_share_of_the_limit():
    """4.23 G multiply-adds at 100 GFLOP/s take 84.6 ms."""
    about = {"gflops": {"float32": 100.0}, "multiply_adds": 4_230_479_872}
    inference = {"task": "inference", "batch": 1, "dtype": "float32"}
    training = {"task": "training", "batch": 8, "dtype": "float32"}
    assert report.share_of_limit(about, inference, 2 * 84.61) == pytest.approx(
        0.5, rel=1e-4
    )
    assert report.share_of_limit(about, training, 24 * 84.61) == pytest.approx(
        1, rel=1e-4
    )
    assert report.share_of_limit({}, training, 1.0) is None


@pytest.mark.slow
def test_limits_are_measured():
    found = machine.limits(threads=1)
    model = keras_resnext.ResNeXt50(weights=None)
    cost = keras_resnext.count_complexity(model)
    assert found["multiply_adds"] == cost.multiply_adds
    assert 1 < found["gflops"]["float32"] < 1000


def test_claims_of_exporting_are_computed():
    results = stored("exporting.json")
    assert list(exporting.claims(results)) == results["claims"]
    results["exports"]["onnx"]["median"] = (
        0.6 * results["exports"]["keras onnx"]["median"]
    )
    first, *_ = exporting.claims(results)
    assert first["ratio"] == pytest.approx(0.6)
    assert not first["holds"]


def test_an_export_is_timed_in_a_process_of_its_own(tmp_path):
    found = exporting._in_process("savedmodel", tmp_path)
    assert (tmp_path / "savedmodel" / "saved_model.pb").exists()
    assert 0 < found["seconds"] < 300
    assert 1e8 < found["peak"] < 20e9


def test_pictures(tmp_path):
    report.draw_comparison(stored("comparison.json"), tmp_path / "a.svg")
    report.draw_growth(stored("growth.json")["points"], tmp_path / "b.svg")
    comparison, growths = (
        (tmp_path / name).read_text() for name in ("a.svg", "b.svg")
    )
    for group in stored("comparison.json")["groups"]:
        assert all(f">{name}<" in comparison for name in group["subjects"])
    for axis in growth.AXES:
        assert f">{axis}<" in growths
