"""Published weights through their real clients, from a server of our own."""

import contextlib
import hashlib
import http.server
import importlib
import json
import logging
import math
import os
import pathlib
import re
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext import imagenet
from keras_resnext.names import join_paths
from keras_resnext.variants import build
from keras_resnext.weights import convert
from keras_resnext.weights import hub
from keras_resnext.weights import most_accurate_permissive
from keras_resnext.weights.registry import APACHE
from keras_resnext.weights.registry import BSD
from keras_resnext.weights.registry import NON_COMMERCIAL
from keras_resnext.weights.registry import PUBLISHED
from tests.conftest import randomize
from tests.regenerate_golden import GOLDEN


def torch_reference():
    """torchvision's networks; a test that asks is skipped without torch."""
    return importlib.import_module("tests.torch_reference")


LICENCES = (APACHE, BSD, NON_COMMERCIAL)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# See tests/test_parity.py.
RELATIVE_TOLERANCE = 1e-5


class Server:
    """Serves a folder as the Hub serves repositories, and as plain files.

    `faults` are applied to coming requests for files, one each: an HTTP
    status, or `"cut"` to close the connection in the middle. `etag` is what
    it says of every file instead of its SHA-256, as mirrors do.
    """

    def __init__(self, folder):
        self.folder, self.faults, self.requests = folder, [], []
        self.etag = None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                outer.answer(self, with_body=False)

            def do_GET(self):
                outer.answer(self, with_body=True)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler, with_body):
        path = handler.path.split("?")[0]
        file = self.folder / re.sub(r"/resolve/[^/]+/", "/", path).lstrip("/")
        start = int(
            (handler.headers.get("Range") or "bytes=0-")[6:].split("-")[0]
        )
        self.requests.append((handler.command, path, start))
        fault = self.faults.pop(0) if with_body and self.faults else None
        if isinstance(fault, int) or not file.is_file():
            handler.send_response(fault or 404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = file.read_bytes()
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body) - start))
        if start:
            handler.send_header(
                "Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"
            )
        handler.send_header("Accept-Ranges", "bytes")
        etag = self.etag or hashlib.sha256(body).hexdigest()
        handler.send_header("ETag", f'"{etag}"')
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.end_headers()
        if not with_body:
            return
        body = body[start:]
        if fault == "cut":
            handler.wfile.write(body[: len(body) // 2])
            handler.close_connection = True
            return
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server, with every cache in a folder of this test's own."""
    from huggingface_hub import constants

    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(folder)
    caches = tmp_path / "caches"
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(caches / "hub"))
    monkeypatch.setenv("KERAS_RESNEXT_MIRROR", server.address)
    monkeypatch.setenv("TORCH_HOME", str(caches / "torch"))
    monkeypatch.setenv("KERAS_HOME", str(caches / "keras"))
    yield server
    server.server.shutdown()
    server.server.server_close()


def state_dict(name):
    """A random network of torchvision's or timm's, and its tensors."""
    if name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"):
        network = torch_reference().torchvision.models.get_model(name)
    elif name == "resnext101_32x48d":  # as its authors' torch.hub entry does
        resnet = torch_reference().torchvision.models.resnet
        network = resnet.ResNet(
            resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=48
        )
    else:
        timm = pytest.importorskip("timm")
        network = timm.create_model(name)
    return torch_reference().randomized(network)


def serve(server, record, network):
    """Write a network's file to where the record says it is published."""
    from safetensors.torch import save_file

    if record.source == "huggingface":
        path = server.folder / record.address / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), path, metadata={"format": "pt"})
        return path
    path = server.folder / record.address.split("/", 3)[3]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch_reference().torch.save(network.state_dict(), path)
    return path


def their_transform(record):
    """What the publisher's own library does with a picture before the net."""
    if record.source == "torchvision":
        if not has_transform(record):
            presets = torch_reference().torchvision.transforms._presets
            return presets.ImageClassification(crop_size=224)
        models = torch_reference().torchvision.models
        version = record.tag.removeprefix("imagenet1k_").upper()
        enum = models.get_model_weights(record.model)
        return enum[f"IMAGENET1K_{version}"].transforms()
    torch_reference()  # timm imports torchvision, which needs its help
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg(record.name).to_dict()
    config = timm.data.resolve_data_config(
        pretrained_cfg=config, use_test_size=True
    )
    return timm.data.create_transform(**config)


def pictures():
    """Photographs of several sizes and shapes, uint8."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    one, other = load_sample_images().images  # 427 x 640
    return [
        one,
        other[:, 100:400],
        np.asarray(Image.fromarray(one).resize((233, 499))),
        np.asarray(Image.fromarray(other).resize((1500, 1001))),
        np.asarray(Image.fromarray(one).resize((256, 256))),
        np.asarray(Image.fromarray(one).resize((120, 90))),
    ]


def assert_same_logits(model, network, record):
    """Pixels in, each side through its own preprocessing."""
    from PIL import Image

    torch = torch_reference().torch
    images = pictures()[:2]
    theirs = their_transform(record)
    batch = torch.stack([theirs(Image.fromarray(x)) for x in images])
    with torch.inference_mode():
        expected = network(batch).numpy()
    ours = record.transform
    found = np.asarray(model(np.stack([ours(x) for x in images])))
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert difference < RELATIVE_TOLERANCE
    # Photographs are told apart, or the line above says little.
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def has_transform(record):
    """Whether another library has the transform that goes with a file."""
    elsewhere = record.source in ("huggingface", "torchvision")
    # No library lists the 48d any more.
    return elsewhere and not record.model.endswith("48d")


@pytest.mark.integration
@pytest.mark.parametrize(
    "record",
    {
        (r.image_size, r.resize_size, r.interpolation, r.source): r
        for r in filter(has_transform, PUBLISHED)
    }.values(),
    ids=lambda record: record.name,
)
def test_transform_is_theirs(record):
    from PIL import Image

    ours, theirs = record.transform, their_transform(record)
    for image in pictures():
        expected = theirs(Image.fromarray(image)).permute(1, 2, 0).numpy()
        found = ours(image)
        assert found.dtype == np.float32
        # The same resized bytes; one rounding each of three operations.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_transform_refuses_what_is_no_photograph():
    transform = PUBLISHED[0].transform
    for wrong in (np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8)):
        with pytest.raises(ValueError, match="`image` must be uint8"):
            transform(wrong)


@pytest.mark.integration
def test_records_are_the_publishers():
    """Facts that timm's and torchvision's own tables have too."""
    timm = pytest.importorskip("timm")
    records = [r for r in PUBLISHED if r.source == "huggingface"]
    assert len(records) == 25
    for record in records:
        config = timm.get_pretrained_cfg(record.name)
        assert config.license == record.license, record.name
        assert config.hf_hub_id == record.address
        assert tuple(config.mean) == record.mean
        assert tuple(config.std) == record.std
        assert config.interpolation == record.interpolation
        size = (config.test_input_size or config.input_size)[1]
        share = config.test_crop_pct or config.crop_pct
        assert record.image_size == size
        assert record.resize_size == math.floor(size / share)
    models = torch_reference().torchvision.models
    for record in PUBLISHED:
        if record.source != "torchvision" or not has_transform(record):
            continue
        version = record.tag.removeprefix("imagenet1k_").upper()
        weights = models.get_model_weights(record.model)[
            f"IMAGENET1K_{version}"
        ]
        assert weights.url == record.address
        metrics = weights.meta["_metrics"]["ImageNet-1K"]
        assert metrics == {"acc@1": record.top1, "acc@5": record.top5}
        assert weights.meta["num_params"] == record.parameters
        # Theirs is of the whole file, in units of 2^20 bytes.
        file_mb = weights.meta["_file_size"] * 2**20 / 1e6
        assert record.size_mb == pytest.approx(file_mb, abs=0.3)


@pytest.mark.parametrize("record", PUBLISHED, ids=lambda r: r.name)
def test_sizes_are_of_the_networks(record):
    """What a file holds is what the network's frozen layers are."""
    name = record.model.replace("_32x4d", "")
    layers = json.loads((GOLDEN / f"{name}.json").read_text())
    values = sum(
        math.prod(shape)
        for _, layer, shapes in layers
        for shape in shapes
        if record.include_top or layer != "predictions"
    )
    assert record.size_mb == values * 4 / 1e6


def test_registry_is_light():
    code = (
        "import sys, time; import keras_resnext.weights.registry; "
        "heavy = {'keras', 'tensorflow', 'torch', 'PIL'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imagenet_means_the_best_without_restrictions():
    chosen = {
        model: keras_resnext.get_weights(model).tag
        for model in (
            "resnext50",
            "resnext101",
            "resnext101_32x8d",
            "resnext101_64x4d",
        )
    }
    assert chosen == {
        "resnext50": "tv2_in1k",
        "resnext101": "gluon_in1k",
        "resnext101_32x8d": "tv2_in1k",
        "resnext101_64x4d": "tv_in1k",
    }
    with pytest.raises(ValueError, match="non-commercial use only.*fb_wsl"):
        keras_resnext.get_weights("resnext101_32x16d")
    with pytest.raises(ValueError, match="\"a1h_in1k\".*got 'a9'"):
        keras_resnext.ResNeXt50(weights="a9")
    with pytest.raises(ValueError, match="resnext50_2x40d, for which none"):
        keras_resnext.ResNeXt50(cardinality=2, base_width=40)
    with pytest.raises(ValueError, match="must be an existing file"):
        keras_resnext.ResNeXt50(weights="absent.pth")


@pytest.mark.integration
def test_the_packages_own_weights(tmp_path, monkeypatch):
    """They are installed with it, and checked like the others."""
    classifier = keras_resnext.Classifier.load(
        "resnext29_8x4d_f64", "fashion_mnist"
    )
    kit = pathlib.Path(__file__).parents[1] / "export" / "mobile"
    (prediction,) = classifier.predict([kit / "ankle-boot.png"])
    ((label, probability), *_) = prediction.top(1)
    assert label == "Ankle boot"
    assert probability > 0.8
    record = classifier.record
    assert classifier.labels == record.labels
    assert classifier.model.input_shape == (None, 28, 28, 3)
    assert classifier.model.count_params() * 4 / 1e6 == record.size_mb < 2

    with pytest.raises(ValueError, match="ImageNet are published; .*fashion_m"):
        keras_resnext.Classifier.load("resnext29_8x4d_f64")
    with pytest.raises(ValueError, match="one of \"fashion_mnist\"; got 'a1'"):
        keras_resnext.get_weights("resnext29_8x4d_f64", "a1")
    with pytest.raises(ValueError, match="got 'fash.* tag of resnext29_8x4d"):
        keras_resnext.ResNeXt50(weights="fashion_mnist")

    changed = hub._INSTALLED / record.address
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    (tmp_path / record.address).write_bytes(content)
    monkeypatch.setattr(hub, "_INSTALLED", tmp_path)
    with pytest.raises(ValueError, match="was changed. Reinstall keras_res"):
        hub.fetch(record)
    (tmp_path / record.address).unlink()
    with pytest.raises(ValueError, match="is missing or was changed"):
        hub.fetch(record)


def test_the_most_accurate_without_restrictions():
    for model in {record.model for record in PUBLISHED}:
        best = most_accurate_permissive(model)
        records = [
            record
            for record in keras_resnext.list_weights(model)
            if record.license != NON_COMMERCIAL
        ]
        assert (best in records) == bool(records)
        for record in records:
            assert record.top1 < best.top1 + 0.005
    assert most_accurate_permissive("resnext50").tag == "a1h_in1k"
    # torchvision's own file is better by 0.002 %, and needs torch.
    assert most_accurate_permissive("resnext101_32x8d").tag == "tv2_in1k"
    assert most_accurate_permissive("resnext101_32x16d") is None
    assert most_accurate_permissive("resnet50") is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("tag", "form"),
    [
        ("imagenet", "grouped"),
        pytest.param("imagenet1k_v1", "concatenated", marks=pytest.mark.slow),
        pytest.param("a1h_in1k", "branches", marks=pytest.mark.slow),
    ],
)
def test_published_weights_give_their_logits(tag, form, server, monkeypatch):
    network = state_dict("resnext50_32x4d")
    record = keras_resnext.get_weights("resnext50", tag)
    path = serve(server, record, network)
    if record.sha256:  # of random weights, not of the published ones
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(vars(record), "sha256", digest[:8])
    model = keras_resnext.ResNeXt50(
        weights=tag,
        form=form,
        classifier_activation=None,
        input_shape=(None, None, 3),
    )
    assert_same_logits(model, network, record)
    # The second time, nothing is asked for.
    before = len([r for r in server.requests if r[0] == "GET"])
    keras_resnext.load_weights(model, tag)
    assert len([r for r in server.requests if r[0] == "GET"]) == before
    keras.backend.clear_session()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    list(dict.fromkeys(r.model for r in PUBLISHED if r.source != "package")),
)
def test_every_network_published(model, server, tmp_path, monkeypatch):
    """In both formats. Gigabytes for the widest."""
    record = keras_resnext.list_weights(model)[0]
    network = state_dict(record.model)
    path = serve(server, record, network)
    if record.sha256:  # of random weights, not of the published ones
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        monkeypatch.setitem(vars(record), "sha256", digest[:8])
    built = build(
        model,
        weights=record.tag,
        classifier_activation=None,
        input_shape=(None, None, 3),
    )
    assert_same_logits(built, network, record)

    # The other format, into a model that no longer has these weights.
    for layer in built.layers:
        layer.set_weights([0 * x for x in layer.get_weights()])
    if record.source == "huggingface":
        path = tmp_path / "w.pth"
        torch_reference().torch.save(network.state_dict(), path)
    else:
        from safetensors.torch import save_file

        path = tmp_path / "w.safetensors"
        save_file(network.state_dict(), path)
    keras_resnext.load_weights(built, path)
    assert_same_logits(built, network, record)
    keras.backend.clear_session()


def tiny(**arguments):
    keras.utils.set_random_seed(0)
    defaults = {"classes": 10, "input_shape": (32, 32, 3)}
    return keras_resnext.ResNeXt((1, 2, 1, 1), 4, 4, **defaults | arguments)


def tiny_tensors(**arguments):
    model = randomize(tiny(**arguments))
    weights = {x.name: x.get_weights() for x in model.layers if x.weights}
    return model, convert.to_torch(join_paths(weights))


def write(path, tensors):
    """A file of tensors in the format that its name says."""
    torch = torch_reference().torch
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    if path.suffix == ".pth":
        state = {"module." + k: torch.from_numpy(v) for k, v in tensors.items()}
        torch.save({"state_dict": state}, path)
    else:
        from safetensors.numpy import save_file

        save_file(tensors, path)
    return path


IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


@pytest.mark.integration
@pytest.mark.parametrize("form", ["grouped", "concatenated", "branches"])
@pytest.mark.parametrize(
    "name", ["w.safetensors", "w.pth", "w.keras", "w.weights.h5", "run"]
)
def test_files_load_into_every_form(name, form, tmp_path):
    forms = {"w.keras": "branches", "w.weights.h5": "concatenated"}
    source, tensors = tiny_tensors(form=forms.get(name, "grouped"))
    path = tmp_path / name
    if name == "run":
        path.mkdir()
        source.save(path / "model.keras")
    elif name == "w.keras":
        source.save(path)
    elif name == "w.weights.h5":
        source.save_weights(path)
    else:
        write(path, tensors)
    model = tiny(form=form, weights=path)
    expected = source(IMAGES)
    np.testing.assert_allclose(model(IMAGES), expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(expected) > 0.01


@pytest.mark.integration
@pytest.mark.parametrize("form", ["concatenated", "branches"])
def test_a_hundred_paths_stay_in_order(form, tmp_path):
    def build(**arguments):
        return keras_resnext.ResNeXt(
            (1,), 128, 1, stem="cifar", input_shape=(8, 8, 3), **arguments
        )

    source = randomize(build(form=form))
    source.save(tmp_path / "w.keras")
    images = IMAGES[:, :8, :8]
    np.testing.assert_allclose(
        build(weights=tmp_path / "w.keras")(images),
        source(images),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.integration
def test_export_opens_in_torch_and_here(tmp_path):
    source, _ = tiny_tensors(form="concatenated")
    path = tmp_path / "mine.safetensors"
    keras_resnext.export_weights(source, path)
    again = tiny(weights=path)
    np.testing.assert_allclose(
        again(IMAGES), source(IMAGES), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(FileExistsError):
        keras_resnext.export_weights(source, path)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        keras_resnext.export_weights(source, tmp_path / "mine.bin")
    folded = keras_resnext.fold_batch_norm(source)
    with pytest.raises(ValueError, match="has no conv1_bn"):
        keras_resnext.export_weights(folded, tmp_path / "f.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX'")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_exported_weights_have_the_mode_of_any_new_file(umask, mode, tmp_path):
    """safetensors itself writes files that only their owner may read."""
    before = os.umask(umask)
    try:
        keras_resnext.export_weights(tiny(), tmp_path / "mine.safetensors")
    finally:
        os.umask(before)
    found = (tmp_path / "mine.safetensors").stat().st_mode
    assert stat.S_IMODE(found) == mode


@pytest.mark.parametrize("change", ["lora", "int8"])
def test_weights_that_are_not_plain_are_not_exported(change, tmp_path):
    model = tiny()
    classifier = model.get_layer("predictions")
    if change == "lora":
        classifier.enable_lora(2)
    else:
        classifier.quantize("int8")
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match="those of predictions are"):
        keras_resnext.export_weights(model, path)
    assert not path.exists()


@pytest.mark.integration
def test_exported_weights_open_in_timm(tmp_path):
    timm = pytest.importorskip("timm")
    model = randomize(
        keras_resnext.ResNeXt50(weights=None, classifier_activation=None)
    )
    path = tmp_path / "mine.safetensors"
    keras_resnext.export_weights(model, path)
    network = timm.create_model(
        "resnext50_32x4d", checkpoint_path=str(path)
    ).eval()
    image = np.random.default_rng(0).normal(size=(1, 224, 224, 3))
    image = image.astype("float32")
    torch = torch_reference().torch
    with torch.inference_mode():
        expected = network(torch.from_numpy(image.transpose(0, 3, 1, 2)))
    difference = np.abs(np.asarray(model(image)) - expected.numpy()).max()
    assert difference < RELATIVE_TOLERANCE * expected.abs().max().item()


@pytest.mark.integration
def test_other_heads_and_channels(tmp_path, caplog):
    source, tensors = tiny_tensors()
    path = write(tmp_path / "w.safetensors", tensors)
    with caplog.at_level(logging.WARNING, "keras_resnext"):
        other = tiny(weights=path, classes=7)
    assert "classifier of 10 classes, the model of 7" in caplog.text
    body = tiny(weights=path, include_top=False, pooling="avg")
    features = keras.Model(source.input, source.get_layer("avg_pool").output)(
        IMAGES
    )
    np.testing.assert_allclose(body(IMAGES), features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        keras.Model(other.input, other.get_layer("avg_pool").output)(IMAGES),
        features,
        rtol=1e-4,
        atol=1e-5,
    )
    caplog.clear()
    gray = tiny(weights=path, input_shape=(32, 32, 1), include_top=False)
    assert "RGB images, the model for 1 channels" in caplog.text
    kernel = source.get_layer("conv1_conv").kernel
    np.testing.assert_allclose(
        gray.get_layer("conv1_conv").kernel,
        np.sum(kernel, axis=2, keepdims=True),
        rtol=1e-6,
    )


@pytest.mark.integration
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_stem_is_adapted_as_timm_does(channels):
    pytest.importorskip("timm")
    from timm.models import adapt_input_conv

    torch = torch_reference().torch
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 8))
    kernel = kernel.astype("float32")
    expected = adapt_input_conv(
        channels, torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    )
    np.testing.assert_allclose(
        convert.adapt_stem(kernel, channels),
        expected.numpy().transpose(2, 3, 1, 0),
        rtol=1e-6,
    )


def damaged(tensors, damage):
    tensors = dict(tensors)
    name = "layer2.1.conv2.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "bias":
        del tensors["fc.bias"]
    elif damage == "renamed":
        tensors["layer2.1.conv9.weight"] = tensors.pop(name)
    elif damage == "another block":
        tensors["layer2.2.conv1.weight"] = tensors.pop(name)
    elif damage == "nan":
        tensors[name] = tensors[name].copy()
        tensors[name][0, 0, 0, 0] = np.nan
    elif damage == "axes":
        tensors["fc.weight"] = tensors["fc.weight"].T
    elif damage == "empty":
        tensors["layer1.0.conv2.weight"] = np.zeros((0, 4, 3, 3), "float32")
    elif damage == "complex":
        tensors["fc.bias"] = tensors["fc.bias"].astype("complex64")
    elif damage == "large":
        tensors["bn1.weight"] = np.full(64, 1e300)
    elif damage == "negative":
        tensors["bn1.running_var"] = -tensors["bn1.running_var"]
    return tensors


@pytest.mark.integration
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("bias", r"has \[\(2048, 10\)\] for predictions"),
        ("missing", "lacks: conv3_block2_2_conv"),
        ("renamed", "must be a ResNet's; got 'layer2.1.conv9'"),
        ("empty", "w.safetensors has the weights of no network"),
        ("complex", "fc.bias is of C64, not of real numbers"),
        ("large", "float32; .* has NaN, infinity or larger .*conv1_bn"),
        ("another block", "of resnext20_4x4d, the model is resnext17_4x4d"),
        ("nan", "NaN, infinity .* in conv3_block2_2_conv"),
        ("axes", r"\(10, 2048\).* for predictions"),
        ("negative", "less in conv1_bn"),
    ],
)
def test_damaged_files_change_nothing(damage, message, tmp_path):
    _, tensors = tiny_tensors()
    path = write(tmp_path / "w.safetensors", damaged(tensors, damage))
    model = tiny()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        keras_resnext.load_weights(model, path)
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.integration
def test_keras_files_are_checked_too(tmp_path):
    source, _ = tiny_tensors()
    kernel = source.get_layer("conv2_block1_1_conv").kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    source.save_weights(tmp_path / "nan.weights.h5")
    model = tiny()
    before = model.get_weights()
    with pytest.raises(ValueError, match="NaN, infinity"):
        keras_resnext.load_weights(model, tmp_path / "nan.weights.h5")
    # Keras itself takes what it can of a deeper network's file.
    deeper = keras_resnext.ResNeXt((1, 2, 1, 2), 4, 4, input_shape=(32, 32, 3))
    deeper.save_weights(tmp_path / "deeper.weights.h5")
    with pytest.raises(ValueError, match="of resnext20.*is resnext17"):
        keras_resnext.load_weights(model, tmp_path / "deeper.weights.h5")
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "wrong", [{}, 3, True, ["a"], b"imagenet", "", pathlib.Path("tv2_in1k")]
)
def test_what_is_no_source_is_refused(wrong):
    with pytest.raises(ValueError, match="`weights` must be"):
        tiny(weights=wrong)


@pytest.mark.integration
def test_files_of_nothing_of_the_kind(tmp_path):
    import h5py

    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["conv1_conv"]
        group = file.create_group("conv1_conv")
        group.attrs["weight_names"] = ["kernel"]
        group["kernel"] = "text"
    with pytest.raises(ValueError, match="w.h5 .*kernel is of object, not"):
        tiny(weights=tmp_path / "w.h5")
    path = write(tmp_path / "vit.safetensors", {"cls_token": np.ones(3)})
    with pytest.raises(
        ValueError, match="vit.safetensors does not contain.*cls_token"
    ):
        tiny(weights=path)
    (tmp_path / "run").mkdir()
    with pytest.raises(
        ValueError, match="model.keras does not exist; training writes"
    ):
        tiny(weights=tmp_path / "run")


@pytest.mark.integration
@pytest.mark.parametrize(
    "content", [{"epoch": 3, "model": {}}, "tensor", b"", b"some text"]
)
def test_pth_files_of_something_else(content, tmp_path):
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch = torch_reference().torch
        content = torch.zeros(3) if content == "tensor" else content
        torch.save(content, path)
    with pytest.raises(
        ValueError, match="w.pth (is not a plain|has no named|does not contain)"
    ):
        tiny(weights=path)


@pytest.mark.integration
def test_other_networks_are_named(tmp_path):
    _, tensors = tiny_tensors()
    path = write(tmp_path / "w.safetensors", tensors)
    with pytest.raises(
        ValueError, match="of resnext17_4x4d, the model is resnext17_8x4d"
    ):
        keras_resnext.ResNeXt(
            (1, 2, 1, 1), 8, 4, weights=path, input_shape=(32, 32, 3)
        )


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.integration
def test_no_code_in_files_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch_reference().torch.save({"a": Evil()}, "evil.pth")
    with pytest.raises(
        ValueError, match="not a plain tensor checkpoint; it was not unpickled"
    ):
        tiny(weights="evil.pth")
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Lambda(lambda x: x)(inputs)
    keras.Model(inputs, outputs).save("evil.keras")
    with pytest.raises(ValueError, match="has the weights of no network"):
        tiny(weights="evil.keras")
    with pytest.raises(ValueError, match="not a .keras file .* lambda"):
        keras_resnext.Classifier.load("evil.keras")
    assert not pathlib.Path("evil").exists()


@pytest.mark.integration
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.h5", "w.keras"])
def test_a_web_page_is_no_weights(name, tmp_path):
    path = tmp_path / name
    path.write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match=f"{name} is not a"):
        tiny(weights=path)


# --- Downloads ------------------------------------------------------------


@pytest.fixture
def plain(server, monkeypatch):
    """A small file with a published hash, behind `fetch`."""
    record = keras_resnext.get_weights("resnext50", "imagenet1k_v1")
    path = server.folder / record.address.split("/", 3)[3]
    path.parent.mkdir(parents=True)
    path.write_bytes(np.random.default_rng(0).bytes(3_000_000))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(vars(record), "sha256", digest[:8])
    return record, path


def test_a_cut_download_goes_on(server, plain):
    record, path = plain
    server.faults = ["cut", "cut"]
    assert hub.fetch(record).read_bytes() == path.read_bytes()
    starts = [start for command, _, start in server.requests]
    assert starts == sorted(starts)
    assert starts[0] == 0 < starts[1] < starts[2]


def test_a_cut_download_goes_on_in_the_next_call(server, plain):
    record, path = plain
    server.faults = ["cut"] * hub.ATTEMPTS
    with pytest.raises(ConnectionError, match="ended after .* of 3000000"):
        hub.fetch(record)
    found = hub.fetch(record)
    assert found.read_bytes() == path.read_bytes()
    assert server.requests[-1][2] > 1_500_000
    # Nothing is left beside it but the lock.
    assert {p.suffix for p in found.parent.iterdir()} == {".pth", ".lock"}


@pytest.mark.parametrize("status", [404, 403])
def test_errors_of_the_server_are_said(status, server, plain):
    server.faults = [status]
    with pytest.raises(
        ConnectionError, match=f"cannot be downloaded.*{status}"
    ):
        hub.fetch(plain[0])
    assert len(server.requests) == 1


def test_a_server_that_recovers(server, plain):
    record, path = plain
    server.faults = [500, 503]
    assert hub.fetch(record).read_bytes() == path.read_bytes()
    server.faults = [500] * hub.ATTEMPTS
    hub.fetch(record).unlink()
    with pytest.raises(ConnectionError, match="500"):
        hub.fetch(record)


def test_another_file_is_refused_and_removed(server, plain):
    record, path = plain
    right = path.read_bytes()
    path.write_text("<html>Please sign in</html>")
    with pytest.raises(ValueError, match=f"sha256 is {record.sha256}; its own"):
        hub.fetch(record)
    path.write_bytes(right)
    found = hub.fetch(record)
    assert found.read_bytes() == right
    # One that is changed in the cache is not used either.
    found.write_bytes(right[:-1])
    with pytest.raises(ValueError, match="It was deleted"):
        hub.fetch(record)
    assert hub.fetch(record).read_bytes() == right


@pytest.mark.integration
def test_the_hubs_files_are_checked_too(server):
    _, tensors = tiny_tensors()
    record = keras_resnext.get_weights("resnext50", "a1_in1k")
    path = server.folder / record.address / "model.safetensors"
    path.parent.mkdir(parents=True)
    write(path, tensors)
    found = hub.fetch(record)
    blob = found.resolve()
    assert blob.name == hashlib.sha256(path.read_bytes()).hexdigest()
    changed = bytearray(blob.read_bytes())
    changed[-1] ^= 1
    blob.write_bytes(changed)
    with pytest.raises(ValueError, match=blob.name):
        hub.fetch(record)
    assert hub.fetch(record).read_bytes() == path.read_bytes()


@pytest.mark.integration
def test_a_mirror_that_states_no_hash(server):
    """The first download is noted once it proves to be weights."""
    record = keras_resnext.get_weights("resnext50", "a1_in1k")
    path = server.folder / record.address / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_text("<html>Please sign in</html>")
    server.etag = "page"
    with pytest.raises(ValueError, match="a safetensors file.*was deleted"):
        hub.fetch(record)
    _, tensors = tiny_tensors()
    write(path, tensors)
    server.etag = "weights"
    found = hub.fetch(record)
    right = path.read_bytes()
    assert found.read_bytes() == right
    # Another one in its place is an error that names both.
    changed = bytearray(right)
    changed[-1] ^= 1
    found.resolve().write_bytes(changed)
    hashes = [hashlib.sha256(x).hexdigest() for x in (right, changed)]
    with pytest.raises(ValueError, match=".*".join(hashes)):
        hub.fetch(record)
    # Nor when the mirror has it, however often one asks.
    path.write_bytes(changed)
    server.etag = "changed"
    for _ in range(2):
        with pytest.raises(ValueError, match="first download .noted in"):
            hub.fetch(record)
    path.write_bytes(right)
    server.etag = "weights again"
    assert hub.fetch(record).read_bytes() == right


@pytest.mark.integration
def test_a_revision_is_asked_for(server):
    record = keras_resnext.get_weights("resnext50", "a1_in1k@v1")
    path = server.folder / record.address / "model.safetensors"
    path.parent.mkdir(parents=True)
    _, tensors = tiny_tensors()
    write(path, tensors)
    assert hub.fetch(record).read_bytes() == path.read_bytes()
    asked = {path for command, path, _ in server.requests if command == "GET"}
    assert asked == {f"/{record.address}/resolve/v1/model.safetensors"}
    # The pinned one is not "main" in the cache either.
    path.unlink()
    with pytest.raises(ConnectionError):
        hub.fetch(keras_resnext.get_weights("resnext50", "a1_in1k"))
    for wrong in ("imagenet1k_v1@v1", "a1_in1k@"):
        with pytest.raises(ValueError, match="Hub's with @ and a revision"):
            keras_resnext.ResNeXt50(weights=wrong)


@pytest.mark.integration
def test_a_commit_is_known_and_can_be_pinned(server, monkeypatch):
    """Other weights under "main" are loaded in silence; not under a commit."""
    record = keras_resnext.get_weights("resnext50", "a1_in1k")
    path = server.folder / record.address / "model.safetensors"
    path.parent.mkdir(parents=True)
    heads = []
    for seed, commit in enumerate(("1" * 40, "2" * 40)):
        monkeypatch.setattr(sys.modules[__name__], "COMMIT", commit)
        keras.utils.set_random_seed(seed)
        model = keras_resnext.ResNeXt50(weights=None)
        keras_resnext.export_weights(model, path, overwrite=True)
        found = keras_resnext.Classifier.load("resnext50", "a1_in1k")
        assert found.record.revision == commit
        assert found.record.name == record.name
        heads.append(found.model.layers[-1].get_weights()[0])
    assert np.abs(heads[0] - heads[1]).max() > 0.01
    tag = f"a1_in1k@{'1' * 40}"
    pinned = keras_resnext.Classifier.load("resnext50", tag)
    assert pinned.record.revision == "1" * 40
    kernel, _ = pinned.model.layers[-1].get_weights()
    np.testing.assert_array_equal(kernel, heads[0])
    # Files that are not the Hub's have no revision.
    other = keras_resnext.get_weights("resnext50", "imagenet1k_v1")
    assert hub.pin(other) is other


def test_the_hub_not_there(server):
    record = keras_resnext.get_weights("resnext50", "a1_in1k")
    with pytest.raises(ConnectionError, match="not in the cache and cannot"):
        hub.fetch(record)


@pytest.fixture
def closed():
    """An address whose port refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        yield f"127.0.0.1:{free.getsockname()[1]}"


WAYS_ON = {
    "imagenet": ("HF_ENDPOINT", "HF_HOME"),
    "imagenet1k_v1": ("KERAS_RESNEXT_MIRROR", "TORCH_HOME"),
    "keras": ("KERAS_RESNEXT_MIRROR", "KERAS_HOME"),
}


@pytest.mark.parametrize(
    "tag",
    [
        "imagenet",
        pytest.param("imagenet1k_v1", marks=pytest.mark.integration),  # .pth
        "keras",
    ],
)
def test_no_network_is_one_line_within_five_seconds(
    tag, server, closed, monkeypatch, capfd
):
    """It says the ways on, and nothing else is said."""
    mirror, cache = WAYS_ON[tag]
    monkeypatch.setenv(mirror, f"http://{closed}")
    start = time.perf_counter()
    with pytest.raises(ConnectionError) as caught:
        keras_resnext.ResNeXt50(weights=tag)
    assert time.perf_counter() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    assert f"({closed}: Connection refused)" in message
    for way in ("weights=None", 'weights="path/to/file"', mirror, cache):
        assert way in message
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("hanging", ["getaddrinfo", "create_connection"])
@pytest.mark.parametrize("tag", WAYS_ON)
def test_no_answer_is_an_error_within_five_seconds(
    tag, hanging, server, monkeypatch
):
    """From name servers and from what is behind a firewall."""
    over = threading.Event()

    def hang(*_, **__):
        over.wait(60)
        raise TimeoutError

    monkeypatch.setattr(socket, hanging, hang)
    # Four of the five seconds; one is for everything else.
    assert hub.CONNECT_S == 4
    monkeypatch.setattr(hub, "CONNECT_S", 0.2)
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="no answer within 0.2 s"):
        hub.fetch(keras_resnext.get_weights("resnext50", tag))
    assert time.perf_counter() - start < 0.2 + 1
    over.set()


@pytest.mark.integration
def test_what_is_cached_needs_no_network(server, closed, monkeypatch):
    _, tensors = tiny_tensors()
    record = keras_resnext.get_weights("resnext50", "a1_in1k")
    path = server.folder / record.address / "model.safetensors"
    path.parent.mkdir(parents=True)
    write(path, tensors)
    found = hub.fetch(record)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{closed}")
    start = time.perf_counter()
    assert hub.fetch(record) == found
    assert time.perf_counter() - start < 5
    # Whoever is offline on purpose is not even asked to connect.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", None)
    assert hub.fetch(record) == found
    other = keras_resnext.get_weights("resnext50", "a2_in1k")
    with pytest.raises(ConnectionError, match="weights=None"):
        hub.fetch(other)


def test_a_proxy_is_connected_to_instead(server, plain, closed, monkeypatch):
    record, path = plain
    # urllib keeps the proxies of the first request.
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setenv("http_proxy", f"http://{closed}")
    with pytest.raises(ConnectionError, match=f"{closed}: Connection refused"):
        hub.fetch(record)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert hub.fetch(record).read_bytes() == path.read_bytes()


def test_a_slow_mirror_is_waited_for(server, plain, monkeypatch):
    """Only connecting has a limit."""
    record, path = plain
    monkeypatch.setattr(hub, "CONNECT_S", 0.5)
    answer = server.answer

    def late(*arguments, **options):
        time.sleep(1)
        answer(*arguments, **options)

    server.answer = late
    assert hub.fetch(record).read_bytes() == path.read_bytes()


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="only Linux has /dev/full"
)
def test_a_full_disk(server, plain):
    record, path = plain
    found = hub.fetch(record)
    found.unlink()
    # Whatever is written there meets a full device.
    found.with_name(found.name + ".partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        hub.fetch(record)
    assert hub.fetch(record).read_bytes() == path.read_bytes()


def test_a_cache_that_cannot_be_written(server, plain, monkeypatch):
    record, path = plain
    found = hub.fetch(record)

    # root may write anywhere, so that a mode would stop nobody here.
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(found.parent))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    assert hub.fetch(record).read_bytes() == path.read_bytes()
    found.unlink()
    with pytest.raises(PermissionError, match="Permission denied"):
        hub.fetch(record)


def test_two_processes_at_once(server, plain, monkeypatch):
    record, path = plain
    code = (
        "import dataclasses, sys, keras_resnext\n"
        "from keras_resnext.weights.hub import fetch\n"
        "record = keras_resnext.get_weights('resnext50', 'imagenet1k_v1')\n"
        "record = dataclasses.replace(record, sha256=sys.argv[1])\n"
        "input()\n"
        "print(fetch(record))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, record.sha256],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:  # when both have imported what they need
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    found = {output.splitlines()[-1] for output in outputs}
    assert len(found) == 1
    assert pathlib.Path(found.pop()).read_bytes() == path.read_bytes()
    assert len(server.requests) == 1


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc")
def test_memory_of_loading(tmp_path):
    """The peak above what building takes is below three times the file."""
    model = keras_resnext.ResNeXt50(weights=None)
    path = tmp_path / "w.safetensors"
    keras_resnext.export_weights(model, path)
    keras.backend.clear_session()
    code = (
        "import sys, pathlib, keras_resnext, safetensors.numpy\n"
        "def peak():\n"
        "    text = pathlib.Path('/proc/self/status').read_text()\n"
        "    return int(text.partition('VmHWM:')[2].split()[0]) * 1024\n"
        "model = keras_resnext.ResNeXt50(weights=None)\n"
        "pathlib.Path('/proc/self/clear_refs').write_text('5')\n"
        "before = peak()\n"
        "keras_resnext.load_weights(model, sys.argv[1])\n"
        "print(peak() - before)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # From nothing, it would have passed anything.
    assert path.stat().st_size < int(output.split()[-1])
    assert int(output.split()[-1]) < 3 * path.stat().st_size


@pytest.mark.integration
def test_non_commercial_weights_say_so(server, caplog):
    network = state_dict("resnext50_32x4d")
    record = keras_resnext.get_weights("resnext50", "fb_swsl_ig1b_ft_in1k")
    serve(server, record, network)
    with caplog.at_level(logging.WARNING, "keras_resnext"):
        keras_resnext.ResNeXt50(weights=record.tag)
    assert caplog.text.count("non-commercial use only (cc-by-nc-4.0)") == 1


@pytest.mark.integration
@pytest.mark.parametrize("include_top", [True, False])
def test_keras_applications_files(include_top, server, monkeypatch):
    reference = pytest.importorskip("tests.keras_applications_reference")
    network = reference.build((3, 4, 6, 3), include_top)
    record = keras_resnext.get_weights("resnext50", "keras", include_top)
    assert record.include_top == include_top
    path = server.folder / record.address.split("/", 3)[3]
    path.parent.mkdir(parents=True)
    network.save_weights(path, save_format="h5")
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(vars(record), "md5", digest)

    model = keras_resnext.ResNeXt50(weights="keras", include_top=include_top)
    images = np.stack([record.transform(x) for x in pictures()[:2]])
    expected = network(images).numpy()
    found = model(images).numpy()
    assert np.ptp(expected) > 0.01
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert difference < 10 * RELATIVE_TOLERANCE
    keras.backend.clear_session()


# --- The command line -----------------------------------------------------


def test_list_of_weights(run_cli, tmp_path):
    status, output, _ = run_cli("list", "--weights", "resnext50")
    assert status == 0
    rows = [line.replace("│", " ").split() for line in output.splitlines()]
    rows = [row for row in rows if row and row[-1] in LICENCES]
    assert len(rows) == len(keras_resnext.list_weights("resnext50"))
    assert rows[0][:3] == ["tv2_in1k", "81.19", "95.34"]
    photo = tmp_path / "x.png"
    keras.utils.save_img(photo, pictures()[0])
    status, _, error = run_cli(
        "predict", "resnext50", photo, "--weights", "w.pth"
    )
    assert status == 1
    assert "existing file; got 'w.pth'" in error
    status, _, error = run_cli("list", "--weights", "vgg16")
    assert status == 1
    assert "for which weights are published; got 'vgg16'" in error


@pytest.mark.slow
@pytest.mark.integration
def test_predict_and_evaluate_published(server, run_cli, tmp_path):
    from PIL import Image

    network = state_dict("resnext50_32x4d")
    record = keras_resnext.get_weights("resnext50", "tv2_in1k")
    serve(server, record, network)
    theirs, torch = their_transform(record), torch_reference().torch
    photos = pictures()[:4]
    with torch.inference_mode():
        scores = network(
            torch.stack([theirs(Image.fromarray(x)) for x in photos])
        ).softmax(1)
    labels = scores.argmax(1).tolist()

    photo = tmp_path / "photo.png"
    Image.fromarray(photos[0]).save(photo)
    status, output, _ = run_cli(
        "predict", "resnext50", photo, "--weights", "tv2_in1k"
    )
    assert status == 0
    name = imagenet.labels()[labels[0]]
    best = next(x for x in output.splitlines() if name[:20] in x)
    assert f"{scores[0].max():.4f}" in best

    # 1000 classes, four of whose images are looked at; one is elsewhere.
    folder = tmp_path / "photos"
    dot = Image.new("RGB", (8, 8))
    for label in range(1000):
        path = folder / "train" / f"{label:04}" / "dot.png"
        path.parent.mkdir(parents=True)
        dot.save(path)
    folders = [(labels[0] + 1) % 1000, *labels[1:]]
    for index, (image, label) in enumerate(zip(photos, folders, strict=True)):
        path = folder / "validation" / f"{label:04}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    status, output, error = run_cli(
        "evaluate",
        "resnext50",
        "--weights",
        "tv2_in1k",
        "--dataset",
        folder,
    )
    assert status == 0, error
    assert "81.190" in output
    assert "95.344" in output
    ours = next(x for x in output.splitlines() if "measured" in x)
    # The one whose class was put beside may yet be among its first five.
    best_five = scores.topk(5).indices.tolist()
    top5 = [label in row for label, row in zip(folders, best_five, strict=True)]
    assert ours.replace("│", " ").split()[-3:] == [
        "75.000",
        f"{100 * np.mean(top5):.3f}",
        "4",
    ]

    # And out it goes again, with the record's classes, resize and crop.
    status, output, error = run_cli(
        *("export", "resnext50", "--weights", "tv2_in1k", "--data", folder),
        *("--format", "savedmodel", "--output", tmp_path / "export"),
    )
    assert status == 0, error
    report = json.loads((tmp_path / "export" / "report.json").read_text())
    assert report["images"] == 4
    assert report["keras_accuracy"] == report["files"][0]["accuracy"] == 0.75
    served = tf.saved_model.load(tmp_path / "export" / "saved_model")
    found = served.signatures["image_bytes"](
        image_bytes=tf.constant([photo.read_bytes()])
    )
    names = imagenet.labels()
    best = [names[i].encode() for i in found["top_indices"][0]]
    assert found["top_labels"].numpy()[0].tolist() == best
    # Pillow resizes there, TensorFlow here.
    np.testing.assert_allclose(
        found["probabilities"][0], scores[0], atol=0.1 * float(scores[0].max())
    )
