"""The names of ImageNet's classes."""

import subprocess
import sys

import numpy as np
import pytest

from keras_resnext import imagenet


def test_labels():
    names = imagenet.labels()
    assert len(names) == 1000
    assert names[:2] == ["tench", "goldfish"]
    assert names[-1] == "toilet tissue"
    names.clear()
    assert len(imagenet.labels()) == 1000


def test_predictions_are_named_in_order():
    scores = np.zeros((2, 1000))
    scores[0, [1, 985]] = 0.2, 0.7
    scores[1, 999] = 1
    named = imagenet.decode_predictions(scores, top=2)
    assert named[0] == [
        ("n11939491", "daisy", 0.7),
        ("n01443537", "goldfish", 0.2),
    ]
    assert named[1][0] == ("n15075141", "toilet tissue", 1.0)
    assert len(imagenet.decode_predictions(scores)[0]) == 5
    counts = (scores * 10).astype("uint8")
    assert imagenet.decode_predictions(counts, top=1)[0][0][1] == "daisy"


def test_bad_arguments():
    with pytest.raises(
        ValueError, match=r"shape \(batch, 1000\).*got \(2, 9\)"
    ):
        imagenet.decode_predictions(np.zeros((2, 9)))
    for top in (0, -1, 1001):
        with pytest.raises(
            ValueError, match=f"`top` must be from 1 to 1000; got {top}"
        ):
            imagenet.decode_predictions(np.zeros((2, 1000)), top=top)


@pytest.mark.parametrize("name", ["imagenet", "transforms"])
def test_importing_is_cheap(name):
    check = (
        f"import sys, keras_resnext.{name}; "
        "print(*{'keras', 'tensorflow', 'PIL'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True
    )
    assert not found.stdout.strip()
