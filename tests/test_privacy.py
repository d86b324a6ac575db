"""What leaves the machine: nothing, where docs/privacy.md says nothing."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from tests import isolated
from tests.test_mediapipe import CLASSIFY
from tests.test_mediapipe import PYTHON as MEDIAPIPE

pytestmark = pytest.mark.integration

ROOT = pathlib.Path(__file__).parents[1]
MOBILE = ROOT / "export/mobile"
# Resolves a name, and connects to addresses kept for documentation, which
# nobody has, in a process of its own.
LEAVES = """
import socket, subprocess, sys
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "again"], check=True)
    sys.exit()
try:
    socket.getaddrinfo("telemetry.example", 443)
except socket.gaierror:
    pass
for family, address in (
    (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")
):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            socket.socket(family, kind).connect((address, 443))
        except OSError:
            pass
"""
IMPORTS = """
import keras_resnext
from keras_resnext import explain, export, share, training
keras_resnext.ResNeXt((1, 1), 2, 4, input_shape=(32, 32, 3))
keras_resnext.Classifier.load("resnext29_8x4d_f64", "fashion_mnist")
"""


def test_the_trap_sees_what_tries_to_leave(tmp_path):
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    done = isolated.run(sys.executable, script)
    assert (done.status, done.names) == (0, ["telemetry.example"]), done
    assert done.unroutable >= 2  # IPv4's; not every machine has IPv6


def stays(*command, **options):
    """Run a command where there is no network, and see that it asks for none.

    It succeeds all the same.
    """
    done = isolated.run(*command, **options)
    assert done.status == 0, done.errors[-3000:]
    assert (done.names, done.unroutable) == ([], 0)
    return done.output


def keras_resnext_stays(*arguments):
    return stays(sys.executable, "-m", "keras_resnext", *map(str, arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("private")


@pytest.fixture(scope="module")
def run(folder):
    """One epoch on digits, which are prepared there too."""
    out = keras_resnext_stays(
        *("train", "--dataset", "digits", "--workdir", folder / "run"),
        *("--data-dir", folder / "data", "--epochs", 1, "--warmup-epochs", 0),
        *("--model", "resnext11_1x4d", "--image-size", 8),
    )
    assert "model.keras is ready" in " ".join(out.split())
    return folder / "run"


def test_import_and_build():
    stays(sys.executable, "-c", IMPORTS)


def test_train_and_evaluate(run, folder):
    out = keras_resnext_stays("evaluate", run, "--data-dir", folder / "data")
    assert "360" in out


def test_predict(run, folder):
    Image.new("RGB", (9, 9), "grey").save(folder / "grey.png")
    out = keras_resnext_stays("predict", run, folder / "grey.png", "--json")
    assert len(json.loads(out)) == 1


def test_export(run, folder):
    """With ONNX Runtime and LiteRT in processes of their own."""
    keras_resnext_stays("export", run, "--data-dir", folder / "data")
    assert (run / "export/model.onnx").is_file()


@pytest.fixture(scope="module")
def mediapipe():
    if not MEDIAPIPE.exists():
        pytest.skip("`make mediapipe` installs MediaPipe")
    return MEDIAPIPE


def test_litert_asks_for_nothing_and_mediapipe_for_a_host(mediapipe, folder):
    """Both classify the same image with the same file."""
    image = Image.open(MOBILE / "ankle-boot.png").convert("RGB")
    model = MOBILE / "fashion_mnist.tflite"
    out = stays(
        *(sys.executable, MOBILE / "classify.py", "--model", model),
        MOBILE / "ankle-boot.png",
    )
    assert "Ankle boot" in out
    pixels = folder / "pixels.npy"
    np.save(pixels, np.asarray(image)[None])
    done = isolated.run(mediapipe, "-c", CLASSIFY, model, pixels)
    assert done.status == 0, done.errors[-3000:]
    assert "Ankle boot" in done.output
    assert done.names == ["play.googleapis.com"]
