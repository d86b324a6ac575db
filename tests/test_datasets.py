"""Data sets: the digits through TFDS, and folders of images by class."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from keras_resnext.training import datasets
from keras_resnext.transforms import EvalTransform


def test_digits_are_scikit_learns(digits):
    """Every scan once, in one of the two splits, and none changed."""
    expected = load_digits()
    seen = []
    for split in ("train", "test"):
        for image, label in tfds.load(
            "digits", split=split, as_supervised=True
        ).as_numpy_iterator():
            seen.append((*(image[..., 0] / 255 * 16).round().ravel(), label))
    known = np.column_stack([expected.data, expected.target])
    assert sorted(seen) == sorted(map(tuple, known))
    assert digits.num_examples("train") == 1437
    assert digits.num_examples("test") == 360


def test_classes_are_counted(digits):
    """By reading labels; scikit-learn knows how many there are."""
    splits = [digits.class_counts(split) for split in ("train", "test")]
    expected = np.bincount(load_digits().target)
    for label, count in enumerate(expected):
        assert sum(counts[str(label)] for counts in splits) == count
    assert list(splits[0]) == digits.labels
    assert digits.check() == []
    with pytest.raises(ValueError, match="`split` must be .*got 'dev'"):
        digits.class_counts("dev")


@pytest.mark.slow
def test_a_part_of_the_training_split_is_kept_out(digits):
    """Each image is in one of the two; the test split is as it was."""
    data = datasets.open_dataset("digits", val_fraction=0.1)
    assert (data.val_split, data.num_examples("held_out")) == ("held_out", 144)
    assert data.num_examples("train") == 1437 - 144
    names = {
        split: [name for name, *_ in data.encoded(split).as_numpy_iterator()]
        for split in ("train", "held_out", "test")
    }
    assert {k: len(v) for k, v in names.items()} == {
        "train": 1293,
        "held_out": 144,
        "test": 360,
    }
    everything = digits.encoded("train").as_numpy_iterator()
    assert sorted(names["train"] + names["held_out"]) == sorted(
        name for name, *_ in everything
    )
    shuffled = data.encoded("train", shuffle_seed=1).as_numpy_iterator()
    assert {name for name, *_ in shuffled} == set(names["train"])
    assert sum(data.class_counts("held_out").values()) == 144


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_no_part_may_be_empty(fraction, digits):
    data = datasets.open_dataset("digits", val_fraction=fraction)
    with pytest.raises(ValueError, match=f"images to .*got {fraction} of 1437"):
        data.num_examples("train")
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1"):
        datasets.open_dataset("digits", val_fraction=1)


def test_sizes_of_images_are_known(image_folder):
    assert datasets.open_dataset("digits").image_size == 8
    assert datasets.open_dataset("fashion_mnist").image_size == 28
    assert datasets.open_dataset("imagenet2012").image_size is None
    assert datasets.open_dataset(image_folder).image_size is None
    with pytest.raises(ValueError, match="`val_fraction` must be 0 with a fol"):
        datasets.open_dataset(image_folder, val_fraction=0.1)


def test_names_and_folders_are_told_apart(image_folder, monkeypatch):
    (image_folder / "digits").mkdir()
    monkeypatch.chdir(image_folder)
    assert datasets.locate("digits") == "digits"
    assert datasets.locate("./digits") == str(image_folder / "digits")
    assert datasets.locate(".") == str(image_folder)
    assert datasets.locate("no such name") == "no such name"


def test_one_class_is_none(tmp_path):
    place = tmp_path / "train" / "only"
    place.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(place / "0.png")
    with pytest.raises(ValueError, match="two classes or more; .* has only"):
        datasets.open_dataset(str(tmp_path))


def test_folder_of_images_by_class(image_folder):
    found = datasets.open_dataset(str(image_folder))
    found.prepare()
    assert found.labels == ["dark", "grey", "light"]
    assert found.val_split == "val"
    assert found.num_examples("train") == 12
    batches = found.pixels("val", EvalTransform.from_crop_pct(16)).batch(6)
    ((images, labels),) = batches.as_numpy_iterator()
    assert images.shape == (6, 16, 16, 3)
    np.testing.assert_allclose(
        images[..., 0].mean(axis=(1, 2)),
        np.array([50, 120, 220])[labels],
        atol=1e-3,
    )


def test_unknown_data_sets_are_refused(tmp_path):
    for name in ("digitz", str(tmp_path / "nowhere")):
        with pytest.raises(
            ValueError, match="`dataset` must be a folder .*got"
        ):
            datasets.open_dataset(name)
    with pytest.raises(ValueError, match="got 'digitz', .*Did you mean digits"):
        datasets.open_dataset("digitz")
    with pytest.raises(ValueError, match="image and label .*; glue has"):
        datasets.open_dataset("glue")
    # TFDS would fetch their list, and the code of some.
    for name in ("kubric:movi_a", "huggingface:mnist/config", "user:any:1.0.0"):
        with pytest.raises(ValueError, match=f"not one of a comm.*'{name}'"):
            datasets.open_dataset(name)
    assert datasets.open_dataset("digits:1.0.0").labels[0] == "0"
    assert datasets.open_dataset("digits:*.*.*").labels[0] == "0"


def test_unknown_splits_are_refused(digits, image_folder):
    with pytest.raises(
        ValueError, match="`split` must be .*train.*; got 'dev'"
    ):
        digits.pixels("dev", EvalTransform.from_crop_pct(8))
    only = image_folder / "only"
    only.mkdir()
    (image_folder / "train").rename(only / "train")
    with pytest.raises(
        ValueError, match="images in one of the splits .*has train"
    ):
        _ = datasets.open_dataset(str(only)).val_split


def test_versions_of_tfds_are_told_apart(digits):
    found = digits.fingerprint
    assert found.version == "digits/1.0.0"
    sizes = {name: part.images for name, part in found.parts.items()}
    assert sizes == {"train": 1437, "test": 360}
    other = dataclasses.replace(found, version="digits/2.0.0")
    assert other.difference(found) == (
        "it is digits/1.0.0 instead of digits/2.0.0"
    )
