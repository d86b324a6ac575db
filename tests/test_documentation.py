"""Every public name is in the reference, and every example runs.

Examples run in a copy of one prepared folder: photographs, runs of real, short
trainings, and weights. Names that an example does not define are public ones,
its module's, and those of `GIVEN`, what a reader has. Where no output is shown,
any will do.

There is no network: the Hub is `tests.fake_hub`, which has random weights under
the names of published ones. Nothing else is a stand-in.
"""

import ast
import builtins
import contextlib
import doctest
import functools
import importlib
import importlib.util
import inspect
import io
import json
import pathlib
import re
import shlex
import shutil
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import typer
from PIL import Image

import keras_resnext
from keras_resnext import explain
from keras_resnext import export
from keras_resnext import layers
from keras_resnext import training
from keras_resnext.cli import app
from keras_resnext.training.datasets import open_dataset
from tests import fake_hub

pytestmark = pytest.mark.filterwarnings(
    # The client's own, about how it calls its HTTP library.
    "ignore:Use 'content=:DeprecationWarning"
)

ROOT = pathlib.Path(__file__).parents[1]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "keras_resnext").glob("*/README.md")),
]
TRANSFORM = keras_resnext.EvalTransform(image_size=224, resize_size=256)

# Gigabytes, or minutes.
SLOW = {
    "keras_resnext.ResNet200",
    "keras_resnext.ResNeXt101_32x8d",
    "keras_resnext.ResNeXt101_32x16d",
    "keras_resnext.ResNeXt101_32x32d",
    "keras_resnext.ResNeXt101_32x48d",
    "keras_resnext.training.finetune",
}


# The names.


def documented():
    """What the reference has directives for: full names, and their values."""
    found, module = {}, None
    for page in REFERENCE:
        for line in page.read_text().splitlines():
            match = re.match(
                r"\.\. (auto\w+|currentmodule|py:data):: (\S+)", line
            )
            if not match:
                continue
            kind, name = match.groups()
            if kind == "currentmodule":
                module = name
            else:
                value = getattr(importlib.import_module(module), name)
                found[f"{module}.{name}"] = value
    return found


DOCUMENTED = documented()


def members(name, value):
    """The public methods of a class that its page shows."""
    for member, function in vars(value).items():
        if isinstance(function, (classmethod, staticmethod)):
            function = function.__func__
        own = isinstance(function, types.FunctionType)
        if own and (not member.startswith("_") or member == "__call__"):
            yield f"{name}.{member}", function


def collect_examples():
    """Full names, with their values, of all that have an example."""
    found = dict(DOCUMENTED)
    for name, value in DOCUMENTED.items():
        if inspect.isclass(value):
            found |= members(name, value)
    return {
        name: value
        for name, value in found.items()
        if ">>>" in (inspect.getdoc(value) or "")
    }


EXAMPLES = collect_examples()


def public(module):
    """The public names of a module."""
    listed = getattr(module, "__all__", None)
    return listed or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "").startswith(module.__name__)
        and not name.startswith("_")
    ]


@pytest.mark.parametrize(
    "module",
    [keras_resnext, training, export, explain, layers],
    ids=lambda module: module.__name__,
)
def test_public_names_are_in_the_reference(module):
    names = public(module)
    assert len(names) > 4
    for name in names:
        full = f"{module.__name__}.{name}"
        if isinstance(getattr(module, name), types.ModuleType):
            assert any(other.startswith(f"{full}.") for other in DOCUMENTED)
        else:
            assert full in DOCUMENTED


@pytest.mark.parametrize("name", DOCUMENTED)
def test_has_an_example(name):
    value = DOCUMENTED[name]
    if inspect.isclass(value) or callable(value):
        assert inspect.getdoc(value)
        assert name in EXAMPLES
    else:  # a constant's is on its page
        pages = "\n".join(page.read_text() for page in REFERENCE)
        assert f">>> {name}" in pages


# What readers have.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The prepared folder; examples get copies, with links to its weights."""
    place = tmp_path_factory.mktemp("prepared") / "place"
    add_photographs(place)
    with contextlib.chdir(place):
        training.train(
            training.Recipe(
                model="resnext11_1x4d",
                image_size=8,
                crop_padding=1,
                batch_size=128,
                epochs=2,
                warmup_epochs=1,
            ),
            "runs/digits",
        )
        training.finetune(
            "photos/", "runs/mine", weights="runs/digits", epochs=2
        )
    for name in ("demo", "cifar", "x"):
        shutil.copytree(place / "runs/digits", place / "runs" / name)
    return place


def add_photographs(place):
    """Squares of scikit-learn's two photographs, a folder for each."""
    from sklearn.datasets import load_sample_images

    for name, pixels in zip(
        ("temple", "flower"), load_sample_images().images, strict=True
    ):
        picture = Image.fromarray(pixels)
        folder = place / "photos" / name
        folder.mkdir(parents=True)
        for i in range(10):
            left, top = 40 * i, 20 * i
            picture.crop((left, top, left + 240, top + 240)).save(
                folder / f"{i}.jpg"
            )
        picture.save(place / "photo.jpg")
        picture.save(place / "new.jpg")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Random weights of ResNeXt-50 in files, and on a stand-in for the Hub."""
    from huggingface_hub import constants
    from huggingface_hub import utils
    from safetensors.numpy import load_file
    from safetensors.numpy import save

    from keras_resnext.weights import timm_config

    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(0)
    path = folder / "my.safetensors"
    keras_resnext.export_weights(keras_resnext.ResNeXt50(weights=None), path)
    tensors = load_file(path)
    if importlib.util.find_spec("torch"):
        import torch

        torch.save(
            {name: torch.from_numpy(t) for name, t in tensors.items()},
            folder / "resnext50_32x4d-1a0047aa.pth",
        )
    config = timm_config.to_timm_config(
        timm_config.TimmModel(
            timm_config.TimmNetwork((3, 4, 6, 3), 32, 4), 1000, None, TRANSFORM
        )
    )
    theirs = {
        "model.safetensors": path.read_bytes(),
        "config.json": json.dumps(config).encode(),
    }
    fewer = {
        name: tensor[:200] if name.startswith("fc.") else tensor
        for name, tensor in tensors.items()
    }
    with pytest.MonkeyPatch.context() as patch, fake_hub.FakeHub() as hub:
        for name, revision, files in (
            ("timm/resnext50_32x4d.tv2_in1k", "1" * 40, theirs),
            ("timm/resnext50_32x4d.a1h_in1k", "2" * 40, theirs),
            ("user/trees", "v1", {"model.safetensors": save(fewer)}),
        ):
            hub.repositories[name] = {
                "private": False,
                "commits": [(revision, files)],
            }
        # The fake speaks LFS, not Xet.
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setenv("HF_TOKEN", fake_hub.TOKEN)
        patch.setenv("HF_ENDPOINT", hub.address)
        utils.disable_progress_bars()
        yield folder, hub
        utils.enable_progress_bars()


@pytest.fixture
def here(place, published, tmp_path, monkeypatch):
    """A copy of the prepared folder, to work in."""
    here = tmp_path / "here"
    shutil.copytree(place, here)
    weights, hub = published
    for path in weights.iterdir():
        if path.suffix in (".safetensors", ".pth"):
            (here / path.name).symlink_to(path)
    # Each example publishes for the first time.
    hub.repositories.pop("user/birds", None)
    monkeypatch.chdir(here)
    return here


@functools.cache
def digits():
    """Pixels in [0, 255] and classes of the digits to validate on."""
    data = open_dataset("digits")
    data.prepare()
    transform = keras_resnext.EvalTransform(image_size=8, resize_size=8)
    rows = list(data.pixels("test", transform).as_numpy_iterator())
    images, classes = zip(*rows, strict=True)
    return np.stack(images), np.array(classes)


def classifier():
    return keras_resnext.Classifier.load("runs/digits")


# Names that examples use without saying where they come from.
GIVEN = {
    "classifier": classifier,
    "model": lambda: classifier().model,
    "run": lambda: training.Run("runs/digits"),
    "recipe": lambda: training.Run("runs/digits").recipe,
    "images": lambda: digits()[0][:100],
    "classes": lambda: digits()[1][:100],
    "photos": lambda: digits()[0][100:200],
    "pixels": lambda: digits()[0][:8],
    "names": lambda: classifier().labels,
    "paths": lambda: sorted(pathlib.Path("photos").glob("*/*.jpg")),
    "transform": lambda: TRANSFORM,
    "encoded": lambda: pathlib.Path("photo.jpg").read_bytes(),
    "vectors": lambda: np.eye(8, 4, dtype="float32") + 1,
    "queries": lambda: np.ones((1, 4), "float32"),
}


def names_to_give(code, namespace):
    """Names that code reads and nobody defined."""
    given, seen = [], {*namespace, *vars(builtins)}
    nodes = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)]
    # In the order in which they are read; what is assigned comes last.
    nodes.sort(
        key=lambda n: (n.lineno, isinstance(n.ctx, ast.Store), n.col_offset)
    )
    for node in nodes:
        if isinstance(node.ctx, ast.Load) and node.id not in seen:
            given.append(node.id)
        seen.add(node.id)
    return [name for name in given if name in GIVEN]


def namespace_of(module):
    """What an example may use without importing it."""
    names = {"keras_resnext": keras_resnext, "keras": keras}
    for package in (keras_resnext, training, export, explain, layers):
        names |= {name: getattr(package, name) for name in public(package)}
    return names | vars(module) | {"np": np, "tf": tf}


# Docstrings.


class Checker(doctest.OutputChecker):
    """Output that is not shown may be anything."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def run_doctest(name, text, namespace):
    test = doctest.DocTestParser().get_doctest(text, namespace, name, None, 0)
    assert test.examples
    code = "".join(example.source for example in test.examples)
    for library in re.findall(r"^import (\w+)", code, re.M):
        if library == "timm":
            importlib.import_module("tests.torch_reference")  # or skips
        pytest.importorskip(library)
    for given in names_to_give(code, test.globs):
        test.globs[given] = GIVEN[given]()
    report = io.StringIO()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(Checker(), optionflags=flags)
    runner.run(test, out=report.write)
    assert not report.getvalue(), report.getvalue()


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in EXAMPLES
    ],
)
def test_example(name, here):
    value = EXAMPLES[name]
    module = sys.modules[value.__module__]
    run_doctest(name, inspect.getdoc(value), namespace_of(module))


@pytest.mark.parametrize(
    "page",
    [page for page in REFERENCE if ">>>" in page.read_text()],
    ids=lambda page: page.name,
)
def test_examples_of_the_reference(page):
    run_doctest(page.name, page.read_text(), namespace_of(keras_resnext))


# Pages.


def blocks(page, *languages):
    """Code blocks of a page: the number of their line, and the code."""
    fence = rf"^ *```({'|'.join(languages)})\n(.*?)^ *```$"
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start()) + 1, textwrap.dedent(match[2]))
        for match in re.finditer(fence, text, re.M | re.S)
    ]


def page_name(page):
    return str(page.relative_to(ROOT))


# The first is a batch for ResNeXt-50.
GIVEN_ON_PAGES = {"images": lambda: np.zeros((2, 224, 224, 3), "float32")}


@pytest.mark.integration
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python")],
    ids=page_name,
)
def test_python_of_page(page, here):
    """Block after block in one namespace."""
    namespace = {"__name__": "page", "keras_resnext": keras_resnext}
    for line, code in blocks(page, "python"):
        if ".pth" in code:
            pytest.importorskip("torch")
        for given in names_to_give(code, namespace):
            namespace[given] = {**GIVEN, **GIVEN_ON_PAGES}[given]()
        # Errors name the line of the page.
        tree = ast.increment_lineno(ast.parse(code), line)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(tree, str(page), "exec"), namespace)


def arguments(line):
    """The words after `keras-resnext`, or `None` for other lines."""
    before, program, after = line.partition("keras-resnext ")
    if not program or before.strip().startswith("#"):
        return None
    words = shlex.split(after.partition(" > ")[0], comments=True)
    # Parsing this one would change the shell's configuration.
    return None if words == ["--install-completion"] else words


def commands(page):
    """The command lines of a page's blocks, as lists of words."""
    lines = [
        line
        for _, block in blocks(page, "console", "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return list(filter(None, map(arguments, lines)))


def mentions(page):
    """The same, of commands within the text, which may be shortened."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
    return list(filter(None, map(arguments, re.findall(r"`([^`\n]+)`", text))))


COMMANDS = [
    (page_name(page), words) for page in PAGES for words in commands(page)
]
MENTIONS = [
    (page_name(page), words) for page in PAGES for words in mentions(page)
]


def command_id(value):
    return value if isinstance(value, str) else " ".join(value)


def parse(words):
    """Check commands, options, and values of options; nothing is run."""
    group = typer.main.get_command(app.app)
    context = group.make_context("keras-resnext", list(words))
    name, command, rest = group.resolve_command(
        context, [*context._protected_args, *context.args]
    )
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=command_id)
def test_command_parses(page, words):
    parse(words)


@pytest.mark.parametrize(("page", "words"), MENTIONS, ids=command_id)
def test_mentioned_command_parses(page, words):
    """Arguments may be missing."""
    try:
        parse(words)
    except typer.BadParameter as error:
        if type(error).__name__ != "MissingParameter":
            raise


def test_commands_are_found():
    assert len(COMMANDS) > 20
    assert {words[0] for _, words in COMMANDS} >= {
        *("list", "predict", "evaluate", "train", "finetune"),
        *("export", "push"),
    }


# In this order; each leaves what the next ones need.
CHEAP = [
    "list --weights",
    "list --recipes",
    "list --devices",
    "predict resnext50 photo.jpg --weights imagenet",
    "evaluate runs/mine --report runs/mine/report",
    "push runs/mine user/birds --license apache-2.0 --dry-run card",
    "push runs/mine user/birds --license apache-2.0",
]


@pytest.mark.integration
def test_cheap_commands(here, run_cli):
    written = [" ".join(words) for _, words in COMMANDS]
    for command in CHEAP:
        assert command in written
        status, output, errors = run_cli(*command.split())
        assert status == 0, errors
        assert output, command
