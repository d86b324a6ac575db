"""Reports of evaluations: numbers, pictures, page and folder."""

import dataclasses
import html.parser
import importlib.util
import json
import math
import re
import shutil

import matplotlib.figure
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnext.training import Evaluation
from keras_resnext.training import evaluate
from keras_resnext.training import report_pictures as pictures
from keras_resnext.training.calibration import TemperatureScaling
from keras_resnext.training.calibration import reliability
from keras_resnext.training.report import measure
from keras_resnext.training.report_page import page

NASTY = "<script>alert('$x_1$')</script> & a name that is far too long to draw"


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def evaluation(labels, probabilities, names=None):
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, "float32")
    count = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    return Evaluation(
        split="test",
        loss=float(-np.log(np.maximum(own, 1e-30)).mean()),
        labels=labels,
        probabilities=probabilities,
        class_names=names or [f"class {i}" for i in range(count)],
        image_names=[f"{i}.png" for i in range(len(labels))],
    )


def synthetic(counts, names=None, seed=0):
    """Classes of some sizes, each often taken for the next."""
    rng = np.random.default_rng(seed)
    classes = len(counts)
    labels = np.repeat(np.arange(classes), counts)
    rows = np.arange(len(labels))
    logits = rng.normal(size=(len(labels), classes))
    logits[rows, labels] += 6
    logits[rows, (labels + 1) % classes] += rng.uniform(0, 7, len(labels))
    return evaluation(labels, softmax(logits), names)


@pytest.fixture
def small():
    """Nine images of four classes; none of the last, none taken for it."""
    predictions = [0, 0, 0, 1, 1, 1, 0, 2, 2]
    confidence = [0.5, 0.7, 0.9, 0.6, 0.8, 0.55, 0.95, 0.4, 0.5]
    probabilities = np.zeros((9, 4))
    for row, p, c in zip(probabilities, predictions, confidence, strict=True):
        row[:] = (1 - c) / 3
        row[p] = c
    return evaluation([0, 0, 0, 0, 0, 1, 1, 2, 2], probabilities)


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is written, by the name of its file."""
    found = {}
    save = matplotlib.figure.Figure.savefig

    def savefig(figure, path, **options):
        found[path.name] = figure
        save(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return found


def test_scores_by_hand(small):
    numbers = measure(small)
    assert numbers["confusion_matrix"].tolist() == [
        [3, 2, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 2, 0],
        [0, 0, 0, 0],
    ]
    scores = [
        [entry[key] for key in ("precision", "recall", "f1")]
        for entry in numbers["classes"]
    ]
    # F1 is the true positives over their mean with the two kinds of errors.
    expected = [
        [3 / 4, 3 / 5, 3 / (3 + (1 + 2) / 2)],
        [1 / 3, 1 / 2, 1 / (1 + (2 + 1) / 2)],
        [1, 1, 1],
        [math.nan] * 3,  # no image, never predicted
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    means = [numbers["macro"][key] for key in ("precision", "recall", "f1")]
    np.testing.assert_allclose(means, np.mean(expected[:3], 0), rtol=1e-12)
    counts = ("images", "predicted", "right")
    assert [[c[key] for key in counts] for c in numbers["classes"]] == [
        [5, 4, 3],
        [2, 3, 1],
        [2, 2, 2],
        [0, 0, 0],
    ]
    assert numbers["top5_accuracy"] is None  # four classes


def test_interval_of_the_accuracy(small):
    """E. B. Wilson's formula, written out, for 6 of 9."""
    accuracy = measure(small)["accuracy"]
    assert (accuracy["right"], accuracy["value"]) == (6, 6 / 9)
    z, n, p = 1.959963984540054, 9, 6 / 9
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    expected = [middle - half, middle + half]
    assert accuracy["interval"] == pytest.approx(expected, rel=1e-9)
    assert accuracy["level"] == 0.95


def test_confused_pairs_and_their_images(small):
    first, second = measure(small)["confused_pairs"]
    assert (first["true"], first["predicted"]) == (0, 1)
    assert (first["images"], first["share"]) == (2, 2 / 5)
    assert [image["number"] for image in first["examples"]] == [4, 3]
    assert [image["name"] for image in first["examples"]] == ["4.png", "3.png"]
    confidence = [image["confidence"] for image in first["examples"]]
    assert confidence == pytest.approx([0.8, 0.6])
    assert (second["true"], second["predicted"]) == (1, 0)
    assert [image["number"] for image in second["examples"]] == [6]


def test_more_confused_pairs_come_first():
    """Among as many mistakes, the smaller class."""
    labels = [0] * 4 + [1] * 2 + [2] * 4
    predicted = [0, 0, 0, 1, 1, 2, 0, 0, 2, 2]
    pairs = measure(evaluation(labels, np.eye(3)[predicted]))["confused_pairs"]
    found = [(pair["true"], pair["predicted"]) for pair in pairs]
    assert found == [(2, 0), (1, 2), (0, 1)]


def test_top5_is_that_of_tensorflow():
    """With many ties, as of a confident network."""
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 4, (500, 9)) / 8
    result = evaluation(rng.integers(0, 9, 500), probabilities)
    best = tf.math.top_k(result.probabilities, 5).indices.numpy()
    expected = (best == result.labels[:, None]).any(axis=1)
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(result.in_top5, expected)
    numbers = measure(result)["top5_accuracy"]
    assert numbers["right"] == expected.sum()
    diverged = np.full((2, 9), np.nan)
    assert not evaluation([0, 8], diverged).in_top5.any()


def test_probabilities_must_fit(small):
    with pytest.raises(ValueError, match=r"`probabilities`.*\(9, 3\); got"):
        dataclasses.replace(small, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="`image_names` must name 9"):
        dataclasses.replace(small, image_names=["a"])
    broken = small.probabilities.copy()
    broken[3, 1] = np.nan
    broken = dataclasses.replace(small, probabilities=broken)
    with pytest.raises(ValueError, match="must be finite; those of 1 of 9"):
        measure(broken)


def test_calibration_error_by_hand():
    """The definition, image by image; 1/15 is the end of the first bin."""
    rng = np.random.default_rng(0)
    confidences = np.append(rng.uniform(0, 1, 400), [1 / 15, 0.2, 1.0])
    right = rng.uniform(size=403) < confidences**2
    bins = reliability(confidences, right)
    error = 0
    for i in range(15):
        inside = [
            (c, r)
            for c, r in zip(confidences, right, strict=True)
            if i / 15 < c <= (i + 1) / 15
        ]
        assert bins.images[i] == len(inside)
        confidence, accuracy = np.mean(inside, axis=0)
        assert bins.confidence[i] == pytest.approx(confidence)
        assert bins.accuracy[i] == pytest.approx(accuracy)
        error += len(inside) / 403 * abs(confidence - accuracy)
    assert bins.calibration_error == pytest.approx(error)
    assert error > 0.05


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_recovered(temperature):
    """Labels drawn from a softmax, probabilities from a sharper one."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5000, 10)) * 1.5
    truth = softmax(logits)
    drawn = (truth.cumsum(axis=1) < rng.uniform(size=(5000, 1))).sum(axis=1)
    labels = np.minimum(drawn, 9)  # the last sum may be below 1
    probabilities = softmax(logits * temperature).astype("float32")
    scaling = TemperatureScaling(probabilities, labels)
    found = scaling.fit()
    # The information on 1 / temperature is the variance of the logits.
    shown = np.log(probabilities)
    variance = (truth * shown**2).sum(1) - (truth * shown).sum(1) ** 2
    error = temperature**2 / math.sqrt(variance.sum())
    assert error < 0.02 * temperature
    assert found == pytest.approx(temperature, abs=4 * error)
    scaled = softmax(np.log(probabilities.astype("float64")) / found)
    np.testing.assert_allclose(
        scaling.confidences(found), scaled.max(axis=1), rtol=1e-5
    )
    loss = -np.log(scaled[np.arange(5000), labels]).mean()
    assert scaling.loss(found) == pytest.approx(loss, rel=1e-5)
    assert scaling.loss(found * 1.01) > scaling.loss(found)
    assert scaling.loss(found / 1.01) > scaling.loss(found)


def test_temperature_mends_the_calibration_error():
    result = synthetic([500] * 6)
    sharper = softmax(3 * np.log(result.probabilities))
    calibration = measure(evaluation(result.labels, sharper))["calibration"]
    assert calibration["temperature"] > 2
    assert calibration["ece_at_temperature"] < calibration["ece"] / 2
    assert calibration["loss_at_temperature"] < calibration["loss"]
    for suffix in ("", "_at_temperature"):
        bins = calibration[f"reliability{suffix}"]
        assert len(bins) == calibration["bins"] == 15
        assert sum(entry["images"] for entry in bins) == 3000


def test_no_temperature_without_mistakes():
    """Also with probabilities of 0, whose logarithm is infinite."""
    right = evaluation([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0, 1]])
    calibration = measure(right)["calibration"]
    assert calibration["temperature"] is None
    assert "ece_at_temperature" not in calibration


def test_losses_agree(small):
    assert measure(small)["calibration"]["loss"] == pytest.approx(small.loss)


class Page(html.parser.HTMLParser):
    """The elements of a page; refuses those that do not nest."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("classes", [4, 10, 1000])
def test_report_of_some_classes(classes, tmp_path, figures):
    counts = [3] * classes
    counts[:2] = 400, 50
    names = [NASTY, *(f"class {i}" for i in range(1, classes))]
    result = synthetic(counts, names)
    folder = tmp_path / "new" / "report"
    numbers = result.report(folder, title="A & B")
    assert json.loads((folder / "report.json").read_text()) == numbers
    assert len(numbers["classes"]) == classes
    drawn = {"confusion_matrix.png", "reliability.png"}
    if classes == 1000:
        drawn.add("most_confused.png")
    assert set(figures) == drawn
    files = {path.name for path in folder.iterdir()}
    assert files == drawn | {"report.json", "report.html"}
    for name in drawn:
        with Image.open(folder / name) as picture:
            assert 300 < min(picture.size) < max(picture.size) < 2000
    matrix = np.array(numbers["confusion_matrix"])
    assert matrix.sum() == sum(counts)
    chosen = range(classes)
    if classes == 1000:
        chosen = pictures.most_confused(matrix)
        assert len(chosen) == 20
    (axis,) = figures[sorted(drawn)[classes == 1000]].axes
    written = {tuple(map(int, t.get_position())): t for t in axis.texts}
    part = matrix[np.ix_(chosen, chosen)]
    for (i, j), count in np.ndenumerate(part):
        assert ((j, i) in written) == bool(count)
        if count:
            assert written[j, i].get_text() == str(count)
    ticks = [t.get_text() for t in axis.get_yticklabels()]
    assert "<script>al" in ticks[0]
    assert max(map(len, ticks)) <= 24  # with the number

    text = (folder / "report.html").read_text()
    assert not re.search(r"https?:|<script|<link|url\(|@import", text)
    found = Page(text)
    assert "".join(found.text).count(NASTY) >= 2
    assert "A & B" in found.text
    images = [values for tag, values in found.elements if tag == "img"]
    assert len(images) == len(drawn)
    for values in images:
        assert values["alt"]
        assert values["src"].startswith("data:image/png;base64,")
    tables = text.split("<table>")[1:]
    *_, rows = (re.findall(r"<tr>.*</tr>", table) for table in tables)
    assert len(rows) == 1 + classes
    f1 = [float(re.findall(r"<td>([\d.]+)</td>", row)[1]) for row in rows[1:]]
    assert f1 == sorted(f1)


def test_page_of_a_perfect_evaluation(tmp_path):
    """No mistakes, no temperature, and a class without images."""
    result = evaluation([0, 1, 1], [[0.9, 0.1, 0], [0, 1, 0], [0.2, 0.8, 0]])
    numbers = result.report(tmp_path / "report")
    assert numbers["classes"][2]["f1"] is None
    text = "".join(Page(page(numbers, tmp_path / "report")).text)
    assert "There are no mistakes." in text
    assert "No temperature between 0.05 and 20" in text


def test_most_confused_classes_stand_together():
    matrix = np.diag([50] * 6)
    matrix[4, 1], matrix[0, 3], matrix[3, 5] = 7, 3, 2
    assert pictures.most_confused(matrix) == [4, 1, 0, 3, 5]
    assert pictures.most_confused(matrix, 3) == [4, 1, 0]
    assert pictures.most_confused(np.diag([1, 2])) == []


def test_long_names_keep_both_ends():
    assert pictures.shorten("exactly twenty chars") == "exactly twenty chars"
    assert (
        pictures.shorten("one of  twenty-one cha")
        == "one of twenty-one cha"[:10] + "…" + "one of twenty-one cha"[-9:]
    )
    assert pictures.shorten("two\nlines") == "two lines"


@pytest.fixture
def judged(toy_run, shades):
    """An evaluation of 15 images of which some are mistaken."""
    result = evaluate(toy_run.load_model(), str(shades), batch_size=4)
    rolled = np.roll(np.eye(3, dtype="float32")[result.labels], 2, axis=0)
    return dataclasses.replace(
        result, probabilities=0.9 * rolled + np.float32(0.1 / 3)
    )


def test_evaluation_keeps_probabilities_and_names(toy_run, shades):
    model = toy_run.load_model()
    result = evaluate(model, str(shades), batch_size=4)
    files = sorted(shades.glob("test/*/*.png"), key=lambda path: path.name)
    files = sorted(files, key=lambda path: int(path.parent.name[0]))
    assert sorted(result.image_names) == sorted(map(str, files))
    assert list(result.class_names) == ["120", "200", "40"]
    for name, label in zip(result.image_names, result.labels, strict=True):
        assert f"/{result.class_names[label]}/" in name
    images = result.transform.normalize(result.images(range(15)))
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)


def test_images_are_read_again_by_number(judged):
    with Image.open(judged.image_names[7]) as picture:
        expected = np.array(picture)
    images = judged.images([7, 3, 7])
    assert images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(images[0], expected)
    np.testing.assert_array_equal(images[2], expected)
    assert np.abs(images[1] - expected).max() > 0
    with pytest.raises(ValueError, match="`data` and `transform` must be"):
        dataclasses.replace(judged, data=None).images([0])


@pytest.mark.integration
def test_images_after_bad_ones(toy_run, shades, tmp_path):
    """The number of an image is not its place in the folder."""
    copy = tmp_path / "data"
    shutil.copytree(shades, copy)
    (copy / "test" / "120" / "1.png").write_text("no image")
    result = evaluate(toy_run.load_model(), str(copy), on_bad_image="skip")
    assert len(result.image_names) == result.examples == 14
    with Image.open(copy / "test" / "120" / "2.png") as picture:
        np.testing.assert_array_equal(result.images([1])[0], np.array(picture))
    (copy / "test" / "120" / "2.png").unlink()
    with pytest.raises(ValueError, match="`data` must not change .*2.png"):
        result.images([1])


@pytest.mark.integration
def test_images_of_tfds_are_read_by_name(digits):
    from keras_resnext.transforms import EvalTransform

    transform = EvalTransform.from_crop_pct(8)
    pixels = digits.pixels("test", transform).as_numpy_iterator()
    all_images, labels = map(np.stack, zip(*pixels, strict=True))
    names = [
        name.decode() for name, *_ in digits.encoded("test").as_numpy_iterator()
    ]
    result = Evaluation(
        split="test",
        loss=0.0,
        labels=labels,
        probabilities=np.eye(10, dtype="float32")[labels],
        class_names=digits.labels,
        image_names=names,
        data=digits,
        transform=transform,
    )
    numbers = [200, 3, 359]
    np.testing.assert_array_equal(result.images(numbers), all_images[numbers])


def test_mistakes_are_shown(judged, tmp_path, figures):
    numbers = judged.report(tmp_path / "report")
    pairs = numbers["confused_pairs"]
    assert len(pairs) == 3
    assert [len(pair["examples"]) for pair in pairs] == [2, 2, 2]
    shown = [axis for axis in figures["confused_pairs.png"].axes if axis.images]
    examples = [image for pair in pairs for image in pair["examples"]]
    for axis, example in zip(shown, examples, strict=True):
        with Image.open(example["name"]) as picture:
            np.testing.assert_array_equal(
                axis.images[0].get_array(), np.array(picture)
            )
        assert axis.get_title() == "0.93"
    text = "".join(Page((tmp_path / "report/report.html").read_text()).text)
    assert examples[0]["name"] in text


def test_only_an_earlier_report_is_replaced(small, tmp_path):
    folder = tmp_path / "report"
    small.report(folder)
    small.report(folder, title="Again")
    assert "Again" in (folder / "report.html").read_text()
    before = (folder / "report.json").read_bytes()
    (folder / "notes.txt").write_text("mine")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "report.json").write_text('{"kind": "export"}')
    file = tmp_path / "file"
    file.touch()
    for path in (folder, foreign, file):
        with pytest.raises(FileExistsError, match="earlier report and nothing"):
            small.report(path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        small.report(file / "report")
    assert (folder / "report.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "report",
        "foreign",
        "file",
    }


def test_a_report_that_fails_leaves_nothing(small, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "draw_reliability", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small.report(tmp_path / "report")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_missing_modules_are_named(small, tmp_path, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == missing else find(name, *rest),
    )
    with pytest.raises(ModuleNotFoundError, match=r"keras_resnext\[train\]"):
        small.report(tmp_path / "report")


@pytest.mark.integration
def test_command_writes_a_report(toy_run, tmp_path, run_cli, monkeypatch):
    folder = tmp_path / "report"
    picture = tmp_path / "grid.png"
    command = ("evaluate", toy_run.path, "--picture", picture, "--report")
    status, output, error = run_cli(*command, folder)
    assert status == 0, error
    assert f"Wrote {folder / 'report.html'}" in output
    numbers = json.loads((folder / "report.json").read_text())
    assert f"{numbers['accuracy']['right']} correct" in output
    assert numbers["title"].startswith(str(toy_run.path))
    (folder / "mine.txt").touch()
    # Before a model is loaded.
    monkeypatch.setattr("keras_resnext.classifier.Classifier.load", None)
    status, _, error = run_cli(*command, folder)
    assert status == 1
    assert "must hold an earlier report and nothing else" in error
