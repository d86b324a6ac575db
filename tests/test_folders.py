"""Folders of images by class: the listing, the split, and the problems."""

import json
import os
import pathlib
import random
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from keras_resnext.images import read_image
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.folder_check import check_folder
from keras_resnext.training.folder_check import identical_files
from keras_resnext.training.folders import MadeSplit
from keras_resnext.training.folders import open_folder
from keras_resnext.transforms import EvalTransform


def fill(root, names):
    """Files whose content is their name, which listing does not mind."""
    for name in names:
        path = pathlib.Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def numbered(label, count, suffix=".jpg"):
    return [f"{label}/{i}{suffix}" for i in range(count)]


def listed(folder):
    """Name to label and split of every image."""
    return {
        name.decode(): (folder.labels[label], split)
        for split, images in folder.splits.items()
        for name, label in zip(*images, strict=True)
    }


def test_the_listing_is_that_of_tfds(image_folder):
    """In TFDS' own order of classes, with its labels and its counts."""
    fill(image_folder, ["val/empty/notes.txt", "train/dark/more/deep.png"])
    theirs = tfds.ImageFolder(str(image_folder))
    ours = open_dataset(image_folder)
    assert ours.labels == theirs.info.features["label"].names
    assert ours.labels == ["dark", "empty", "grey", "light"]
    for split in ("train", "val"):
        expected = {
            (example["image/filename"], example["label"])
            for example in theirs.as_dataset(split=split).as_numpy_iterator()
        }
        found = [
            (name, label)
            for name, _, label in ours.encoded(split).as_numpy_iterator()
        ]
        assert set(found) == expected
        assert len(found) == len(expected) == ours.num_examples(split)
        assert (
            ours.num_examples(split) == theirs.info.splits[split].num_examples
        )


def test_names_of_all_kinds(tmp_path):
    """Spaces, accents, capitals and links are read; hidden files are not."""
    root = tmp_path / "my photos"
    fill(root, ["Katze, groß/a b.JPG", "Katze, groß/ü.Png", "犬/犬.jpeg"])
    fill(root, ["犬/.hidden.png", "犬/._x.jpg", "犬/Thumbs.db", "a.png"])
    fill(root, [".ipynb_checkpoints/x.png", "__MACOSX/犬/1.png"])
    fill(root, ["犬/clip.mp4", "犬/more/x.png", "犬/archive.jpg/x.txt"])
    fill(tmp_path, ["elsewhere/x.png", "elsewhere/y.png"])
    (root / "犬" / "link.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (root / "犬" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    data = open_dataset(root)
    assert data.labels == ["Katze, groß", "linked", "犬"]
    assert set(listed(data.folder)) == {
        *("Katze, groß/a b.JPG", "Katze, groß/ü.Png"),
        *("linked/x.png", "linked/y.png", "犬/link.png", "犬/犬.jpeg"),
    }
    skipped = "a.png 犬/archive.jpg/ 犬/broken.png 犬/clip.mp4 犬/more/"
    assert data.folder.skipped == skipped.split()
    contents = {
        pathlib.Path(name.decode()).relative_to(root).as_posix(): encoded
        for split in ("train", "validation")
        for name, encoded, _ in data.encoded(split).as_numpy_iterator()
    }
    linked = {"犬/link.png": "x.png"}
    for name, (label, _) in listed(data.folder).items():
        where = linked.get(name, name).replace("linked/", "")
        expected = where if label != "linked" and name not in linked else None
        assert contents[name].decode() == (expected or f"elsewhere/{where}")


def test_names_that_are_not_utf8_are_skipped(tmp_path):
    fill(tmp_path, [*numbered("cat", 2), *numbered("dog", 2)])
    try:
        with open(os.fsencode(tmp_path) + b"/cat/caf\xe9.jpg", "wb"):
            pass
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert open_folder(tmp_path).skipped == ["cat/caf\\xe9.jpg"]


def test_every_format_is_read_as_pillow_reads_it(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        place = tmp_path / "val" / label
        place.mkdir(parents=True)
        for suffix in ("jpg", "jpeg", "png", "gif", "bmp", "webp", "WEBP"):
            image = rng.integers(0, 256, (4, 6, 3)).astype("uint8")
            image = Image.fromarray(image).resize((48, 32))
            image.save(place / f"x.{suffix}")
    data = open_dataset(tmp_path)
    assert data.num_examples("val") == 14
    assert not data.folder.skipped
    transform = EvalTransform.from_crop_pct(32)
    names = [name for name, *_ in data.encoded("val").as_numpy_iterator()]
    images = [x for x, _ in data.pixels("val", transform).as_numpy_iterator()]
    for name, image in zip(names, images, strict=True):
        expected = read_image(name.decode())[:, 8:40]
        np.testing.assert_array_equal(image, expected, err_msg=name.decode())


def test_a_folder_of_classes_is_split(tmp_path):
    """A fifth of each class, one image at least, none of a single one."""
    sizes = {"a": 1, "b": 2, "c": 3, "d": 7, "e": 8, "f": 100}
    for label, size in sizes.items():
        fill(tmp_path, numbered(label, size))
    data = open_dataset(tmp_path)
    assert data.val_split == "validation"
    found = data.class_counts("validation")
    assert found == {"a": 0, "b": 1, "c": 1, "d": 1, "e": 2, "f": 20}
    train = data.class_counts("train")
    assert {x: train[x] + found[x] for x in sizes} == sizes
    assert set(listed(data.folder)) == {
        name for label, size in sizes.items() for name in numbered(label, size)
    }


def test_the_split_depends_on_names_only(tmp_path, monkeypatch):
    """Another machine, another order: the same images.

    Those whose hash (`printf 0/cat/4.jpg | b2sum -l 64`) is smallest.
    """
    names = numbered("cat", 10) + numbered("dög", 10)
    fill(tmp_path, names)
    expected = ["cat/4.jpg", "cat/8.jpg", "dög/1.jpg", "dög/4.jpg"]
    assert open_folder(tmp_path).made_split.validation == expected
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path):
            self.entries = list(scandir(path))
            random.Random(1).shuffle(self.entries)

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", Shuffled)
        again = open_folder(tmp_path)
    assert listed(again) == listed(open_folder(tmp_path))
    # As macOS spells it.
    other = {
        unicodedata.normalize("NFD", label): [
            unicodedata.normalize("NFD", f"{label}/{i}.jpg") for i in range(10)
        ]
        for label in ("cat", "dög")
    }
    found = MadeSplit.of(other).validation
    assert [unicodedata.normalize("NFC", name) for name in found] == expected
    assert found != expected


def test_a_recorded_split_stays(tmp_path):
    root = fill(tmp_path / "photos", numbered("cat", 5) + numbered("dog", 5))
    record = tmp_path / "run" / "split.json"
    data = open_dataset(root, split_file=record)  # not there yet
    data.write_split(record)
    before = data.folder.made_split
    assert json.loads(record.read_text()) == {
        "validation": before.validation,
        "fraction": 0.2,
        "seed": 0,
    }
    # New images are for training, whatever their names' hashes are.
    fill(root, [*numbered("cat", 50, ".png"), *numbered("emu", 3)])
    assert len(open_folder(root).splits["validation"].names) > 2
    again = open_dataset(root, split_file=record)
    assert again.folder.made_split == before
    in_validation = [
        name
        for name, (_, split) in listed(again.folder).items()
        if split == "validation"
    ]
    assert in_validation == before.validation
    assert again.num_examples("train") == 8 + 50 + 3
    again.write_split(record)
    assert MadeSplit.read(record) == before
    for name in before.validation:
        (root / name).unlink()
    with pytest.raises(
        ValueError, match=f"no longer has {', '.join(before.validation)}\\."
    ):
        open_dataset(root, split_file=record)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"fraction": 0.2}', '{"validation": [1]}', "{"]
)
def test_what_is_no_record_is_refused(text, tmp_path):
    root = fill(tmp_path / "photos", numbered("cat", 5) + numbered("dog", 5))
    record = tmp_path / "split.json"
    record.write_text(text)
    with pytest.raises(ValueError, match="split_file.*split.json is not"):
        open_folder(root, record)


def test_splits_of_folders_are_not_recorded(image_folder, digits, tmp_path):
    record = tmp_path / "split.json"
    open_dataset(image_folder).write_split(record)
    digits.write_split(record)
    assert not record.exists()
    MadeSplit(["cat/1.jpg"]).write(record)
    with pytest.raises(ValueError, match="`split_file` must not exist for"):
        open_dataset(image_folder, split_file=record)


def test_layouts_are_told_apart_by_names(tmp_path):
    splits = fill(tmp_path / "a", ["Train/cat/1.jpg", "VAL/dog/1.jpg"])
    fill(splits, ["extra/cat/2.jpg", "test/unlabelled.jpg"])
    folder = open_folder(splits)
    assert folder.sizes == {"train": 1, "val": 1, "extra": 1, "test": 0}
    assert folder.labels == ["cat", "dog"]
    assert folder.skipped == ["test/unlabelled.jpg"]
    # Trains are vehicles too.
    vehicles = fill(tmp_path / "b", ["car/1.jpg", "car/2.jpg", "train/1.jpg"])
    assert open_folder(vehicles).labels == ["car", "train"]
    fill(splits, ["train/cat/1.jpg"])
    with pytest.raises(ValueError, match="one folder for each split; .*Train"):
        open_folder(splits)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no image."),
        (["1.jpg", "2.jpg"], "has images directly in it, such as 1.jpg."),
        (["train/1.jpg", "val/2.jpg"], "has images directly in train, val."),
        (["train/x/cat/1.jpg"], "train/x/cat/ is nested too deep"),
        (["photos/x/cat/1.jpg"], "photos/x/ is nested too deep"),
        (["cat/1.heic", "dog/1.heic"], "only others, such as cat/1.heic"),
        (["cat/1.jpg", "cat/2.jpg"], "two classes or more; .* has cat."),
    ],
)
def test_folders_without_labelled_images_are_refused(names, message, tmp_path):
    fill(tmp_path, names)
    with pytest.raises(ValueError, match=f"`dataset` must .*{message}"):
        open_dataset(tmp_path)


def test_a_good_folder_has_no_problems(tmp_path):
    for split in ("train", "val"):
        fill(tmp_path, numbered(f"{split}/cat", 4) + numbered(f"{split}/ox", 3))
    assert open_dataset(tmp_path).check() == []


def test_problems_are_reported(tmp_path):
    fill(tmp_path, [f"train/cat/{i}.jpg" for i in range(30)])
    fill(tmp_path, [f"train/dog/{i}.jpg" for i in range(6)])
    fill(tmp_path, ["val/cat/1.jpg", "val/dog/1.jpg", "val/yak/1.jpg"])
    fill(tmp_path, ["train/emu/1.jpg", "train/fox/1.jpg", "train/fox/2.jpg"])
    fill(tmp_path, ["val/emu/1.txt", "train/yak/1.heic", "val/owl/1.jpg"])
    fill(tmp_path, ["val/owl/2.jpg"])
    (tmp_path / "train" / "gnu").mkdir()
    (tmp_path / "val" / "dog" / "2.jpg").write_text("train/dog/0.jpg")
    (tmp_path / "val" / "cat" / "2.jpg").write_text("train/dog/1.jpg")
    (tmp_path / "val" / "dog" / "empty.jpg").touch()
    assert check_folder(open_folder(tmp_path)) == [
        "2 files or folders skipped, not .jpg, .jpeg, .png, .gif, .bmp, .webp "
        "in a class folder: train/yak/1.heic, val/emu/1.txt.",
        "1 class has no images, but an output of the network: gnu.",
        "2 classes have one image only, for training or validation: emu, yak.",
        "1 class has no validation images: fox.",
        "1 class has no training images: owl.",
        "The classes are imbalanced: 30 training images of cat, 1 of emu.",
        "1 image without content: val/dog/empty.jpg.",
        "2 images are in train and in val, byte for byte: train/dog/0.jpg = "
        "val/dog/2.jpg, train/dog/1.jpg = val/cat/2.jpg.",
        "1 image is in two classes, byte for byte: train/dog/1.jpg = "
        "val/cat/2.jpg.",
    ]


def test_a_missing_split_is_reported(tmp_path):
    fill(tmp_path, ["train/cat/1.jpg", "train/dog/1.jpg"])
    assert check_folder(open_folder(tmp_path)) == [
        "There are no validation images."
    ]


def test_long_reports_are_short(tmp_path):
    fill(tmp_path, numbered("cat", 30) + numbered("dog", 30))
    fill(tmp_path, numbered("dog", 7, ".txt"))
    made = open_folder(tmp_path).splits["train"].names
    for i, name in enumerate(n for n in made.tolist() if b"cat" in n):
        copy = tmp_path / "dog" / f"copy{i:02}.jpg"
        copy.write_text(name.decode())
    skipped, *_, twice = check_folder(open_folder(tmp_path))
    assert skipped.startswith("7 files or folders skipped")
    assert skipped.endswith("dog/4.txt and 2 more.")
    assert twice.startswith("24 images are in two classes, byte for byte: cat/")
    assert twice.count(" = ") == 5
    assert twice.endswith(" and 19 more.")


def test_identical_files_are_those_of_equal_bytes(tmp_path):
    """Against comparing all with all; only the edges differ in some."""
    rng = np.random.default_rng(0)
    middle = rng.bytes(9000)
    contents = [
        *(b"", b"", b"a", b"a", b"b"),
        *(middle, middle, middle[:-1] + b"x", b"x" + middle[1:]),
        *(rng.bytes(9000), middle + middle, middle + middle),
    ]
    paths = []
    for i, content in enumerate(contents):
        paths.append(str(tmp_path / f"{i:02}"))
        pathlib.Path(paths[-1]).write_bytes(content)
    expected = [
        [p for p, c in zip(paths, contents, strict=True) if c == content]
        for content in dict.fromkeys(contents)
    ]
    assert sorted(identical_files(paths)) == [
        group for group in sorted(expected) if len(group) > 1
    ]
