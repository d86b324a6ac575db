"""Error messages name what helps."""

import pytest

from keras_resnext.extras import cannot_write
from keras_resnext.extras import first_line
from keras_resnext.extras import require
from keras_resnext.extras import suggest
from keras_resnext.rewrite.forms import convert_form
from keras_resnext.variants import build
from keras_resnext.weights import get_weights
from keras_resnext.weights import list_weights


def test_missing_extra_is_named():
    require("json", extra="train", purpose="This")
    with pytest.raises(
        ModuleNotFoundError, match=r"This needs .* nowhere; .*resnext\[train\]"
    ):
        require("nowhere", extra="train", purpose="This")


def test_near_misses():
    assert suggest("ResNeXt5", ["resnext50", "vgg"]) == (
        " Did you mean resnext50?"
    )
    assert suggest("Resnext50", ["resnext50"]) == " Did you mean resnext50?"
    assert suggest("alexnet", ["resnext50"]) == suggest(3, ["a"]) == ""
    assert suggest(None, []) == ""


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: build("resnext5"), "resnext50"),
        (lambda: build("resnext50", form="group"), "grouped"),
        (lambda: build("resnext29_8x64d", pooling="avrg"), "avg"),
        (lambda: get_weights("resnext50", "tv_in2k"), "tv_in1k"),
        (lambda: list_weights("resnext50_32x4"), "resnext50_32x4d"),
        (lambda: convert_form(None, "branch"), "branches"),
    ],
)
def test_errors_suggest(call, meant):
    with pytest.raises(ValueError, match=rf"got '.*'\. Did you mean {meant}\?"):
        call()


def test_first_line():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError()"


@pytest.mark.parametrize(
    "said",
    [
        "{{function_node __wrapped__SaveV2_CPU:0}} /runs/.x.tempstate12; "
        "No space left on device [Op:SaveV2]",
        "{{function_node __wrapped__CreateSummaryFileWriter}} /runs/x.v2; "
        "No space left on device\n\tFailed to flush 1 events to /runs/x.v2",
        "No space left on device",
    ],
)
def test_what_tensorflow_cannot_write(said):
    assert str(cannot_write("/runs/x", RuntimeError(said))) == (
        "/runs/x cannot be written: No space left on device."
    )
