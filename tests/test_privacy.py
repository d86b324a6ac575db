"""What leaves the machine: nothing, where docs/privacy.md says nothing."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import fake_hub
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
BUILDS = """
import sys
import keras_resnext
from keras_resnext import explain, export, share, training
keras_resnext.ResNeXt((1, 1), 2, 4, input_shape=(32, 32, 3))
classifier = keras_resnext.Classifier.load(
    "resnext29_8x4d_f64", "fashion_mnist"
)
explain.grad_cam(classifier, sys.argv[1])
"""

EXPORTS = """
import sys, time
import keras_resnext
from keras_resnext.export import to_onnx
model = keras_resnext.ResNeXt((1,), 2, 4, stem="cifar", input_shape=(8, 8, 3))
to_onnx(model, sys.argv[1])
time.sleep(30)
"""


# Seconds, and where the file is or why it is not.
FETCH = """
import time
from keras_resnext.weights import hub
start = time.perf_counter()
try:
    found = hub.fetch_repository(hub.Repository("user/birds"), "config.json")
except Exception as error:
    found = error
print(time.perf_counter() - start, found)
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


def test_import_build_and_explain():
    stays(sys.executable, "-c", BUILDS, MOBILE / "ankle-boot.png")


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


@pytest.mark.slow
@pytest.mark.parametrize("disabled", ["0", None])
def test_onnx_runtime_reports_to_nobody(disabled, tmp_path):
    """It would, some seconds after a session was opened."""
    variables = {"ORT_DISABLE_TELEMETRY": disabled} if disabled else {}
    done = isolated.run(
        *(sys.executable, "-c", EXPORTS, tmp_path / "model.onnx"),
        environment=variables,
    )
    assert done.status == 0, done.errors[-3000:]
    asked = {"mobile.events.data.microsoft.com"} if disabled else set()
    assert set(done.names) == asked


def test_what_a_silent_name_server_costs(tmp_path):
    """In a new process: the Hub's client would ask for a list of its own."""
    done = isolated.run(
        *(sys.executable, "-c", FETCH),
        answers=False,
        environment={"HF_HOME": str(tmp_path)},
    )
    took, message = done.output.split(maxsplit=1)
    assert "huggingface.co:443: no answer within 4 s" in message
    assert float(took) < 5
    assert done.names == ["huggingface.co"]


# Those of the client's version that is locked; another may send others.
HEADERS = {
    *("Accept", "Accept-Encoding", "Connection", "Host", "authorization"),
    *("user-agent", "X-Amzn-Trace-Id", "X-HF-Download-Counter"),
}


@pytest.mark.parametrize("telemetry", [True, False])
def test_what_the_hub_is_sent(telemetry, tmp_path):
    """The token goes there; a list for telemetry is asked for, without it."""
    variables = {"HF_HOME": str(tmp_path), "HF_TOKEN": fake_hub.TOKEN}
    for name in (
        "HF_HUB_DISABLE_TELEMETRY",
        "DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
    ):
        variables[name] = "0"
    if not telemetry:
        variables["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with fake_hub.FakeHub() as hub:
        hub.repositories["user/birds"] = {
            "private": True,
            "commits": [("1" * 40, {"config.json": b"{}"})],
        }
        variables["HF_ENDPOINT"] = hub.address
        done = subprocess.run(
            [sys.executable, "-c", FETCH],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
        )
    assert done.stdout.strip().endswith("1" * 40), done.stderr
    sent = list(zip(hub.requests, hub.headers, strict=True))
    if telemetry:
        request, headers = sent.pop(0)
        assert request == ("GET", "/api/agent-harnesses")
        assert "authorization" not in {name.lower() for name in headers}
    path = "/user/birds/resolve/main/config.json"
    assert [request for request, _ in sent] == [("HEAD", path), ("GET", path)]
    for _, headers in sent:
        assert set(headers) <= HEADERS
        assert headers["authorization"] == f"Bearer {fake_hub.TOKEN}"
        agent = re.sub(r"/[\w.+]+", "", headers["user-agent"])
        expected = ["unknown", "hf_hub", "python"]
        if telemetry and importlib.util.find_spec("torch"):
            expected.append("torch")
        assert agent.split("; ") == expected


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
