"""Fashion-MNIST from Debian's package: the published files, bit by bit."""

import gzip
import shutil
import struct

import pytest

from benchmarks import fashion
from keras_resnext import Classifier
from keras_resnext.training import evaluate
from keras_resnext.training.datasets import open_dataset

NAME = "t10k-labels-idx1-ubyte.gz"


def test_the_header_is_restored():
    """Of a file without one, and of one that has it."""
    data = bytes(range(256)) * 100
    bare = bytearray(gzip.compress(data, mtime=0))
    bare[8:10] = b"\0\3"  # Python notes its level, and no system
    restored = fashion.restore(bytes(bare), NAME)
    assert gzip.decompress(restored) == data
    assert struct.unpack("<I", restored[4:8]) == (1504176627,)
    assert restored[10:33] == b"t10k-labels-idx1-ubyte\0"
    assert restored[33:] == bytes(bare)[10:]
    assert fashion.restore(restored, NAME) == restored
    with pytest.raises(ValueError, match="must be a gzip file .*b'plai"):
        fashion.restore(b"plain", NAME)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must have the file train-im"):
        fashion.prepare(tmp_path, tmp_path / "data")
    assert not list(tmp_path.rglob("*.gz"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt-get")
def test_tfds_takes_debians_files(tmp_path):
    """It compares all four hashes; and notices a file that is another."""
    files = fashion._download(tmp_path)
    path = fashion.prepare(files, tmp_path / "data")
    assert len(list(path.glob("*.tfrecord*"))) == 2
    (changed,) = files.rglob(NAME)
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    with pytest.raises(Exception, match=f"checksum.*{NAME}"):
        fashion.prepare(files, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt-get")
def test_published_weights_have_their_accuracy():
    """On all 10,000 test images; of those, two may fall on the other side."""
    fashion.prepare()
    classifier = Classifier.load("resnext29_8x4d_f64", "fashion_mnist")
    data = open_dataset("fashion_mnist")
    assert classifier.labels == data.labels
    result = evaluate(classifier, data)
    record = classifier.record
    assert 100 * result.accuracy == pytest.approx(record.top1, abs=0.021)
    assert 100 * result.top5_accuracy == pytest.approx(record.top5, abs=0.021)
