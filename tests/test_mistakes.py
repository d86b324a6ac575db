"""What a new user gets wrong: each ends in a line that says what to do."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def place(tmp_path_factory, toy_run, shades):
    """Folders, files and runs as a new user may have them."""
    place = tmp_path_factory.mktemp("place")
    picture = Image.fromarray(np.full((12, 12, 3), 90, "uint8"))
    shutil.copytree(shades / "train", place / "photos")
    for name in ("flat", "single/cat", "deep/a/b/c"):
        (place / name).mkdir(parents=True)
        for i in range(3):
            picture.save(place / name / f"{i}.png")
    picture.save(place / "photo.png")
    (place / "notes.txt").write_text("not an image")
    shutil.copytree(toy_run.path, place / "run")
    shutil.copytree(toy_run.path, place / "stopped")
    (place / "stopped" / "model.keras").unlink()
    return place


_FINETUNE = "finetune {0}/photos --workdir {0}/new"
_MISTAKES = {
    "finetune {0}/fotos --workdir {0}/new": "`dataset` must be a folder of "
    "images by class or a name .*; got '.*fotos', which is no folder",
    "finetune {0}/flat --workdir {0}/new": "<class>/<image> or <split>/<class>"
    "/<image>; .*flat has images directly in it, such as 0.png",
    "finetune {0}/single --workdir {0}/new": "must have two classes or more; "
    ".*single has cat",
    "finetune {0}/deep --workdir {0}/new": "nested too deep",
    "finetune {0}/photos": "`workdir` must be given",
    f"{_FINETUNE} --epoch 3": "No such option.*--epoch\\b.*--epochs",
    f"{_FINETUNE} --epochs three": "`epochs` must be of type int; got 'three'",
    f"{_FINETUNE} --weights imagnet": "got 'imagnet'. Did you mean imagenet",
    f"{_FINETUNE} --weights {{0}}/x.pth": "`weights` must be an existing file",
    f"{_FINETUNE} --weights {{0}}/run --model resnext50": "`model` must be "
    "None or resnext11_1x4d",
    f"{_FINETUNE} --weights {{0}}/run --batch-size 99": "`batch_size` must be "
    "at most the number of training images, 18; got 99",
    f"{_FINETUNE} --weights {{0}}/run --flip maybe": "unexpected extra",
    "train --workdir {0}/new --recipe digit": "Did you mean digits",
    "train --workdir {0}/new --dataset cifar_10": "Did you mean cifar10",
    "train --workdir {0}/new epoch=3": "got 'epoch=3'. Did you mean epochs",
    "train --workdir {0}/new --model resnext5": "Did you mean resnext50",
    "train --workdir {0}/run --epochs 99": "`workdir` must be new or contain "
    "this run; the recipe in .*run differs: .*epochs 99 .there 3",
    "train --workdir {0}/run --extend-to 3": "`epochs` must be more than the 3",
    "train --workdir {0}/stopped --extend-to 9": "must be a finished run to be "
    "extended; .*Start the same training again to finish it",
    "predict {0}/stopped {0}/photo.png": "must be a finished run; .*Start the "
    "same training again to finish it",
    "predict {0}/run {0}/missing.png": "missing.png",
    "predict {0}/run {0}/notes.txt": "notes.txt",
    "predict {0}/runs {0}/photo.png": "must be the folder of a training run, a "
    ".keras file or a model's name; there is no",
    "export {0}/run --format tflit": "`formats` must be some of savedmodel, "
    "tflite, onnx; got 'tflit'",
    "export {0}/run --quantize int4": "must be some of none, float16, dynamic, "
    "int8; got 'int4'",
    "evaluate {0}/run/model.keras": "`dataset` must be given",
    "evaluate {0}/run --dataset {0}/photos --split vall": "`split` must be one "
    "of those of .*photos, train, validation; got 'vall'",
}


@pytest.mark.parametrize(("command", "advice"), _MISTAKES.items())
def test_mistakes_end_in_advice(command, advice, place, run_cli):
    status, _, errors = run_cli(*command.format(place).split())
    assert status in (1, 2)
    assert "Traceback" not in errors
    # The usage errors of the command line are drawn in a box.
    words = " ".join(re.sub("[│─╭╮╰╯]", " ", errors).split())
    assert re.search(advice, words), errors
    if status == 1:
        assert len(errors.strip().splitlines()) == 1
    assert not (place / "new").exists()
