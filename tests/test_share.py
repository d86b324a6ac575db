"""Publishing: pushed by the Hub's own client, opened by every reader."""

import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from scipy.stats import binomtest

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.export import Session
from keras_resnext.export import export_files
from keras_resnext.export import plan_files
from keras_resnext.training import plan_finetuning
from keras_resnext.training.evaluation import Evaluation
from keras_resnext.transforms import EvalTransform
from keras_resnext.weights.timm_config import TimmModel
from keras_resnext.weights.timm_config import TimmNetwork
from keras_resnext.weights.timm_config import from_timm_config
from keras_resnext.weights.timm_config import to_timm_config
from tests import fake_hub
from tests.conftest import randomize
from tests.fake_hub import FakeHub

pytestmark = pytest.mark.filterwarnings(
    # The client's own, about how it calls its HTTP library.
    "ignore:Use 'content=:DeprecationWarning"
)

LABELS = ["cat", "dog", "eel", "newt", "owl", "yak"]
# See tests/test_parity.py.
RELATIVE_TOLERANCE = 1e-5


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The fake Hub, as the endpoint of this process' client."""
    from huggingface_hub import constants
    from huggingface_hub import utils

    # The fake speaks LFS, not Xet.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    utils.disable_progress_bars()
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        yield hub
    utils.enable_progress_bars()


def make_classifier(**arguments):
    """A small network of the paper's family, with an odd transform."""
    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        (1, 2, 1, 1),
        4,
        8,
        **{"input_shape": (64, 64, 3), "classes": len(LABELS), **arguments},
    )
    transform = EvalTransform(
        image_size=model.input_shape[1],
        resize_size=75,
        interpolation="bicubic",
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
    )
    return Classifier(randomize(model), LABELS, transform)


@pytest.fixture(scope="module")
def classifier():
    return make_classifier()


@pytest.fixture(scope="module")
def written(classifier, tmp_path_factory):
    """The folder of a dry run, to copy."""
    folder = tmp_path_factory.mktemp("written") / "dry"
    keras_resnext.push_to_hub(classifier, "user/x", dry_run=folder)
    return folder


@pytest.fixture(scope="module")
def evaluation(classifier):
    """15 of 20 images right."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(6), 20).astype("float32")
    labels = probabilities.argmax(1)
    labels[:5] = (labels[:5] + 1) % 6
    return Evaluation(
        split="test",
        loss=1.25,
        labels=labels,
        probabilities=probabilities,
        class_names=LABELS,
        image_names=[str(i) for i in range(20)],
        transform=classifier.transform,
    )


def inputs(classifier, count=2):
    """Normalised images, and what the classifier says of them."""
    size = classifier.transform.image_size
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 256, (count, size, size, 3))
    images = classifier.transform.normalize(pixels)
    return images, classifier.model.predict(images, verbose=0)


def assert_same(actual, expected):
    # Logarithms are logits up to a constant: small classes count as well.
    actual, expected = (
        np.log(x) - np.log(x).mean(axis=1, keepdims=True)
        for x in (actual, expected)
    )
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    assert difference < RELATIVE_TOLERANCE
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def read_in_process(code, hub, tmp_path, *arguments):
    """Run code of a reader that sees nothing but the fake Hub."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "reader"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        environment.pop(name, None)
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


@pytest.mark.integration
def test_pushed_opens_here(hub, classifier, evaluation):
    url = keras_resnext.push_to_hub(
        classifier,
        "user/beasts",
        evaluation=evaluation,
        license="apache-2.0",
        description="Six animals.",
        private=True,
    )
    sha = hub.repositories["user/beasts"]["commits"][-1][0]
    assert url == f"{hub.address}/user/beasts/commit/{sha}"
    assert hub.repositories["user/beasts"]["private"]
    assert set(hub.files("user/beasts")) == {
        *(".gitattributes", "README.md", "config.json", "metadata.json"),
        *("model.safetensors", "model.weights.h5"),
    }
    images, expected = inputs(classifier)
    loaded = Classifier.load("hf://user/beasts")
    np.testing.assert_array_equal(
        loaded.model.predict(images, verbose=0), expected
    )
    assert loaded.labels == LABELS
    assert loaded.transform == classifier.transform
    classes = {type(x) for x in classifier.model.layers}
    assert {type(x) for x in loaded.model.layers} == classes

    model = keras_resnext.ResNeXt(
        (1, 2, 1, 1),
        *(4, 8),
        input_shape=(64, 64, 3),
        classes=len(LABELS),
        form="branches",
        weights=f"hf://user/beasts@{sha}",
    )
    assert_same(model.predict(images, verbose=0), expected)


@pytest.mark.integration
def test_card_has_the_evaluations_numbers(hub, classifier, evaluation):
    from huggingface_hub import ModelCard

    keras_resnext.push_to_hub(
        classifier,
        "user/beasts",
        evaluation=evaluation,
        license="apache-2.0",
        description="Six animals.",
    )
    card = ModelCard(hub.files("user/beasts")["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "timm"
    results = {
        (r.metric_type, r.metric_name): r.metric_value
        for r in card.data.eval_results
    }
    assert results == {
        ("accuracy", "Top-1 accuracy"): evaluation.accuracy,
        ("accuracy", "Top-5 accuracy"): evaluation.top5_accuracy,
        ("loss", "Cross-entropy (nats)"): 1.25,
    }
    assert evaluation.accuracy == 0.75
    assert "Six animals." in card.text
    assert "`cat`, `dog`" in card.text
    low, high = binomtest(15, 20).proportion_ci(method="wilson")
    assert f"| 20 | 0.7500 | {low:.4f} to {high:.4f} |" in card.text


@pytest.mark.integration
def test_opens_in_plain_keras(hub, classifier, tmp_path):
    keras_resnext.push_to_hub(classifier, "user/beasts")
    images, expected = inputs(classifier)
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
import keras
import numpy as np
model = keras.saving.load_model("hf://user/beasts")
images, outputs = sys.argv[1:]
np.save(outputs, model.predict(np.load(images), verbose=0))
assert "keras_resnext" not in sys.modules
"""
    outputs = tmp_path / "outputs.npy"
    read_in_process(code, hub, tmp_path, tmp_path / "images.npy", outputs)
    assert_same(np.load(outputs), expected)


@pytest.mark.integration
@pytest.mark.parametrize("output_stride", [32, 16])
def test_opens_in_timm(output_stride, hub, tmp_path):
    importlib.import_module("tests.torch_reference")  # or it skips
    classifier = make_classifier(output_stride=output_stride)
    sha = keras_resnext.push_to_hub(classifier, "user/beasts")[-40:]
    images, expected = inputs(classifier)
    np.save(tmp_path / "images.npy", images)
    code = """
import json
import sys
import numpy as np
from tests.torch_reference import torch  # timm needs its help
import timm
name, images, outputs = sys.argv[1:]
model = timm.create_model(name, pretrained=True).eval()
images = torch.from_numpy(np.load(images)).permute(0, 3, 1, 2)
with torch.inference_mode():
    np.save(outputs, model(images).softmax(-1).numpy())
config = timm.data.resolve_model_data_config(model)
print(json.dumps([config, model.pretrained_cfg["label_names"]]))
transform = str(timm.data.create_transform(**config))
assert "size=75, interpolation=bicubic" in transform, transform
"""
    outputs = tmp_path / "outputs.npy"
    printed = read_in_process(
        code,
        hub,
        tmp_path,
        f"hf-hub:user/beasts@{sha}",
        tmp_path / "images.npy",
        outputs,
    )
    config, labels = json.loads(printed.splitlines()[-1])
    assert labels == LABELS
    assert config["mean"] == [0.4, 0.5, 0.6]
    assert_same(np.load(outputs), expected)


@pytest.mark.integration
def test_timms_repository_opens_here(hub, tmp_path):
    """Written by timm, read by us: weights, classes and transform."""
    torch_reference = importlib.import_module("tests.torch_reference")
    timm = importlib.import_module("timm")
    torch = torch_reference.torch
    network = torch_reference.randomized(
        timm.create_model("resnext50_32x4d", num_classes=6)
    )
    with torch.no_grad():  # or some probabilities would be zero
        largest = network(torch.ones(1, 3, 224, 224)).abs().max()
        network.fc.weight /= largest
        network.fc.bias /= largest
    timm.models.save_for_hf(
        network,
        tmp_path / "theirs",
        model_config={"label_names": LABELS},
        safe_serialization=True,
    )
    files = {p.name: p.read_bytes() for p in (tmp_path / "theirs").iterdir()}
    hub.repositories["other/beasts"] = {
        "private": False,
        "commits": [("1" * 40, files)],
    }
    loaded = Classifier.load("hf://other/beasts")
    assert loaded.labels == LABELS
    config = timm.data.resolve_model_data_config(network, use_test_size=True)
    assert loaded.transform.image_size == config["input_size"][-1]
    assert loaded.transform.interpolation == config["interpolation"]
    photographs = torch_reference.photographs(loaded.transform.image_size)
    images = loaded.transform.normalize(photographs)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = network(tensor).softmax(-1).numpy()
    assert_same(loaded.model.predict(images, verbose=0), expected)


@pytest.mark.integration
def test_networks_that_timm_lacks_open_here(hub, small_model):
    """The CIFAR stem; timm is not mentioned."""
    classifier = Classifier(small_model)
    keras_resnext.push_to_hub(classifier, "user/small")
    files = hub.files("user/small")
    assert b"timm.create_model" not in files["README.md"]
    assert "architecture" not in json.loads(files["config.json"])
    images, expected = inputs(classifier)
    loaded = Classifier.load("hf://user/small")
    np.testing.assert_array_equal(
        loaded.model.predict(images, verbose=0), expected
    )


@pytest.mark.integration
def test_dry_run_writes_the_folder(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody's
    folder = tmp_path / "dry"
    printed = keras_resnext.push_to_hub(
        classifier, "user/beasts", dry_run=folder
    )
    assert printed == str(folder)
    images, expected = inputs(classifier)
    for model in (
        Classifier.load(folder).model,
        keras.saving.load_model(folder),
    ):
        assert_same(model.predict(images, verbose=0), expected)
    with pytest.raises(FileExistsError, match="`overwrite`"):
        keras_resnext.push_to_hub(classifier, "user/beasts", dry_run=folder)


def test_networks_that_round_are_not_shared(classifier, tmp_path):
    aware = Classifier(
        keras_resnext.quantization_aware(classifier.model),
        LABELS,
        classifier.transform,
    )
    with pytest.raises(ValueError, match="must be in floating point"):
        keras_resnext.push_to_hub(aware, "user/x", dry_run=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_fingerprints_tell_what_files_would_differ(classifier, tmp_path):
    def of(changed=None, model=None, **options):
        changed = changed or classifier
        if model is not None:
            changed = Classifier(model, changed.labels, changed.transform)
        return Session(changed, **options).fingerprint

    def twin(**arguments):
        """The same weights in another network."""
        other = make_classifier(**arguments).model
        other.set_weights(classifier.model.get_weights())
        return other

    expected = of()
    classifier.save(tmp_path / "same.keras")
    frozen = twin(name=classifier.model.name)
    frozen.layers[1].trainable = False
    for same in (
        of(Classifier.load(tmp_path / "same.keras")),
        of(model=frozen),
        of(images=np.zeros((1, 64, 64, 3), "uint8")),
    ):
        assert same == expected
    moved = twin()
    moved.layers[-1].bias.assign_add([1e-3] + [0] * (len(LABELS) - 1))
    transform = dataclasses.replace(classifier.transform, resize_size=80)
    others = [
        of(model=moved),
        of(model=twin(output_stride=8)),
        of(preprocessing=None),
        of(Classifier(classifier.model, LABELS[::-1], classifier.transform)),
        of(Classifier(classifier.model, LABELS, transform)),
        of(
            Classifier(
                twin(input_shape=(32, 32, 3)),
                LABELS,
                dataclasses.replace(classifier.transform, image_size=32),
            )
        ),
    ]
    assert len({expected, *others}) == 1 + len(others)


@pytest.mark.integration
def test_exports_go_along(hub, classifier, run_cli, tmp_path):
    plan = plan_files(tmp_path / "out", ["tflite", "onnx"], [None, "float16"])
    export_files(classifier, plan)
    keras_resnext.push_to_hub(
        classifier, "user/beasts", exports=tmp_path / "out"
    )
    files = hub.files("user/beasts")
    for name in ("model.tflite", "model_float16.tflite", "model.onnx"):
        assert files[name] == (tmp_path / "out" / name).read_bytes()
    assert "report.png" in files
    card = files["README.md"].decode()
    assert "| `model_float16.tflite` |" in card
    assert not any(str(tmp_path).encode() in x for x in files.values())

    other = make_classifier()
    randomize(other.model, seed=1)
    with pytest.raises(ValueError, match="the classifier as it is"):
        keras_resnext.push_to_hub(
            other, "user/others", exports=tmp_path / "out"
        )
    classifier.save(tmp_path / "beasts.keras")
    command = ["push", tmp_path / "beasts.keras", "user/others", "--exports"]
    dry_run = tmp_path / "card"
    status, _, errors = run_cli(
        *command, tmp_path / "out", "--dry-run", dry_run, "--no-evaluate"
    )
    assert status == 0, errors
    assert (dry_run / "model.onnx").read_bytes() == files["model.onnx"]
    with (tmp_path / "out" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="model.onnx has changed"):
        keras_resnext.push_to_hub(
            classifier, "user/others", exports=tmp_path / "out"
        )
    assert "user/others" not in hub.repositories
    # Pushed again without: the old model's files do not stay.
    keras_resnext.push_to_hub(classifier, "user/beasts", overwrite=True)
    assert not {"model.onnx", "report.png"} & set(hub.files("user/beasts"))


@pytest.mark.integration
def test_a_repository_with_files_is_kept(hub, classifier):
    keras_resnext.push_to_hub(classifier, "user/beasts")
    before = hub.files("user/beasts")
    with pytest.raises(FileExistsError, match="user/beasts has 5 files"):
        keras_resnext.push_to_hub(classifier, "user/beasts")
    with pytest.raises(ValueError, match="`private` must be left out or Fal"):
        keras_resnext.push_to_hub(
            classifier, "user/beasts", overwrite=True, private=True
        )
    assert hub.files("user/beasts") is before


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_a_bad_token_is_one_line(token, hub, classifier, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="Log in with") as error:
        keras_resnext.push_to_hub(classifier, "user/beasts", token=token)
    assert "\n" not in str(error.value)
    assert not hub.repositories


@pytest.mark.integration
@pytest.mark.parametrize(
    ("part", "fault"),
    [("/lfs/", "cut"), ("/commit/", "cut"), ("/commit/", 500)],
)
def test_a_lost_connection_publishes_nothing(
    part, fault, hub, classifier, monkeypatch
):
    # Its client waits and tries again, up to half a minute.
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.faults[part] = fault
    with pytest.raises(ConnectionError, match="a reader can load") as error:
        keras_resnext.push_to_hub(classifier, "user/beasts")
    assert "\n" not in str(error.value)
    assert set(hub.files("user/beasts")) == {".gitattributes"}
    with pytest.raises(ValueError, match=r"must have a file config\.json"):
        Classifier.load("hf://user/beasts")
    hub.faults.clear()
    keras_resnext.push_to_hub(classifier, "user/beasts")  # goes on
    assert Classifier.load("hf://user/beasts").labels == LABELS


@pytest.mark.integration
def test_nobody_else_is_overwritten(hub, classifier, monkeypatch):
    keras_resnext.push_to_hub(classifier, "user/beasts")
    write = keras_resnext.share.push._write

    def meanwhile(*arguments, **options):
        write(*arguments, **options)
        commits = hub.repositories["user/beasts"]["commits"]
        commits.append(("2" * 40, {"theirs.txt": b"mine"}))

    monkeypatch.setattr(keras_resnext.share.push, "_write", meanwhile)
    with pytest.raises(FileExistsError, match="changed by somebody else"):
        keras_resnext.push_to_hub(classifier, "user/beasts", overwrite=True)
    assert set(hub.files("user/beasts")) == {"theirs.txt"}


@pytest.mark.integration
def test_a_lost_answer_is_not_taken_for_a_lost_push(
    hub, classifier, monkeypatch
):
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.faults["/commit/"] = "lost"
    url = keras_resnext.push_to_hub(classifier, "user/beasts")
    assert url.endswith(hub.repositories["user/beasts"]["commits"][-1][0])
    assert "config.json" in hub.files("user/beasts")


@pytest.mark.integration
def test_a_compiled_classifier_opens_without_its_optimizer(
    hub, tmp_path, classifier
):
    from keras_resnext.training.optimizer import RatedSGD

    keras_resnext.push_to_hub(classifier, "user/plain")
    compiled = make_classifier()
    compiled.model.compile(RatedSGD(l2_weight_decay=1e-4), "mse")
    keras_resnext.push_to_hub(compiled, "user/beasts")
    sizes = [
        len(hub.files(name)["model.weights.h5"])
        for name in ("user/plain", "user/beasts")
    ]
    assert sizes[0] == sizes[1]
    read_in_process(
        """
import sys
import keras
assert not keras.saving.load_model("hf://user/beasts").compiled
assert "keras_resnext" not in sys.modules
""",
        hub,
        tmp_path,
    )


@pytest.mark.integration
def test_another_pooling_is_not_taken_for_timms(classifier, tmp_path):
    body = classifier.model
    x = keras.layers.GlobalMaxPooling2D()(
        body.get_layer("conv5_block1_out").output
    )
    model = keras.Model(body.input, body.get_layer("predictions")(x))
    other = Classifier(model, LABELS, classifier.transform)
    keras_resnext.push_to_hub(other, "user/x", dry_run=tmp_path / "dry")
    config = json.loads((tmp_path / "dry/config.json").read_text())
    assert "architecture" not in config
    images, expected = inputs(other)
    loaded = Classifier.load(tmp_path / "dry")
    np.testing.assert_array_equal(
        loaded.model.predict(images, verbose=0), expected
    )


@pytest.mark.integration
def test_odd_labels_leave_the_card_whole(tmp_path, classifier, evaluation):
    labels = ["new\nline", "a`b", "{{ x }}", "p|q", "---", "ü"]
    other = Classifier(classifier.model, labels, classifier.transform)
    keras_resnext.push_to_hub(other, "user/x", dry_run=tmp_path / "dry")
    card = (tmp_path / "dry/README.md").read_text(encoding="utf-8")
    assert "`new line`, `` a`b ``, `{{ x }}`, `p|q`, `---`, `ü`." in card
    assert Classifier.load(tmp_path / "dry").labels == labels


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"class_name": "Dense", "config": {"units": 3}}},
        {"model": {"class_name": "Lambda", "config": {"function": "x"}}},
        {"labels": [1, 2]},
        {"transform": []},
        {"architecture": "timm"},
        {"classes": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_broken_repositories_are_one_line(change, written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "dry")
    config = json.loads((folder / "config.json").read_text())
    if change == {"architecture": "timm"}:
        del config["keras_resnext"]
        config["architecture"] = "vit"
    elif change == {"classes": 7}:
        del config["keras_resnext"]
        config["num_classes"] = 7
    else:
        config["keras_resnext"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not a repository of") as error:
        Classifier.load(folder)
    assert "\n" not in str(error.value)


def test_weights_of_less_than_the_model_are_refused(written, tmp_path):
    from safetensors import numpy as safetensors

    folder = shutil.copytree(written, tmp_path / "dry")
    tensors = safetensors.load_file(folder / "model.safetensors")
    without = {k: v for k, v in tensors.items() if not k.startswith("fc.")}
    safetensors.save_file(without, folder / "model.safetensors")
    with pytest.raises(ValueError, match="predictions differ"):
        Classifier.load(folder)


@pytest.mark.integration
def test_private_ones_need_a_token(hub, classifier, monkeypatch, tmp_path):
    keras_resnext.push_to_hub(classifier, "user/beasts", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError, match="does not let you read"):
        Classifier.load("hf://user/beasts")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="must be a repository .* you may re"):
        Classifier.load("hf://user/beasts")


def test_unreachable_is_one_line(classifier, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        keras_resnext.push_to_hub(classifier, "user/beasts", token="hf_x")


@pytest.mark.integration
def test_missing_repositories_are_named(hub, classifier):
    keras_resnext.push_to_hub(classifier, "user/beasts")
    for name, message in {
        "hf://user/none": "must be a repository",
        "hf://user/beasts@v9": "must be a branch, tag or commit",
        "hf://user": "must be user/name",
        "hf://a/b/c": "must be user/name",
        "hf://a/b--c": "as the Hub allows them",
        "hf://a/b.git": "as the Hub allows them",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            Classifier.load(name)
        assert "\n" not in str(error.value)


@pytest.mark.integration
def test_without_a_network_the_cache_is_used(hub, classifier, monkeypatch):
    keras_resnext.push_to_hub(classifier, "user/beasts")
    Classifier.load("hf://user/beasts")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert Classifier.load("hf://user/beasts").labels == LABELS
    with pytest.raises(ConnectionError, match="is not in the cache"):
        Classifier.load("hf://user/others")


def test_what_cannot_be_shared_is_refused(classifier, evaluation, tmp_path):
    push = keras_resnext.push_to_hub
    with pytest.raises(ValueError, match="`repository` must be user/name"):
        push(classifier, "user/name@v1")
    with pytest.raises(ValueError, match="`classifier` must be a Classifier"):
        push(classifier.model, "user/name")
    folded = Classifier(
        keras_resnext.fold_batch_norm(classifier.model),
        transform=classifier.transform,
    )
    with pytest.raises(ValueError, match="folded"):
        push(folded, "user/name")
    for license in ("Apache 2", "mit\nx: y", 3):
        with pytest.raises(ValueError, match="`license` must be None or an"):
            push(classifier, "user/name", license=license)
    with pytest.raises(PermissionError) as error:
        push(classifier, "user/name", token="hf_secret\nx")
    assert "secret" not in str(error.value)
    inner = keras.Input((64, 64, 3))
    outputs = classifier.model(keras_resnext.preprocess_input(inner))
    with pytest.raises(ValueError, match="the network itself"):
        push(Classifier(keras.Model(inner, outputs)), "user/name")
    other = Classifier(classifier.model, LABELS[::-1], classifier.transform)
    with pytest.raises(ValueError, match="`evaluation` must be of the clas"):
        push(other, "user/name", evaluation=evaluation)
    other = Classifier(classifier.model)
    with pytest.raises(ValueError, match="`evaluation` must be with the"):
        push(other, "user/name", evaluation=evaluation)
    with pytest.raises(ValueError, match="`exports` must be a folder"):
        push(classifier, "user/name", exports=tmp_path, dry_run=tmp_path / "d")
    assert not list(tmp_path.iterdir())
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="an earlier dry run; .*thesis"):
        push(classifier, "user/name", dry_run=tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").is_file()
    broken = make_classifier()
    broken.model.layers[-1].bias.assign(np.full(6, np.nan))
    with pytest.raises(ValueError, match="`classifier` must have finite wei"):
        push(broken, "user/name")


def test_timm_config_there_and_back():
    for network in (
        TimmNetwork((3, 4, 6, 3), 32, 4),
        TimmNetwork((3, 8, 36, 3), 1, 64, 16),
        TimmNetwork((1, 2, 3, 4), 8, 4, 8),
    ):
        for size, resize in ((224, 224), (224, 232), (224, 256), (288, 289)):
            transform = EvalTransform(image_size=size, resize_size=resize)
            model = TimmModel(network, 3, ["a", "b", "c"], transform)
            config = json.loads(json.dumps(to_timm_config(model)))
            assert from_timm_config(config) == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnext50d_32x4d"}, "`architecture` must be one"),
        ({"model_args": {"stem_type": "deep"}}, "no more arguments than"),
        ({"model_args": {"in_chans": 4}}, "`in_chans` must be 3"),
        ({"pretrained_cfg": None}, "`config` must be timm's description"),
    ],
)
def test_other_networks_of_timm_are_refused(change, message):
    config = to_timm_config(
        TimmModel(
            TimmNetwork((3, 4, 6, 3), 32, 4),
            1000,
            None,
            EvalTransform(image_size=224, resize_size=256),
        )
    )
    with pytest.raises(ValueError, match=message):
        from_timm_config(config | change)


@pytest.mark.integration
def test_finetuning_starts_from_a_repository(hub, classifier, shades, tmp_path):
    """With its network and transform; its normalisation is told apart."""
    model = keras_resnext.ResNeXt(
        *((1, 1, 1), 4, 8),
        stem="cifar",
        input_shape=(64, 64, 3),
        classes=len(LABELS),
    )
    keras_resnext.push_to_hub(
        dataclasses.replace(classifier, model=model), "user/beasts"
    )
    plan = plan_finetuning(shades, tmp_path / "x", weights="hf://user/beasts")
    recipe = plan.recipe
    assert (recipe.model, recipe.weights) == (
        "resnext11_4x8d",
        "hf://user/beasts",
    )
    assert recipe.eval_transform.resize_size == 75
    assert recipe.image_size == 64
    assert "(normalization mean (0.4, 0.5, 0.6)" in " ".join(plan.reasons)


@pytest.mark.integration
def test_command_line_pushes_a_run(hub, toy_run, run_cli, tmp_path):
    status, output, errors = run_cli(
        *("push", toy_run.path, "user/shades"),
        *("--license", "mit", "--description", "Three shades."),
    )
    assert (status, errors) == (0, "")
    assert f"{hub.address}/user/shades/commit/" in output
    loaded = Classifier.load("hf://user/shades")
    assert loaded.labels == ["120", "200", "40"]
    card = hub.files("user/shades")["README.md"].decode()
    assert "Three shades." in card
    # The folder's name, not where it is.
    assert str(pathlib.Path(toy_run.recipe.dataset).parent) not in card

    status, _, errors = run_cli("push", toy_run.path, "user/shades")
    assert status == 1
    assert errors.startswith("Error: `repository` must be new or empty")
    status, output, errors = run_cli(
        *("push", toy_run.path, "user/shades"),
        *("--no-evaluate", "--dry-run", tmp_path / "dry"),
    )
    assert (status, errors) == (0, "")
    assert (tmp_path / "dry" / "README.md").is_file()
    status, output, errors = run_cli(
        "evaluate", "hf://user/shades", "--dataset", toy_run.recipe.dataset
    )
    assert (status, errors) == (0, "")
