"""ImageNet and CIFAR through TFDS, out of archives laid out as the originals.

The archives are small and hold parts of two photographs; TFDS' own code reads
them. Only the download of CIFAR is replaced: there is no network.
"""

import dataclasses
import io
import pathlib
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_resnext.classifier import Classifier
from keras_resnext.training import RECIPES
from keras_resnext.training import evaluate
from keras_resnext.training import train
from keras_resnext.training.datasets import open_dataset
from keras_resnext.transforms import EvalTransform

pytestmark = pytest.mark.integration

# Three synsets of ImageNet, with their places among the thousand.
SYNSETS = {"n01440764": 0, "n02099601": 207, "n15075141": 999}
# The validation images' classes come from TFDS' list, in order of their names.
VALIDATION = 5


def crops(count, size, seed):
    """Parts of photographs, uint8 `(count, size, size, 3)`."""
    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    found = []
    for i in range(count):
        photo = photos[i % 2]
        top, left = (rng.integers(n - size) for n in photo.shape[:2])
        found.append(photo[top : top + size, left : left + size])
    return np.stack(found)


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A TFDS folder with ImageNet's archives where TFDS wants them."""
    root = tmp_path_factory.mktemp("imagenet")
    manual = root / "downloads" / "manual"
    manual.mkdir(parents=True)
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as whole:
        for seed, synset in enumerate(SYNSETS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for i, image in enumerate(crops(4, 120, seed)):
                    add(archive, f"{synset}_{i}.JPEG", jpeg(image))
            add(whole, f"{synset}.tar", inner.getvalue())
    for split, count in (("val", VALIDATION), ("test", 2)):
        name = manual / f"ILSVRC2012_img_{split}.tar"
        with tarfile.open(name, "w") as archive:
            for i, image in enumerate(crops(count, 120, split == "val")):
                name = f"ILSVRC2012_{split}_{i + 1:08}.JPEG"
                add(archive, name, jpeg(image))
    return root


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """CIFAR-10's archive as unpacked, its images and labels in test order."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    text = names.replace(" ", "\n") + "\n\n"
    (folder / "batches.meta.txt").write_text(text)
    for number in range(6):
        images, labels = crops(10, 32, number), np.arange(10)[::-1]
        records = [
            bytes([label]) + image.transpose(2, 0, 1).tobytes()
            for image, label in zip(images, labels, strict=True)
        ]
        name = f"data_batch_{number}.bin" if number else "test_batch.bin"
        (folder / name).write_bytes(b"".join(records))
    return root, crops(10, 32, 0), np.arange(10)[::-1], names.split()


@pytest.fixture
def without_download(cifar, monkeypatch):
    def unpacked(self, url):
        assert url.endswith("/cifar-10-binary.tar.gz")
        return pathlib.Path(cifar[0])

    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", unpacked
    )


@pytest.mark.slow
def test_imagenet_is_trained_on_and_evaluated(imagenet, tmp_path):
    recipe = dataclasses.replace(
        RECIPES["imagenet_released"],
        model="resnext11_1x4d",  # the net that is quick to build
        image_size=32,
        batch_size=6,
        epochs=2,
        milestones=(1,),
    )
    run = train(recipe, tmp_path / "run", data_dir=imagenet)
    assert len(run.labels) == 1000
    assert [run.labels[i] for i in SYNSETS.values()] == list(SYNSETS)
    assert run.load_model().output_shape == (None, 1000)
    classifier = Classifier.load(run.path)
    result = evaluate(classifier, "imagenet2012", data_dir=imagenet)
    assert result.split == "validation"
    assert result.examples == VALIDATION
    assert result.loss == pytest.approx(run.history[-1]["val_loss"], rel=1e-4)
    published = tfds.core.tfds_path("datasets/imagenet2012").joinpath(
        "validation_labels.txt"
    )
    expected = published.read_text().split()[:VALIDATION]
    assert sorted(run.labels[i] for i in result.labels) == sorted(expected)


def test_imagenet_is_read_as_it_was_written(imagenet):
    data = open_dataset("imagenet2012", imagenet)
    data.prepare()
    assert data.num_examples("train") == 4 * len(SYNSETS)
    written = {
        jpeg(image): label
        for seed, label in enumerate(SYNSETS.values())
        for image in crops(4, 120, seed)
    }
    for seed in (None, 0):
        read = data.encoded("train", shuffle_seed=seed).as_numpy_iterator()
        assert {encoded: label for _, encoded, label in read} == written


def test_cifar_is_read_as_it_was_written(cifar, without_download, tmp_path):
    _, images, labels, names = cifar
    data = open_dataset("cifar10", tmp_path)
    data.prepare()
    assert data.labels == names
    assert data.val_split == "test"
    assert data.num_examples("train") == 50
    found = {
        image.astype("uint8").tobytes(): label
        for image, label in data.pixels(
            "test", EvalTransform.from_crop_pct(32)
        ).as_numpy_iterator()
    }
    assert found == {
        image.tobytes(): label
        for image, label in zip(images, labels, strict=True)
    }


def test_cifar_is_trained_on(cifar, without_download, tmp_path):
    recipe = dataclasses.replace(
        RECIPES["cifar_released"],
        model="resnext11_1x4d",
        batch_size=10,
        epochs=2,
        milestones=(1,),
    )
    run = train(recipe, tmp_path / "run", data_dir=tmp_path)
    assert run.labels == cifar[-1]
    assert np.isfinite([e["val_loss"] for e in run.history]).all()


def test_imagenet_without_its_archives_says_where_they_go(tmp_path):
    recipe = dataclasses.replace(
        RECIPES["imagenet_paper"], model="resnext11_1x4d", image_size=32
    )
    with pytest.raises(FileNotFoundError, match="ILSVRC2012_img_train.tar"):
        train(recipe, tmp_path / "run", data_dir=tmp_path)
    assert not (tmp_path / "run").exists()
