"""The files that would be published: what they hold, and that they work."""

import email.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
from packaging.metadata import Metadata

import keras_resnext

ROOT = pathlib.Path(__file__).parent.parent
VERSION = keras_resnext.__version__
INFO = f"keras_resnext-{VERSION}.dist-info"

pytestmark = pytest.mark.integration
if not (ROOT / ".git").exists():
    pytest.skip(
        "what is published is built in a clone", allow_module_level=True
    )

# What our signatures speak of. The rest is imported inside of the package
# only, and JAX and PyTorch take minutes to read.
MYPY = """
[mypy]
strict = true
follow_imports = skip
[mypy-keras,keras_resnext.*,numpy.*,PIL.*]
follow_imports = normal
"""
# One line for each mistake that a checker must find, and its name for it.
MISTAKES = """
import keras_resnext
from keras_resnext import training

keras_resnext.ResNeXt51()  # attr-defined
keras_resnext.ResNeXt50(wieghts=None)  # call-arg
keras_resnext.ResNeXt(3, 32, 4)  # arg-type
keras_resnext.EvalTransform(image_size="224", resize_size=256)  # arg-type
tags: list[str] = keras_resnext.list_weights()  # assignment
keras_resnext.Classifier.load("resnext50").labels[0]  # index
training.Recipe(epochs="three")  # arg-type
training.trian(training.Recipe(), "runs/x")  # attr-defined
training.evaluate("runs/x", "digits").accuracy.value  # attr-defined
"""

# What works without any extra, and what needs which.
NEEDS = {
    None: (
        "kr.Classifier.load('resnext29_8x4d_f64', 'fashion_mnist')",
        "classifier.save('mine.keras')",
        "kr.Classifier.load('mine.keras').predict(images)",
        "explain.grad_cam(classifier, images[0])",
        "explain.embed(classifier, images)",
        "kr.inference_function(kr.fold_batch_norm(model))(images[:1])",
        "export.to_saved_model(classifier, 'saved_model')",
    ),
    "weights": (
        "kr.ResNeXt50()",
        "kr.load_weights(model, 'some.safetensors')",
        "kr.export_weights(model, 'mine.safetensors')",
        "kr.push_to_hub(classifier, 'user/name')",
    ),
    "export": (
        "export.to_onnx(classifier, 'model.onnx')",
        "export.to_tflite(classifier, 'model.tflite')",
        "export.to_tflite(classifier, 'model.tflite', quantize='dynamic')",
        "export.plan_files('files', ['savedmodel'])",
    ),
    "train": (
        "explain.overlay(images[0], np.ones((4, 4)))",
        "explain.nearest_neighbors(np.eye(3), np.eye(3))",
        "training.evaluate(classifier, 'digits')",
        "training.evaluate(classifier, 'shades').report('report')",
    ),
}
COMMANDS = {
    "weights": ("predict", "resnext50", "shades/0/0.png"),
    "export": ("export", "mine.keras", "--format", "tflite"),
    "train": ("train", "--dataset", "digits", "--workdir", "run"),
}
ALONE = """
import json
import pathlib
import numpy as np
import keras_resnext as kr
from PIL import Image
from keras_resnext import explain, export, training

images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), "uint8")
for i, image in enumerate(images):
    folder = pathlib.Path("shades", str(i))
    folder.mkdir(parents=True)
    Image.fromarray(image).save(folder / "0.png")
    Image.fromarray(255 - image).save(folder / "1.png")
pathlib.Path("some.safetensors").write_bytes(bytes(16))
model = kr.ResNeXt(
    (1, 1, 1), 4, 4, stem="cifar", classes=10, input_shape=(16, 16, 3)
)
classifier = kr.Classifier(model, list("0123456789"))
came = {}
for statement in STATEMENTS:
    try:
        exec(statement)
        came[statement] = None
    except ModuleNotFoundError as error:
        came[statement] = str(error)
pathlib.Path("came.json").write_text(json.dumps(came))
"""


def run(*command, cwd, expect=0, **environment):
    """What a command writes: its output, then its errors."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def tracked(*under):
    """Files that git knows or would add, relative to the root."""
    listed = run(
        *("git", "ls-files", "--cached", "--others", "--exclude-standard"),
        *under,
        cwd=ROOT,
    )
    # A deleted file is listed until that is committed.
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


def build(source, target, *kinds):
    """Build a distribution with the setuptools that is installed here."""
    run(
        *(sys.executable, "-m", "uv", "build", "--offline", *kinds),
        *("--no-build-isolation", "--python", sys.executable),
        *("--out-dir", target, source),
        cwd=target.parent,
    )
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is in git, without what builds left in the clone."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """The folder with the sdist, and the wheel that was built from it."""
    return build(source, tmp_path_factory.mktemp("built") / "dist")


@pytest.fixture(scope="module")
def wheel(built):
    return built / f"keras_resnext-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, and the packages of this one behind it.

    The package itself is not seen through them: it is installed here by an
    import hook, or is in a folder that comes later.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    uv = sys.executable, "-m", "uv"
    run(*uv, "venv", "--python", sys.executable, folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(
        *(*uv, "pip", "install", "--offline", "--no-deps"),
        *("--python", python, wheel),
        cwd=folder.parent,
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def contents(wheel):
    """Name and content of each file in a wheel."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    package = {n for n in tracked("keras_resnext") if not n.endswith(".md")}
    files = contents(wheel)
    assert set(files) == package | {
        f"{INFO}/{name}"
        for name in (
            *("METADATA", "RECORD", "WHEEL", "entry_points.txt"),
            *("licenses/LICENSE", "top_level.txt"),
        )
    }
    for name in package:
        assert files[name] == (ROOT / name).read_bytes(), name
    assert "keras_resnext/py.typed" in package
    assert any(name.endswith(".h5") for name in package)
    assert files[f"{INFO}/top_level.txt"].split() == [b"keras_resnext"]
    assert (
        b"keras-resnext = keras_resnext.cli:main"
        in (files[f"{INFO}/entry_points.txt"])
    )


def test_metadata_is_valid(wheel):
    text = contents(wheel)[f"{INFO}/METADATA"]
    metadata = Metadata.from_email(text, validate=True)
    assert metadata.name == "keras_resnext"
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description == (ROOT / "README.md").read_text()
    # An address that nobody has would lead readers astray.
    for address in (metadata.project_urls or {}).values():
        assert "example" not in address
    # PyPI keeps this much, and more is refused at the upload.
    assert len(email.parser.BytesParser().parsebytes(text)["Summary"]) <= 512


def test_sdist_holds_what_building_and_testing_need(built):
    """Whatever is in git but for what serves git and its servers."""
    top = f"keras_resnext-{VERSION}"
    with tarfile.open(built / f"{top}.tar.gz") as file:
        names = {m.name.removeprefix(f"{top}/") for m in file if m.isfile()}
    made = {n for n in names if n.startswith("keras_resnext.egg-info/")}
    assert names - made == {
        *(n for n in tracked() if not n.startswith((".ci/", ".git"))),
        "PKG-INFO",
    }


def test_wheel_of_the_sdist_is_that_of_the_clone(source, wheel, tmp_path):
    direct = build(source, tmp_path / "dist", "--wheel")
    assert contents(direct / wheel.name) == contents(wheel)


def test_installed_wheel_works(installed, tmp_path):
    """Every file that it reads of itself, and its command."""
    out = run(
        *(installed / "bin" / "python", "-W", "error", "-c"),
        "import sys, keras_resnext; print(keras_resnext.__file__); "
        "print('keras' in sys.modules); "
        "print(len(keras_resnext.list_weights())); "
        "print(keras_resnext.Classifier.load("
        "'resnext29_8x4d_f64', 'fashion_mnist').labels[-1])",
        cwd=tmp_path,
    )
    place, keras, weights, label = out.splitlines()[:4]
    assert pathlib.Path(place).is_relative_to(installed)
    assert keras == "False"
    assert int(weights) == len(keras_resnext.list_weights())
    assert label == "Ankle boot"
    command = installed / "bin" / "keras-resnext"
    assert "resnext50" in run(command, "list", "50", cwd=tmp_path)


@pytest.mark.slow
def test_without_extras_errors_name_them(wheel, tmp_path):
    """In an environment that has only what the package declares."""
    uv = sys.executable, "-m", "uv"
    venv = tmp_path / "venv"
    run(*uv, "venv", "--python", sys.executable, venv, cwd=tmp_path)
    run(
        *(*uv, "pip", "install", "--python", venv / "bin" / "python", wheel),
        *("--constraint", ROOT / "requirements.lock"),
        cwd=tmp_path,
    )
    statements = [x for needing in NEEDS.values() for x in needing]
    place = {"cwd": tmp_path, "TFDS_DATA_DIR": str(tmp_path / "data")}
    run(
        *(venv / "bin" / "python", "-c"),
        ALONE.replace("STATEMENTS", repr(statements)),
        **place,
    )
    came = json.loads((tmp_path / "came.json").read_text())
    for extra, needing in NEEDS.items():
        for statement in needing:
            message = came[statement]
            if extra is None:
                assert message is None, statement
            else:
                end = f"install it with pip install 'keras_resnext[{extra}]'."
                assert message is not None, statement
                assert message.endswith(end), statement
                assert "\n" not in message
    for extra, command in COMMANDS.items():
        out = run(venv / "bin" / "keras-resnext", *command, expect=1, **place)
        last = out.splitlines()[-1]
        assert last.startswith("Error: ")
        assert last.endswith(f"'keras_resnext[{extra}]'.")
        assert "Traceback" not in out
    for command in (("--help",), ("list",), ("summary", "resnext50")):
        run(venv / "bin" / "keras-resnext", *command, **place)


def check_types(installed, sample, tmp_path):
    """mypy's verdict on a user's file: status and lines."""
    config = tmp_path / "mypy.ini"
    config.write_text(MYPY)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(config)),
            *("--python-executable", str(installed / "bin" / "python")),
            *("--cache-dir", str(installed / "mypy")),
            *("--no-color-output", "--no-error-summary", str(sample)),
        ],
        cwd=tmp_path,  # or the package would be taken from the clone
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


def test_types_of_a_users_code(installed, tmp_path):
    sample = tmp_path / "typing_sample.py"
    shutil.copy(ROOT / "tests" / sample.name, sample)
    assert check_types(installed, sample, tmp_path) == (0, [])


def test_mistakes_in_a_users_code_are_found(installed, tmp_path):
    sample = tmp_path / "mistakes.py"
    sample.write_text(MISTAKES)
    _, lines = check_types(installed, sample, tmp_path)
    found = {
        tuple(re.search(r":(\d+): error: .*\[([\w-]+)\]$", x).groups())
        for x in lines
        if ": error: " in x
    }
    assert found == {
        (str(number), line.split("  # ")[1])
        for number, line in enumerate(MISTAKES.splitlines(), start=1)
        if "  # " in line
    }
