"""Memory and answers stay as they are, however long a process lives.

Each life is a process of its own, whose memory is measured after every part of
its work. Beside each bound stands what a leak would take: weights that are
kept once for each model, batch size or prediction.
"""

import dataclasses
import io
import json
import os
import pathlib
import pickle
import statistics
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_resnext import export
from keras_resnext.classifier import Classifier

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="needs Linux' /proc"
)


def live(*job):
    """What a job of `long_life_process` reports."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.long_life_process", json.dumps(job)],
        cwd=pathlib.Path(__file__).parents[1],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def growth(memory):
    """MB from the second quarter to the last; the first one warms up."""
    quarter = len(memory) // 4
    second, last = memory[quarter : 2 * quarter], memory[-quarter:]
    grown = statistics.median(last) - statistics.median(second)
    print(
        f"{memory[0]:.0f}, {second[0]:.0f} to {last[-1]:.0f} MB: {grown:+.1f}"
    )
    return grown


@pytest.mark.slow
@pytest.mark.parametrize("way", ["classifier", "model", "predict"])
def test_a_thousand_predictions(way):
    life = live("predictions", way)
    assert life["same"]
    # Of 5.6 MB; they would be kept 500 times.
    assert growth(life["memory"]) < 4 * life["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["model", "inference_function"])
def test_a_hundred_models(way):
    life = live("models", way)
    assert life["same"]
    # They would be kept 50 times.
    assert growth(life["memory"]) < 2 * life["weights"]


@pytest.mark.slow
def test_fifty_batch_sizes():
    life = live("batch_sizes")
    assert life["graphs"] == 2
    # Float32 rounds to 6e-8, in each of 12 layers.
    assert life["difference"] < 1e-5
    # Of 23 MB; they would be kept 25 times. oneDNN keeps 1.4 MB of each batch
    # size, and nothing when it comes again.
    assert growth(life["memory"]) < 4 * life["weights"]
    assert growth(life["again"]) < life["weights"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["classifier", "inference_function", "model"])
def test_four_threads_on_one_model(way):
    """Bit for bit: threads share the cores, not the order of any sum."""
    life = live("threads", way)
    assert life["same"]
    # They would be kept 500 times.
    assert growth(life["memory"]) < 4 * life["weights"]


@pytest.mark.slow
def test_many_short_epochs(toy_recipe, tmp_path):
    """What an epoch left behind, two days of them would multiply."""
    recipe = dataclasses.replace(toy_recipe, epochs=152)
    life = live("training", dataclasses.asdict(recipe), str(tmp_path / "run"))
    # An input pipeline takes 19 MB, and would be kept 76 times.
    assert growth(life["memory"]) < 60
    for name in ("files", "threads"):
        assert max(life[name][38:]) <= max(life[name][:38]), name
    second, last = (sum(life["seconds"][i : i + 37]) for i in (38, 114))
    print(f"CPU time of 37 epochs: {second:.0f} s, at the end {last:.0f} s")
    assert last < 1.5 * second


def good_pictures():
    """Parts of a photograph, 8 of each format."""
    photo = load_sample_images().images[0]
    rng = np.random.default_rng(0)
    files = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        for _ in range(8):
            height, width = rng.integers(16, 200, 2)
            top, left = rng.integers(0, 200, 2)
            part = photo[top : top + height, left : left + width]
            file = io.BytesIO()
            Image.fromarray(part).save(file, kind)
            files.append(file.getvalue())
    return files


def bad_pictures(good):
    """Cut off, text, nothing, too many pixels, and for Ghostscript."""
    large, script = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (201, 200)).save(large, "PNG")
    Image.new("RGB", (16, 16)).save(script, "EPS")
    cut = [file[: len(file) // 2] for file in good[::8]]
    return [*cut, b"no picture", b"", large.getvalue(), script.getvalue()]


@pytest.mark.slow
def test_two_thousand_requests(small_model, tmp_path):
    """From four threads, of 1 to 8 pictures, of which 5 % are bad."""
    labels = [f"class {number}" for number in range(10)]
    export.to_saved_model(
        small_model, tmp_path / "served", labels=labels, max_pixels=40_000
    )
    good = good_pictures()
    bad = bad_pictures(good)
    rng = np.random.default_rng(1)
    requests = [
        [
            group[rng.integers(len(group))]
            for group in (bad if x < 0.05 else good for x in rng.random(size))
        ]
        for size in rng.integers(1, 9, 2000)
    ]
    (tmp_path / "requests").write_bytes(pickle.dumps(requests))
    life = live("served", str(tmp_path / "served"), str(tmp_path / "requests"))
    assert not life["keras"]  # TensorFlow alone
    assert not life["wrong"]
    bad_count = sum(file in bad for request in requests for file in request)
    print(
        f"{len(requests)} requests with {sum(map(len, requests))} pictures, "
        f"{bad_count} of them bad, in {life['seconds']:.0f} s"
    )
    assert growth(life["memory"]) < 30

    files = sorted({file for request in requests for file in request})
    assert len(files) == len(good) + len(bad)
    assert life["valid"] == [file in good for file in files]
    predictions = Classifier(small_model, labels).predict(
        [io.BytesIO(file) for file in files], on_bad_image="skip"
    )
    for file, label, scores, prediction in zip(
        files, life["labels"], life["scores"], predictions, strict=True
    ):
        if file in bad:
            assert label == ""
            assert not any(scores)
            continue
        # One level of 255 in a few pixels between Pillow and TensorFlow.
        np.testing.assert_allclose(scores, prediction.probabilities, atol=2e-3)
        second, first = np.sort(scores)[-2:]
        if first - second > 4e-3:
            assert label == prediction.label
