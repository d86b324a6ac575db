"""The server of export/serving: asked by curl and Triton's client.

It has a virtual environment of its own (`make serving`); without one, what
needs it is skipped.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import http.client
import importlib.util
import io
import json
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.export import to_onnx
from keras_resnext.export import to_saved_model
from keras_resnext.export.runtimes import open_onnx
from keras_resnext.transforms import EvalTransform
from tests.conftest import randomize

ROOT = pathlib.Path(__file__).parents[1]
KIT = ROOT / "export/serving"
PYTHON = ROOT / ".venv-serving/bin/python"
LABELS = ["apple", "größer", *"cdefghij"]
TRANSFORM = EvalTransform(
    image_size=32, resize_size=36, interpolation="bicubic"
)
LIMITS = {
    "max-batch": 4,
    "max-waiting": 50,
    "max-pictures": 50,
    "max-pixels": 200_000,
    "max-megabytes": 1,
}

integration = pytest.mark.integration


@pytest.fixture(scope="module")
def batching():
    return load("batching")


@pytest.fixture(scope="module")
def runtimes():
    return load("runtimes")


def load(name):
    """A module of the kit."""
    spec = importlib.util.spec_from_file_location(name, KIT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Batches.


def gathered(batching, run, pictures, largest=4):
    """What each picture is answered, an array or an error."""

    async def submit_all():
        batcher = batching.Batcher(run, largest)
        answers = map(batcher.submit, pictures)
        return await asyncio.gather(*answers, return_exceptions=True)

    return asyncio.run(submit_all())


def test_what_waits_runs_together(batching):
    first, all_wait = threading.Event(), threading.Event()
    sizes = []

    def run(pictures):
        sizes.append(len(pictures))
        if len(sizes) == 1:
            first.set()
            all_wait.wait(10)
        return 10 * pictures

    async def submit_all():
        batcher = batching.Batcher(run, 4)
        answers = [batcher.submit(np.array(0))]
        await asyncio.to_thread(first.wait, 10)
        answers += [batcher.submit(np.array(i)) for i in range(1, 10)]
        all_wait.set()
        return await asyncio.gather(*answers)

    assert asyncio.run(submit_all()) == [10 * i for i in range(10)]
    assert sizes == [1, 4, 4, 1]


def test_an_error_is_that_of_its_batch(batching):
    def run(pictures):
        if 5 in pictures:
            raise ValueError("five")
        return pictures

    pictures = [np.array(i) for i in range(8)]
    answers = gathered(batching, run, pictures, largest=1)
    assert str(answers.pop(5)) == "five"
    assert answers == [0, 1, 2, 3, 4, 6, 7]


def test_who_gave_up_is_passed_over(batching):
    async def submit_all():
        batcher = batching.Batcher(lambda pictures: 10 * pictures, 4)
        answers = [batcher.submit(np.array(i)) for i in range(3)]
        answers[1].cancel()
        return await asyncio.gather(*answers, return_exceptions=True)

    first, second, third = asyncio.run(submit_all())
    assert isinstance(second, asyncio.CancelledError)
    assert (first, third) == (0, 20)


# Files.


def write_onnx(path, *, shape=("n", 2, 2, 3), output="probabilities", **texts):
    """An ONNX file of the mean of each channel, with metadata."""
    from onnx import TensorProto
    from onnx import helper

    channels = shape.index(3)
    axes = [i for i in (1, 2, 3) if i != channels]
    graph = helper.make_graph(
        [
            helper.make_node(
                "ReduceMean", ["image"], [output], axes=axes, keepdims=0
            )
        ],
        "means",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    helper.set_model_props(model, texts)
    path.write_bytes(model.SerializeToString())
    return path


PIXELS = "RGB pixels in [0, 255]; the model normalizes them itself"


@pytest.mark.parametrize("order", ["NHWC", "NCHW"])
def test_opens_onnx_files(runtimes, tmp_path, order):
    shape = ("n", 4, 2, 3) if order == "NHWC" else ("n", 3, 4, 2)
    path = write_onnx(
        tmp_path / "m.onnx",
        shape=shape,
        input=PIXELS,
        data_format=order,
        labels='["a", "b", "c"]',
        transform=json.dumps(TRANSFORM.to_config()),
    )
    network = runtimes.open_model(path, 1)
    assert network.shape == (4, 2, 3)
    assert network.labels == ("a", "b", "c")
    assert network.transform == TRANSFORM
    pixels = np.arange(48, dtype="uint8").reshape(2, 4, 2, 3)
    np.testing.assert_allclose(network.run(pixels), pixels.mean((1, 2)))


def test_without_labels_there_are_indices(runtimes, tmp_path):
    path = write_onnx(tmp_path / "m.onnx", input=PIXELS)
    network = runtimes.open_model(path, 1)
    assert network.labels == ("0", "1", "2")
    assert network.transform is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", "`--model` must be an ONNX file or the folder"),
        ("text.onnx", "`--model` must be an ONNX file; got"),
        ("folder", "`--model` must be an ONNX file or the folder"),
        ("logits.onnx", "must map `image` to `probabilities`; .* to logits."),
        ("bare.onnx", "must take RGB pixels in .* takes what the bare"),
        ("foreign.onnx", "must take RGB pixels in .* takes something else."),
    ],
)
def test_refuses_what_it_cannot_serve(runtimes, tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.onnx").write_text("text")
    write_onnx(tmp_path / "logits.onnx", output="logits", input=PIXELS)
    write_onnx(tmp_path / "bare.onnx", input="what the bare network takes")
    write_onnx(tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=message):
        runtimes.open_model(tmp_path / name, 1)


# The server.


@pytest.fixture(scope="module")
def classifier():
    """A small network of random weights that is not sure of one class."""
    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        (1, 1, 1), 4, 4, stem="cifar", input_shape=(32, 32, 3), classes=10
    )
    return Classifier(randomize(model), LABELS, TRANSFORM)


@pytest.fixture(scope="module")
def onnx(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "model.onnx"
    to_onnx(classifier, path)
    return path


@pytest.fixture(scope="module")
def saved_model(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "saved_model"
    to_saved_model(classifier, path)
    return path


@pytest.fixture(scope="module")
def python():
    if not PYTHON.exists():
        pytest.skip("`make serving` installs KServe")
    return PYTHON


class Server:
    """A server in a process of its own."""

    def __init__(self, python, model, folder, **options):
        self.http_port, self.grpc_port = free_ports(2)
        options |= {"http-port": self.http_port, "grpc-port": self.grpc_port}
        command = [python, KIT / "serve.py", "--model", model]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self._log = folder / f"{self.http_port}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)
        deadline = time.monotonic() + 120
        while not self._is_ready():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def _is_ready(self):
        try:
            status, _ = self.get("/v2/models/resnext/ready")
        except OSError:
            return False
        return status == 200

    def log(self):
        return self._log.read_text()

    def get(self, path):
        return self.send("GET", path)

    def infer(self, *tensors, **fields):
        """The answer to JSON."""
        return self.post(json.dumps({"inputs": tensors} | fields))

    def post(self, body, path="/v2/models/resnext/infer", **headers):
        headers.setdefault("Content-Type", "application/json")
        return self.send("POST", path, body, headers)

    def send(self, method, path, body=None, headers=types.MappingProxyType({})):
        """Status and body, of JSON if it is."""
        connection = http.client.HTTPConnection(
            "localhost", self.http_port, timeout=60
        )
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            text = response.read().decode()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(text) if is_json else text

    def batches(self):
        """Pictures so far, and batches."""
        _, text = self.get("/metrics")
        return [
            int(
                float(re.search(rf"^batch_pictures_{name} (.*)", text, re.M)[1])
            )
            for name in ("sum", "count")
        ]

    def stop(self):
        """Exit status after SIGTERM, and requests accepted and answered."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        counts = re.search(r"stopped: (\d+) requests, (\d+)", self.log())
        return status, *map(int, counts.groups())


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("", 0)))
            for _ in range(count)
        ]
        return [socket.getsockname()[1] for socket in sockets]


@pytest.fixture(scope="module")
def server(python, onnx, tmp_path_factory):
    server = Server(python, onnx, tmp_path_factory.mktemp("log"), **LIMITS)
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def direct(onnx):
    """Probabilities of pixels, from ONNX Runtime alone."""
    run = open_onnx(str(onnx), 1)
    return lambda pixels: run(pixels)["probabilities"]


def picture(seed, height=40, width=50):
    """Coloured noise in large spots, uint8 `(height, width, 3)`."""
    spots = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), "uint8")
    image = Image.fromarray(spots).resize((width, height), Image.BICUBIC)
    return np.asarray(image)


def encode(pixels, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def turned():
    """A photograph whose orientation is beside its pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture(9), "JPEG", exif=exif)


def files():
    """Image files of all formats."""
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    return [encode(picture(i), kind) for i, kind in enumerate(kinds)] + [
        turned()
    ]


HUGE = encode(np.zeros((600, 600, 3), "uint8"))


def in_json(*files, **fields):
    texts = [base64.b64encode(file).decode() for file in files]
    tensor = {"name": "image_bytes", "datatype": "BYTES", "data": texts}
    return tensor | {"shape": [len(files)]} | fields


def of_pixels(pixels, datatype="UINT8", **fields):
    tensor = {"name": "image", "datatype": datatype, "shape": pixels.shape}
    return tensor | {"data": pixels.ravel().tolist()} | fields


def outputs_of(answer):
    """Arrays by name, from the answer to JSON."""
    return {
        output["name"]: np.array(output["data"]).reshape(output["shape"])
        for output in answer["outputs"]
    }


def check(outputs, probabilities, top=5):
    """Compare an answer with probabilities `(pictures, classes)`."""
    best = np.argsort(-probabilities, axis=1)[:, :top]
    scores = np.take_along_axis(probabilities, best, 1)
    np.testing.assert_array_equal(outputs["top_indices"], best)
    np.testing.assert_allclose(outputs["top_scores"], scores, atol=1e-6)
    names = np.array(LABELS)[best]
    np.testing.assert_array_equal(outputs["top_labels"], names)
    assert outputs["valid"].all()
    assert not any(outputs["errors"])


# Asks a server with Triton's client and saves the outputs of each question.
TRITON = """
import sys
import numpy
from tritonclient import grpc, http

asked, answered, http_port, grpc_port = sys.argv[1:]
names = ("top_labels", "top_scores", "top_indices", "valid", "errors")
found = {}
for triton, port in ((http, http_port), (grpc, grpc_port)):
    client = triton.InferenceServerClient(f"localhost:{port}")
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("resnext")
    kind = triton.__name__.rpartition(".")[2]
    for name, values in numpy.load(asked, allow_pickle=True).items():
        datatypes = {"O": "BYTES", "u": "UINT8", "f": "FP32"}
        datatype = datatypes[values.dtype.kind]
        tensor = triton.InferInput(
            "image_bytes" if datatype == "BYTES" else "image",
            list(values.shape),
            datatype,
        )
        tensor.set_data_from_numpy(values)
        try:
            answer = client.infer(
                "resnext", [tensor], request_id=name, parameters={"top": 3}
            )
        except triton.InferenceServerException as error:
            found[f"{kind} {name}"] = f"{error.status()} {error.message()}"
            continue
        whole = client.infer(
            "resnext",
            [tensor],
            outputs=[triton.InferRequestedOutput("probabilities")],
        )
        assert answer.get_output("probabilities") is None
        assert whole.get_output("top_labels") is None
        response = answer.get_response()
        assert (response["id"] if kind == "http" else response.id) == name
        for output in names:
            found[f"{kind} {name} {output}"] = answer.as_numpy(output)
        values = whole.as_numpy("probabilities")
        found[f"{kind} {name} probabilities"] = values
numpy.savez(answered, **found)
"""


@pytest.fixture(scope="module")
def by_triton(server, python, tmp_path_factory):
    """What Triton's client finds, by protocol and question."""
    folder = tmp_path_factory.mktemp("triton")
    pixels = np.stack([picture(i, 32, 32) for i in range(3)])
    np.savez(
        folder / "asked.npz",
        files=np.array(files(), object),
        mixed=np.array([b"text", turned(), HUGE, b""], object),
        bad=np.array([b"text"], object),
        pixels=pixels,
        floats=pixels.astype("float32"),
        small=pixels[:, :31],
        negative=-pixels.astype("float32"),
        many=np.array([turned()] * 51, object),
        large=np.array([bytes(1_000_000)], object),
    )
    done = subprocess.run(
        [
            *(python, "-c", TRITON, folder / "asked.npz"),
            *(folder / "found.npz", str(server.http_port)),
            str(server.grpc_port),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz", allow_pickle=True) as found:
        return dict(found)


protocols = pytest.mark.parametrize("protocol", ["http", "grpc"])


def answer_of(by_triton, question):
    start = f"{question} "
    return {
        name.removeprefix(start): np.char.decode(values.astype("S"), "utf-8")
        if values.dtype.kind == "O"
        else values
        for name, values in by_triton.items()
        if name.startswith(start)
    }


@integration
@protocols
def test_image_files_are_read_as_by_the_package(by_triton, direct, protocol):
    found = answer_of(by_triton, f"{protocol} files")
    pixels = np.stack([TRANSFORM.pixels(file) for file in files()])
    expected = direct(pixels)
    assert np.ptp(expected, axis=0).max() > 0.005  # pictures are told apart
    check(found, expected, top=3)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)


@integration
@protocols
@pytest.mark.parametrize("kind", ["pixels", "floats"])
def test_takes_pixels(by_triton, direct, protocol, kind):
    found = answer_of(by_triton, f"{protocol} {kind}")
    pixels = np.stack([picture(i, 32, 32) for i in range(3)])
    check(found, direct(pixels), top=3)


@integration
@protocols
def test_bad_files_leave_the_others_alone(by_triton, direct, protocol):
    found = answer_of(by_triton, f"{protocol} mixed")
    np.testing.assert_array_equal(found["valid"], [False, True, False, False])
    unknown = "unknown format; JPEG, PNG, GIF, BMP and WebP are read."
    limit = "600x600 pixels, more than `max_pixels` (200000)"
    errors = found["errors"].tolist()
    assert errors == [unknown, "", f"it has {limit}.", unknown]
    check(
        {name: values[1:2] for name, values in found.items()},
        direct(TRANSFORM.pixels(turned())[None]),
        top=3,
    )
    for name, nothing in (("scores", 0), ("indices", -1), ("labels", "")):
        bad = found[f"top_{name}"][[0, 2, 3]]
        np.testing.assert_array_equal(bad, np.full((3, 3), nothing))


@integration
@protocols
@pytest.mark.parametrize(
    ("question", "status", "message"),
    [
        ("bad", "400 INVALID_ARGUMENT", "No picture can be read; the first:"),
        ("small", "400 INVALID_ARGUMENT", "have shape [pictures, 32, 32, 3];"),
        ("negative", "400 INVALID_ARGUMENT", "`image` must be pixels from 0"),
        ("many", "400 INVALID_ARGUMENT", "from 1 to 50 pictures; got 51."),
        ("large", "413 RESOURCE_EXHAUSTED", ""),
    ],
)
def test_clients_learn_what_was_wrong(
    by_triton, protocol, question, status, message
):
    found = str(by_triton[f"{protocol} {question}"])
    code = status.split()[protocol == "grpc"]
    assert code in found.partition(" ")[0]
    assert message in found


@integration
def test_json_has_files_in_base64(server, direct):
    status, answer = server.infer(in_json(*files()[:2]), id="seven")
    assert status == 200, answer
    assert (answer["id"], answer["model_name"]) == ("seven", "resnext")
    pixels = np.stack([TRANSFORM.pixels(file) for file in files()[:2]])
    check(outputs_of(answer), direct(pixels))


@integration
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_json_has_pixels_as_numbers(server, direct, datatype):
    pixels = picture(3, 32, 32)[None]
    status, answer = server.infer(of_pixels(pixels, datatype))
    assert status == 200, answer
    check(outputs_of(answer), direct(pixels))


@integration
def test_says_what_it_takes_and_gives(server):
    _, found = server.get("/v2/models/resnext")
    inputs = {x["name"]: (x["datatype"], x["shape"]) for x in found["inputs"]}
    assert inputs == {
        "image_bytes": ("BYTES", [-1]),
        "image": ("UINT8", [-1, 32, 32, 3]),
    }
    outputs = {x["name"]: (x["datatype"], x["shape"]) for x in found["outputs"]}
    assert outputs["probabilities"] == ("FP32", [-1, 10])
    assert outputs["top_labels"] == ("BYTES", [-1, -1])
    assert outputs["valid"] == ("BOOL", [-1])


GOOD = encode(picture(0))
IMAGE = picture(0, 32, 32)[None]


@integration
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (in_json(b"text"), "the first: unknown format; JPEG, PNG"),
        (in_json(GOOD[:200]), "the first: "),
        (in_json(HUGE), "the first: it has 600x600 pixels"),
        (in_json(GOOD, data=["~"]), "the first: in JSON, image files must be"),
        (in_json(GOOD, data=["ß"]), "the first: in JSON, image files must be"),
        (in_json(GOOD, data=[7]), "`image_bytes` must have strings"),
        (in_json(GOOD, data=[None]), "`image_bytes` must have strings"),
        (in_json(GOOD, data=[]), "must have BYTES data of shape [1]"),
        (in_json(GOOD, shape=[2]), "must have BYTES data of shape [2]"),
        (in_json(GOOD, shape=[1, 1]), "must have shape [pictures]; got [1, 1]"),
        (in_json(GOOD, shape=[-1]), "must have from 1 to 50 pictures; got -1"),
        (in_json(GOOD, shape=[0], data=[]), "from 1 to 50 pictures; got 0"),
        (in_json(GOOD, shape=[]), "must have shape [pictures]; got []"),
        (in_json(GOOD, name="file"), "must be `image_bytes` or `image`; got f"),
        (in_json(GOOD, datatype="FP32"), "must be BYTES; got FP32"),
        (of_pixels(IMAGE[:, 1:]), "[pictures, 32, 32, 3]; got [1, 31, 32, 3]"),
        (of_pixels(IMAGE, "FP64"), "must be UINT8 or FP32; got FP64"),
        (of_pixels(IMAGE + 256.0), "must be pixels from 0 to 255"),
        (of_pixels(IMAGE - 1.0, "FP32"), "must be pixels from 0 to 255"),
        (
            of_pixels(IMAGE, data=["red"] * 3072),
            "must have UINT8 data of shape",
        ),
        (of_pixels(IMAGE, data=[[]]), "must have UINT8 data of shape"),
        (of_pixels(IMAGE, shape="all"), "inputs.0.shape"),
        ({"name": "image"}, "inputs.0.shape"),
    ],
)
def test_bad_tensors_are_refused(server, tensor, message):
    status, answer = server.infer(tensor)
    assert status == 400, answer
    assert message in answer["error"]


@integration
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": {"top": 0}}, "`top` must be a positive integer; got 0"),
        ({"parameters": {"top": 1.5}}, "`top` must be a positive integer"),
        ({"parameters": {"top": "3"}}, "`top` must be a positive integer"),
        ({"outputs": [{"name": "logits"}]}, "`outputs` must be of top_labels"),
        ({"inputs": []}, "`inputs` must be `image_bytes` or `image`"),
        ({"inputs": [in_json(GOOD), of_pixels(IMAGE)]}, "got image_bytes, ima"),
        ({"inputs": 5}, "The body must be JSON as in the Open Inference"),
        ({"inputs": None}, "The body must be JSON as in the Open Inference"),
        ({"id": 5}, "The body must be JSON as in the Open Inference"),
    ],
)
def test_bad_requests_are_refused(server, fields, message):
    status, answer = server.infer(in_json(GOOD), **fields)
    assert status == 400, answer
    assert message in answer["error"]


BINARY = "Inference-Header-Content-Length"


@integration
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"text", {}),
        (b"text", {"Content-Type": "text/plain"}),
        (GOOD, {"Content-Type": "image/png"}),
        (GOOD, {"Content-Type": "image/png", BINARY: "4"}),
        (b"{}", {"Content-Type": "application/octet-stream", BINARY: "2"}),
        (b"[]", {"Content-Type": "application/octet-stream", BINARY: "2"}),
        (b"{}", {"Content-Type": "application/octet-stream", BINARY: "two"}),
        (b"", {}),
        (b"\xff" * 100, {}),
        (b"[" * 100_000, {}),
        (b"{" * 100_000, {"Content-Type": "text/plain", BINARY: "100000"}),
    ],
)
def test_bodies_that_are_no_requests_are_refused(server, body, headers):
    status, answer = server.post(body, **headers)
    assert status in (400, 422), answer
    assert answer["error"]


def binary(tensor, data, size=None):
    """Body and headers of a request with binary data."""
    size = len(data) if size is None else size
    tensor = tensor | {"parameters": {"binary_data_size": size}}
    del tensor["data"]
    head = json.dumps({"inputs": [tensor]}).encode()
    kind = "application/octet-stream"
    return head + data, {BINARY: str(len(head)), "Content-Type": kind}


@integration
@pytest.mark.parametrize(
    ("tensor", "data", "size"),
    [
        (in_json(GOOD), GOOD, None),
        (in_json(GOOD), struct.pack("<I", 2**32 - 1) + GOOD, None),
        (in_json(GOOD), struct.pack("<I", len(GOOD)) + GOOD, 10),
        (in_json(GOOD), struct.pack("<I", len(GOOD)) + GOOD, 10**9),
        (in_json(GOOD), struct.pack("<I", len(GOOD)) + GOOD, -5),
        (in_json(GOOD), struct.pack("<I", len(GOOD)) + GOOD, "all"),
        (in_json(GOOD), b"\0\0\0", None),
        (in_json(GOOD, shape=[2]), struct.pack("<I", 0), None),
        (of_pixels(IMAGE), IMAGE.tobytes()[:-1], None),
        (of_pixels(IMAGE, "FP32"), IMAGE.tobytes(), None),
        (
            of_pixels(IMAGE, "FP32"),
            np.full(IMAGE.shape, np.nan, "float32").tobytes(),
            None,
        ),
    ],
)
def test_bad_binary_data_are_refused(server, tensor, data, size):
    body, headers = binary(tensor, data, size)
    status, answer = server.post(body, **headers)
    assert status == 400, answer
    assert answer["error"]


@integration
def test_large_bodies_are_refused(server):
    status, answer = server.post(bytes(1_000_001))
    assert (status, answer["error"]) == (
        413,
        "A request must have at most 1,000,000 bytes.",
    )
    # One that does not say its size.
    parts = (bytes(100_000) for _ in range(11))
    status, answer = server.post(parts)
    assert status == 413, answer


@integration
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/resnext/versions/2/infer", 501),
        ("POST", "/v1/models/resnext:predict", 400),
        ("GET", "/v3", 404),
        ("POST", "/v2/repository/models/resnext/unload", 400),
    ],
)
def test_other_addresses_are_refused(server, method, path, status):
    body = json.dumps({"inputs": [in_json(GOOD)], "instances": []})
    headers = {"Content-Type": "application/json"}
    found, answer = server.send(method, path, body, headers)
    assert found == status
    assert answer["error"]
    assert server.get("/v2/models/resnext/ready")[0] == 200


@integration
def test_too_many_pictures_are_told_to_come_later(server, direct):
    """Those that were accepted are answered all the same."""
    pixels = np.repeat(IMAGE, 50, 0)
    body, headers = binary(of_pixels(pixels), pixels.tobytes())

    def ask(_):
        return server.post(body, **headers)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    for status, answer in answers:
        if status == 503:
            message = "50 pictures are under way and 50 more would be over 50;"
            assert answer["error"].startswith(message)
        else:
            assert status == 200, answer
            check(outputs_of(answer), direct(pixels))
    assert {status for status, _ in answers} == {200, 503}


@integration
def test_requests_share_batches(server, direct):
    """Of all at once, each is answered its own."""
    seeds = range(120)
    before = server.batches()

    def ask(seed):
        if seed % 10 == 9:
            return server.infer(in_json(b"text"))
        return server.infer(in_json(encode(picture(seed, 40, 50))))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, seeds))
    for seed, (status, answer) in zip(seeds, answers, strict=True):
        if seed % 10 == 9:
            assert status == 400
            continue
        assert status == 200, answer
        pixels = TRANSFORM.pixels(picture(seed, 40, 50))[None]
        check(outputs_of(answer), direct(pixels))
    pictures, batches = np.subtract(server.batches(), before)
    assert pictures == 108
    assert 27 <= batches < 90


# Asks by gRPC until the server is gone; prints how many answers came.
UNTIL_THE_END = """
import concurrent.futures, sys
import numpy
from tritonclient import grpc

pixels = numpy.zeros((8, 32, 32, 3), "uint8")

def ask():
    client = grpc.InferenceServerClient(f"localhost:{sys.argv[1]}")
    tensor = grpc.InferInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels)
    for count in range(sys.maxsize):
        try:
            client.infer("resnext", [tensor])
        except grpc.InferenceServerException as error:
            return count, error.status()

with concurrent.futures.ThreadPoolExecutor(6) as pool:
    asked = [pool.submit(ask) for _ in range(6)]
    counts, statuses = zip(*(future.result() for future in asked))
    assert set(statuses) == {"StatusCode.UNAVAILABLE"}, statuses
    print(sum(counts))
"""


@integration
def test_grpc_requests_under_way_are_answered_at_the_end(
    python, onnx, tmp_path
):
    server = Server(python, onnx, tmp_path)
    command = [python, "-c", UNTIL_THE_END, str(server.grpc_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        while server.batches()[0] < 100:
            assert client.poll() is None, server.log()
            time.sleep(0.1)
        status, accepted, answered = server.stop()
        received, _ = client.communicate(timeout=60)
    assert (client.returncode, status) == (0, 0), server.log()
    assert accepted == answered == int(received)
    # A line when it begins and one when it ends.
    assert len(server.log().splitlines()) == 2


@integration
def test_load_in_small(python, onnx):
    """The answers of some hundred requests, and SIGTERM among them."""
    done = subprocess.run(
        [
            *(python, KIT / "load.py", "--model", onnx, "--requests", "300"),
            *("--rounds", "1", "--bad", "0.1"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = re.search(r"outcomes: (.*) of 300 requests", done.stdout)[1]
    counts = json.loads(outcomes.replace("'", '"'))
    assert set(counts) == {"right", "4xx"}
    assert sum(counts.values()) == 300
    assert counts["4xx"] > 10
    assert "exit status 0; of all" in done.stdout


@integration
def test_the_readme_works_as_printed(server, tmp_path):
    text = (KIT / "README.md").read_text()
    text = text.replace("localhost:8080", f"localhost:{server.http_port}")
    (command,) = (
        block
        for block in re.findall(r"```sh\n(.*?)```", text, re.S)
        if "curl --json" in block
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=60
    )
    outputs = outputs_of(json.loads(done.stdout))
    assert outputs["top_labels"].shape == (1, 5)


@integration
def test_the_client_prints_the_best_classes(server, python, tmp_path, direct):
    client = tmp_path / "client.py"
    text = (KIT / "client.py").read_text()
    client.write_text(text.replace("8080", str(server.http_port)))
    (tmp_path / "photo.png").write_bytes(GOOD)
    done = subprocess.run(
        [python, client, tmp_path / "photo.png"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (scores,) = direct(TRANSFORM.pixels(GOOD)[None])
    best = np.argsort(-scores)[:3]
    assert done.stdout.splitlines() == [
        f"{LABELS[i]:20} {scores[i]:.4f}" for i in best
    ]


@integration
def test_serves_saved_models(python, saved_model, tmp_path, direct):
    known = "import importlib.util as i, sys; "
    known += "sys.exit(i.find_spec('tensorflow') is None)"
    if subprocess.run([python, "-c", known]).returncode:
        pytest.skip("TensorFlow is not in the server's environment")
    server = Server(python, saved_model, tmp_path)
    status, answer = server.infer(in_json(*files()))
    assert status == 200, answer
    pixels = np.stack([TRANSFORM.pixels(file) for file in files()])
    check(outputs_of(answer), direct(pixels))
    assert server.stop() == (0, 1, 1)


# Runs a SavedModel and saves what came of it.
RUN = """
import sys
import numpy

kit, path, asked, answered = sys.argv[1:]
sys.path.insert(0, kit)
import runtimes

network = runtimes.open_model(path, 1)
numpy.savez(
    answered,
    scores=network.run(numpy.load(asked)),
    labels=network.labels,
    shape=network.shape,
    image_size=network.transform.image_size,
)
"""


@integration
def test_opens_saved_models(saved_model, tmp_path, direct):
    """Where TensorFlow is, which is here."""
    pixels = np.stack([picture(i, 32, 32) for i in range(3)])
    np.save(tmp_path / "pixels.npy", pixels)
    files = tmp_path / "pixels.npy", tmp_path / "found.npz"
    command = [sys.executable, "-c", RUN, KIT, saved_model, *files]
    subprocess.run(command, check=True, timeout=120)
    with np.load(files[1]) as found:
        assert found["labels"].tolist() == LABELS
        assert found["shape"].tolist() == [32, 32, 3]
        assert found["image_size"] == 32
        np.testing.assert_allclose(found["scores"], direct(pixels), atol=1e-6)


@integration
def test_a_saved_model_asks_for_tensorflow(python, tmp_path):
    (tmp_path / "saved_model.pb").touch()
    code = "import sys; sys.modules['tensorflow'] = None; "
    code += "import runpy; sys.argv = sys.argv[1:]; "
    code += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = start(python, "-c", code, KIT / "serve.py", "--model", tmp_path)
    assert done.startswith("Error: A SavedModel needs TensorFlow; install")


def start(*command):
    """The error of a command that must fail."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


@integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none"], "`--model` must be an ONNX file or the folder"),
        (["--model", "none", "--max-batch", "0"], "`--max-batch` must be 1 or"),
        (
            ["--model", "none", "--max-waiting", "9"],
            "`--max-waiting` must be `--max-pictures` or more, 64; got 9.",
        ),
    ],
)
def test_errors_are_one_line(python, arguments, message):
    line = start(python, KIT / "serve.py", *arguments)
    assert line.startswith(f"Error: {message}")


# Reads the files for other servers with those servers' own classes.
READ_MANIFEST = """
import sys
import kserve, kubernetes, yaml

def read(kind, content):
    names = {key: name for name, key in kind.attribute_map.items()}
    return kind(**{names[key]: value for key, value in content.items()})

with open(sys.argv[1]) as file:
    content = yaml.safe_load(file)
service = read(kserve.V1beta1InferenceService, content)
spec = read(kserve.V1beta1InferenceServiceSpec, service.spec)
predictor = read(kserve.V1beta1PredictorSpec, spec.predictor)
(container,) = predictor.containers
# What the class does not know is left out.
read = kubernetes.client.V1Container.from_dict(container)
assert read.model_dump(by_alias=True, exclude_none=True) == container
"""
READ_CONFIG = """
import json, sys
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

with open(sys.argv[1]) as file:
    text = file.read()
config = text_format.Parse(text, model_config_pb2.ModelConfig())
tensors = [*config.input, *config.output]
for tensor in tensors:
    assert tensor.data_type == model_config_pb2.TYPE_FP32
print(json.dumps({tensor.name: [*tensor.dims] for tensor in tensors}))
"""


@integration
def test_the_manifest_is_one_of_kserve(python):
    manifest = KIT / "inference-service.yaml"
    subprocess.run([python, "-c", READ_MANIFEST, manifest], check=True)


@integration
def test_the_model_repository_fits_the_demo(python):
    folder = KIT / "triton/fashion_mnist"
    text = subprocess.check_output(
        [python, "-c", READ_CONFIG, folder / "config.pbtxt"], text=True
    )
    model = keras_resnext.Classifier.load(
        "resnext29_8x4d_f64", weights="fashion_mnist"
    )
    side, classes = model.transform.image_size, len(model.labels)
    shapes = {"image": [side, side, 3], "probabilities": [classes]}
    assert json.loads(text) == shapes
    labels = (folder / "labels.txt").read_text().splitlines()
    assert labels == list(model.labels)
