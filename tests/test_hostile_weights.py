"""Weight files from strangers: refused in one line, before they cost much."""

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.training import Run
from tests import hostile_weights
from tests.conftest import randomize
from tests.hostile_weights import TRAPS
from tests.hostile_weights import change_config
from tests.hostile_weights import rezip

# Of a refusal.
MOST_BYTES, MOST_SECONDS = 200e6, 2

# Of the others, which are costly or need torch, and of these,
# `test_refusals_are_cheap` asks the same.
_NEED_TORCH = ("complex.safetensors", "hole")
_KINDS = ("fifo", "device", "socket")
# What is wrong in them is no part of the weights.
MODELS = [f"{x.__name__}.keras" for x in hostile_weights.CONFIGS]
SMALL = [
    name
    for name in TRAPS
    if not name.startswith((*hostile_weights.COSTLY, *_NEED_TORCH))
    and name not in MODELS
    and (not name.endswith(".pth") or name.startswith(_KINDS))
]


def make_model(**arguments):
    keras.utils.set_random_seed(0)
    defaults = {"stem": "cifar", "classes": 10, "input_shape": (16, 16, 3)}
    return keras_resnext.ResNeXt((1,), 2, 4, filters=32, **defaults | arguments)


@pytest.fixture(scope="module")
def model():
    return randomize(make_model())


def refusal(load, path, model):
    """The one line that says why, once the model proved to be untouched."""
    before = model.get_weights()
    with pytest.raises(ValueError, match=r".") as caught:
        load()
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    return message


@pytest.mark.skipif(os.name != "posix", reason="FIFOs and links are POSIX'")
@pytest.mark.parametrize("name", SMALL)
def test_traps_are_refused(name, model, tmp_path):
    path = TRAPS[name](model, tmp_path)
    refusal(lambda: keras_resnext.load_weights(model, path), path, model)
    if name.endswith(".keras"):
        refusal(lambda: Classifier.load(path), path, model)


@pytest.mark.parametrize("name", MODELS)
def test_models_larger_than_their_weights(name, model, tmp_path):
    """The weights go into another model; the one described is not built."""
    path = TRAPS[name](model, tmp_path)
    message = refusal(lambda: Classifier.load(path), path, model)
    reasons = {
        "wide": "its model has 33000",
        "deep": "calls layers",
        "eager": "'tile' has no inputs",
        "foreign": "Could not locate class 'Theirs'",
        "no_model": "must describe a model",
        "repeated": "several layers of one name",
    }
    assert reasons[path.stem] in message
    other = make_model()
    keras_resnext.load_weights(other, path)
    np.testing.assert_array_equal(
        other.get_weights()[0], model.get_weights()[0]
    )


MEASURE = """
import json, pathlib, sys, tempfile, time
import h5py, keras, safetensors, torch
import keras_resnext
from keras_resnext.classifier import Classifier
from tests.hostile_weights import TRAPS
from tests.test_hostile_weights import make_model


def peak():
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


model = make_model()
weights = model.get_weights()
with tempfile.TemporaryDirectory() as folder:  # what is loaded once
    for ending in ("keras", "weights.h5"):
        path = pathlib.Path(folder, f"warm.{ending}")
        (model.save if ending == "keras" else model.save_weights)(path)
        keras_resnext.load_weights(model, path)
    Classifier.load(pathlib.Path(folder, "warm.keras"))
for name, write in TRAPS.items():
    with tempfile.TemporaryDirectory() as folder:
        path = write(model, folder)
        for load in (
            lambda: keras_resnext.load_weights(model, path),
            lambda: Classifier.load(path),
        ):
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            before, start = peak(), time.perf_counter()
            try:
                load()
                error = ""
            except ValueError as caught:
                error = str(caught).replace(folder, "")
            seconds = time.perf_counter() - start
            for got, want in zip(model.get_weights(), weights, strict=True):
                assert (got == want).all(), name
            print(json.dumps([name, error, peak() - before, seconds]))
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux' /proc")
def test_refusals_are_cheap():
    """Of every trap, with the memory and the time that it takes."""
    pytest.importorskip("torch")
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    lines = [json.loads(x) for x in process.stdout.splitlines()]
    assert {name for name, *_ in lines} == TRAPS.keys()
    loaded = {name for name, error, *_ in lines if not error}
    assert loaded == set(MODELS)  # by `load_weights`
    assert all(x.isprintable() for _, x, *_ in lines)
    assert not [x for x in lines if x[1] and f"/{x[0]}" not in x[1]]
    costs = [line for line in lines if line[2] > MOST_BYTES]
    slow = [line for line in lines if line[3] > MOST_SECONDS]
    assert not costs
    assert not slow


# --- What is honest ---------------------------------------------------------


def assert_loads(path, model):
    """Into a model, and as a classifier if it is a `.keras` file."""
    other = make_model()
    keras_resnext.load_weights(other, path)
    loaded = [other]
    if path.suffix == ".keras":
        loaded.append(Classifier.load(path).model)
    for found in loaded:
        for got, want in zip(
            found.get_weights(), model.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(got, want)


@pytest.mark.integration
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kind", ["parameters", "float64", "checkpoint"])
def test_torch_files_load(kind, archive, model, tmp_path):
    torch = pytest.importorskip("torch")
    state = hostile_weights.tensors(model)
    state["bn1.num_batches_tracked"] = torch.tensor(5)
    if kind == "parameters":
        floats = {k: x for k, x in state.items() if x.is_floating_point()}
        state |= {k: torch.nn.Parameter(x) for k, x in floats.items()}
    elif kind == "float64":
        state = {k: x.double() for k, x in state.items()}
    else:
        state = {
            "state_dict": {f"module.{k}": x for k, x in state.items()},
            "optimizer": {"state": {0: {"step": 3}}, "lr": 0.1},
        }
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    assert_loads(path, model)


@pytest.mark.parametrize("ending", [".h5", ".weights.h5"])
@pytest.mark.parametrize("level", [None, 9])
def test_compressed_hdf5_loads(level, ending, model, tmp_path):
    path = tmp_path / f"w{ending}"
    legacy = ending == ".h5"
    if legacy:
        hostile_weights.save_legacy_h5(model, path)
    else:
        model.save_weights(path)
    options = {"chunks": True, "shuffle": True, "fletcher32": True}
    with h5py.File(path, "a") as file:
        found = []
        file.visititems(
            lambda name, item: (
                isinstance(item, h5py.Dataset) and found.append(name)
            )
        )
        for name in found:
            array = file[name][()]
            del file[name]
            file.create_dataset(
                name,
                data=array,
                compression="gzip",
                compression_opts=level,
                **options,
            )
    assert_loads(path, model)


def test_a_compressed_archive_loads(model, tmp_path):
    path = tmp_path / "w.keras"
    Classifier(model, list("abcdefghij")).save(path)
    size = path.stat().st_size
    rezip(path, lambda _, content: content, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < size
    assert_loads(path, model)
    assert Classifier.load(path).labels == list("abcdefghij")


@pytest.mark.integration
def test_an_archive_with_an_optimizer_loads(tmp_path):
    model = randomize(make_model())
    model.compile("adam", "categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "w.keras")
    assert_loads(tmp_path / "w.keras", model)


@pytest.mark.integration
@pytest.mark.parametrize("form", ["concatenated", "branches"])
def test_other_forms_load(form, model, tmp_path):
    path = tmp_path / "w.keras"
    make_model(form=form, weights=saved(model, tmp_path)).save(path)
    assert_same_outputs(Classifier.load(path).model, model)
    other = make_model(weights=path)
    assert_same_outputs(other, model)


def saved(model, folder):
    model.save_weights(folder / "saved.weights.h5")
    return folder / "saved.weights.h5"


def assert_same_outputs(found, expected):
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    images = images.astype("float32")
    np.testing.assert_allclose(found(images), expected(images), rtol=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("change", ["bfloat16", "lora", "int8", "nested"])
def test_models_with_more_than_plain_weights_load(change, tmp_path):
    path = tmp_path / "w.keras"
    model = randomize(make_model())
    if change == "bfloat16":
        model = keras.models.clone_model(
            model,
            clone_function=lambda layer: type(layer).from_config(
                {**layer.get_config(), "dtype": "bfloat16"}
            ),
        )
    elif change == "lora":
        model.get_layer("predictions").enable_lora(64)
    elif change == "int8":
        model.get_layer("predictions").quantize("int8")
    else:
        model.compile("adam", "categorical_crossentropy")
        model.optimizer.build(model.trainable_variables)
        x = keras.Input((16, 16, 3))
        model = keras.Model(x, model(keras.layers.ReLU()(x)))
    model.save(path)
    loaded = Classifier.load(path).model
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    images = images.astype("float32")
    np.testing.assert_array_equal(
        *(np.asarray(m(images), "float32") for m in (loaded, model))
    )
    if change == "bfloat16":
        other = make_model(weights=path)
        np.testing.assert_array_equal(
            other.get_weights()[0], np.asarray(model.weights[0], "float32")
        )


# --- Folders and repositories -----------------------------------------------


@pytest.fixture
def repository(model, tmp_path):
    """A folder as `push_to_hub` writes it, as far as it is read here."""
    folder = tmp_path / "repository"
    folder.mkdir()
    keras_resnext.export_weights(model, folder / "model.safetensors")
    config = {
        "model": keras.saving.serialize_keras_object(model),
        **Classifier(model).to_config(),
    }
    text = json.dumps({"keras_resnext": config})
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    "name", ["wide", "deep", "eager", "repeated", "foreign"]
)
def test_repositories_with_models_larger_than_their_weights(
    name, repository, model
):
    assert Classifier.load(repository).model.count_params()
    path = repository / "config.json"
    config = json.loads(path.read_text())
    change = getattr(hostile_weights, name)
    ours = config["keras_resnext"]
    ours["model"] = change(ours["model"])
    path.write_text(json.dumps(config))
    refusal(lambda: Classifier.load(repository), repository, model)


@pytest.mark.skipif(os.name != "posix", reason="FIFOs are POSIX'")
def test_repositories_with_files_of_another_kind(repository, model):
    config, weights = (
        repository / name for name in ("config.json", "model.safetensors")
    )
    os.truncate(config, 3 << 30)
    message = refusal(lambda: Classifier.load(repository), repository, model)
    assert "3072.0 MB" in message
    config.write_text("[" * 100_000)
    refusal(lambda: Classifier.load(repository), repository, model)
    weights.unlink()
    os.mkfifo(weights)
    config.write_text("{}")
    message = refusal(lambda: Classifier.load(repository), repository, model)
    assert "must be a regular file; it is a FIFO" in message


@pytest.mark.parametrize(
    ("arguments", "classes"),
    [
        ({"layers": [10**9, 1, 1, 1]}, 10),
        ({"base_width": 10**6}, 10),
        ({"layers": [1, 1, 1, 1]}, 10**9),
    ],
)
def test_timm_repositories_of_another_network(
    arguments, classes, model, repository
):
    config = {
        "architecture": "resnext50_32x4d",
        "num_classes": classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
    }
    (repository / "config.json").write_text(json.dumps(config))
    refusal(lambda: Classifier.load(repository), repository, model)


def test_a_classifier_that_is_not_the_networks(tmp_path):
    """One row of many classes would have made a kernel of 2048 of them."""
    from safetensors.numpy import save_file

    path = tmp_path / "w.safetensors"
    classes = 10**6
    tensors = {
        "fc.weight": np.zeros((classes, 1), "float32"),
        "fc.bias": np.zeros(classes, "float32"),
    }
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=r"has 1\d{9} values; .*w.safetens.* 2000000\."
    ):
        Classifier.load("resnext11_4x4d", path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"<html>"])
def test_a_damaged_run_names_its_file(content, model, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    refusal(lambda: Run(tmp_path).load_model(), path, model)
    refusal(lambda: keras_resnext.load_weights(model, tmp_path), path, model)


def test_a_foreign_class_is_one_line(model, tmp_path, run_cli):
    model.save(path := tmp_path / "w.keras")
    change_config(path, hostile_weights.foreign)
    keras.utils.save_img(tmp_path / "x.png", np.zeros((16, 16, 3)))
    status, _, error = run_cli("predict", path, tmp_path / "x.png")
    assert status == 1
    assert "Traceback" not in error
    assert "Could not locate class 'Theirs'" in " ".join(error.split())


def test_refused_models_leave_nothing_behind(model, tmp_path):
    """Keras would allocate their variables with the next model's."""
    from keras.src.backend.common import global_state

    from keras_resnext.private import UNALLOCATED

    path = TRAPS["wide.keras"](model, tmp_path)
    with pytest.raises(ValueError, match="values"):
        Classifier.load(path)
    assert not global_state.get_global_attribute(UNALLOCATED)
    with keras.StatelessScope():
        pass


@pytest.fixture(scope="module")
def good(model, tmp_path_factory):
    """A good file of each kind that is opened in a way of its own."""
    place = tmp_path_factory.mktemp("saved")
    model.save(place / "model.keras")
    model.save_weights(place / "model.weights.h5")
    return place


@pytest.mark.parametrize("kind", ["keras", "weights.h5"])
@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied", "model."), MemoryError()],
    ids=repr,
)
def test_what_may_not_or_cannot_be_read_is_not_damaged(
    error, kind, good, model, monkeypatch
):
    def refuse(*_, **__):
        raise error

    path = good / f"model.{kind}"
    monkeypatch.setattr(h5py, "File", refuse)
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    loads = [lambda: keras_resnext.weights.load_weights(model, path)]
    if kind == "keras":
        loads.append(lambda: Classifier.load(path))
    message = "denied" if error.args else f"little memory for {path}"
    for load in loads:
        with pytest.raises(type(error), match=message):
            load()


def test_too_little_memory_is_one_line(good, monkeypatch, run_cli):
    def refuse(path):
        raise MemoryError

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    path = good / "model.keras"
    status, _, error = run_cli("predict", path, path)
    assert status == 1
    assert " ".join(error.split()) == (
        f"Error: There is too little memory for {path}."
    )
