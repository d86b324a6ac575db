"""oneDNN: who turns it on, until when, and what is said when it is too late."""

import os
import shutil
import subprocess
import sys

import pytest

from keras_resnext import cpu

pytestmark = pytest.mark.skipif(
    "avx2" not in cpu.instruction_sets(), reason="a CPU with AVX2 is needed"
)
OURS_FIRST = "import keras_resnext, keras"
KERAS_FIRST = "import keras, keras_resnext"
REPORT = """
from keras_resnext import cpu
from keras_resnext.layers import conv_implementation
print(conv_implementation(), cpu.onednn_decision(), sep=", ")
"""


def in_new_process(imports, **environment):
    """What `REPORT` prints and warns of, without the tests' own settings."""
    outer = {k: v for k, v in os.environ.items() if k != cpu.SETTING}
    done = subprocess.run(
        [sys.executable, "-c", imports + REPORT],
        env={**outer, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr.count("imported without oneDNN")


@pytest.fixture
def undecided(monkeypatch):
    """A process in which nobody has imported TensorFlow or set anything."""
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.delenv(cpu.SETTING, raising=False)
    monkeypatch.setattr(cpu, "_turned_on", False)


@pytest.mark.skipif(not shutil.which("lscpu"), reason="needs lscpu")
def test_instruction_sets_are_those_of_lscpu():
    text = subprocess.run(
        ["lscpu"], capture_output=True, text=True, check=True
    ).stdout
    (flags,) = (x for x in text.splitlines() if x.startswith("Flags:"))
    expected = [x for x in cpu.INSTRUCTION_SETS if x in flags.split()]
    assert list(cpu.instruction_sets()) == expected


def test_onednn_is_turned_on(undecided):
    cpu.turn_on_onednn()
    assert os.environ[cpu.SETTING] == "1"


@pytest.mark.parametrize("value", ["0", "1", ""])
def test_a_users_setting_stays(undecided, monkeypatch, value):
    monkeypatch.setenv(cpu.SETTING, value)
    cpu.turn_on_onednn()
    assert os.environ[cpu.SETTING] == value


def test_nothing_is_set_once_tensorflow_is_there(undecided, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    cpu.turn_on_onednn()
    assert cpu.SETTING not in os.environ


def test_nothing_is_set_on_a_cpu_without_avx2(undecided, monkeypatch):
    monkeypatch.setattr(cpu, "instruction_sets", lambda: ("avx",))
    cpu.turn_on_onednn()
    assert cpu.SETTING not in os.environ


@pytest.mark.integration
def test_on_by_default():
    assert in_new_process(OURS_FIRST) == ("native, on, by keras_resnext", 0)


@pytest.mark.integration
def test_too_late_after_keras():
    """One warning, where TensorFlow itself leaves oneDNN off."""
    on_by_itself = {"avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16"}
    if on_by_itself & set(cpu.instruction_sets()):
        expected = ("native, on, by TensorFlow", 0)
    else:
        expected = ("split, off, by TensorFlow", 1)
    assert in_new_process(KERAS_FIRST) == expected


@pytest.mark.integration
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("0", "split, off", marks=pytest.mark.slow),
        ("1", "native, on"),
    ],
)
@pytest.mark.parametrize(
    "imports", [OURS_FIRST, pytest.param(KERAS_FIRST, marks=pytest.mark.slow)]
)
def test_the_environment_decides(imports, value, expected):
    assert in_new_process(imports, **{cpu.SETTING: value}) == (
        f"{expected}, by {cpu.SETTING}={value}",
        0,
    )
