"""What users install, and what `make` installs."""

import configparser
import importlib.metadata
import importlib.util
import inspect
import re
from pathlib import Path

import keras
import pytest
from packaging.requirements import Requirement

import keras_resnext

ROOT = Path(__file__).parent.parent


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(requirement, extras=("",)):
    """Names of what a distribution installs with it, here and now."""
    found = set()
    waiting = [(requirement, frozenset(extras))]
    while waiting:
        name, extras = waiting.pop()
        for line in importlib.metadata.requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is None or any(
                wanted.marker.evaluate({"extra": extra}) for extra in extras
            ):
                entry = (wanted.name, frozenset({"", *wanted.extras}))
                if entry not in found:
                    found.add(entry)
                    waiting.append(entry)
    return {name for name, _ in found}


def test_everything_needed_is_in_the_lock():
    """A package that the lock misses would be a different one tomorrow."""
    lock = dict(
        re.findall(r"^([\w.-]+)==([^\s;]+)", read("requirements.lock"), re.M)
    )
    several = re.findall(r"^([\w.-]+)==", read("requirements.lock"), re.M)
    if lock["keras"] != keras.__version__:
        pytest.skip("these are not the locked versions")
    names = needed("keras_resnext", extras=("", "dev"))
    assert len(names) > 100
    for name in map(normal, names - {"setuptools"}):
        assert name in lock, f"{name} is needed and not in the lock"
        if several.count(name) == 1:
            assert importlib.metadata.version(name) == lock[name], name


def test_ranges_and_lock_agree():
    """They are installed without asking the package for its ranges."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    wanted = [config["options"]["install_requires"]]
    extras = dict(config["options.extras_require"])
    del extras["peers"]  # what we compare with; exact in setup.cfg
    wanted += extras.values()
    lines = re.findall(r"^[\w.-]+[<>=][^;\s]*", "\n".join(wanted), re.M)
    locked = re.findall(
        r"^([\w.-]+)==([^\s;]+)", read("requirements.lock"), re.M
    )
    assert len(lines) > 30
    for requirement in map(Requirement, lines):
        name = normal(requirement.name)
        versions = [version for other, version in locked if other == name]
        assert versions, f"{name} is not in the lock"
        for version in versions:
            assert requirement.specifier.contains(version), requirement


def test_every_locked_file_has_a_hash():
    """The demo's lock and the build's are parts of the developers'."""
    whole = entries("requirements.lock")
    assert len(whole) > 100
    for name in ("requirements-demo.lock", "requirements-build.lock"):
        assert entries(name).items() <= whole.items(), name
    for package, hashes in whole.items():
        assert hashes, package
    # Where they came from is no business of others.
    assert "://" not in "".join(map(read, ROOT.glob("requirements*.lock")))


def entries(name):
    """What a lock pins, as it is written, and the hashes of its files."""
    package, found = None, {}
    for line in read(name).splitlines():
        text = line.removesuffix("\\").strip()
        if text.startswith("--hash="):
            assert re.fullmatch("--hash=sha256:[0-9a-f]{64}", text), text
            found[package].add(text)
        else:
            assert re.match(r"[\w.-]+==\S+", text), text
            package = text
            found[package] = set()
    return found


def test_public_names_exist_and_are_documented():
    assert importlib.util.find_spec("keras_resnext").origin
    for name in keras_resnext.__all__:
        value = getattr(keras_resnext, name)
        if name != "__version__":
            assert inspect.getdoc(value), name
    assert dir(keras_resnext) == sorted(keras_resnext.__all__)


def test_builders_and_exporters_document_every_argument():
    from keras_resnext import export
    from keras_resnext import training

    for function in (
        keras_resnext.ResNeXt,
        keras_resnext.ResNeXt50,
        training.train,
        training.evaluate,
        training.Recipe,
        export.to_saved_model,
        export.to_tflite,
        export.to_onnx,
    ):
        text = inspect.getdoc(function)
        for name in inspect.signature(function).parameters:
            assert re.search(rf"^    (\*\*)?{name}: ", text, re.M), (
                function,
                name,
            )


def test_version_is_the_installed_one():
    installed = importlib.metadata.version("keras_resnext")
    assert keras_resnext.__version__ == installed
    assert f"## {installed}" in read("CHANGELOG.md")


def read(name):
    return (ROOT / name).read_text()
