"""The batch kit classifies each picture once, whatever kills it.

It has a virtual environment of its own (`make batch`), because it brings Ray;
without one the tests that run it are skipped.
"""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import fashion
from keras_resnext import Classifier
from keras_resnext.export import to_onnx
from keras_resnext.transforms import EvalTransform
from tests import isolated
from tests.test_packaging import entries

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "export/batch/classify.py"
PYTHON = ROOT / ".venv-batch/bin/python"
LABELS = [f"class {i}" for i in range(10)]
TRANSFORM = EvalTransform(image_size=16, resize_size=20)

needs_ray = pytest.mark.skipif(
    not PYTHON.exists(), reason="`make batch` installs Ray"
)


@pytest.fixture(scope="module")
def kit():
    """export/batch/classify.py as a module; Ray is imported when needed."""
    spec = importlib.util.spec_from_file_location("batch_classify", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(small_model, tmp_path_factory):
    """A small network that is not sure of one class, as an .onnx file."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    to_onnx(small_model, path, labels=LABELS, transform=TRANSFORM)
    return path


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def noise(height, width, seed=0):
    """Smooth colours and noise, uint8 `(height, width, 3)`."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 1, width) * np.linspace(1, 0.2, height)[:, None]
    colours = slope[..., None] * random.integers(50, 200, 3)
    return (colours + random.integers(0, 56, (height, width, 3))).astype("u1")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


PICTURES = {
    "PNG": encode(noise(70, 110)),
    "grey": encode(noise(70, 110)[..., 0]),
    "16 bits": encode(noise(31, 40)[..., 0].astype("uint16") * 257),
    "alpha": encode(noise(70, 110)[..., [0, 1, 2, 0]]),
    "GIF": encode(noise(70, 110), "GIF"),
    "BMP": encode(noise(70, 110), "BMP"),
    "WebP": encode(noise(70, 110), "WEBP"),
    "JPEG": encode(noise(110, 70), "JPEG"),
    "large JPEG": encode(noise(900, 700), "JPEG"),
    "long": encode(noise(3, 900)),
    "high": encode(noise(900, 3)),
    "small": encode(noise(9, 5)),
    "damaged EXIF": encode(noise(70, 110), "JPEG", exif=b"Exif\0\0II*\0abc"),
    **{
        f"turned {i}": encode(noise(70, 110), "JPEG", exif=turned(i))
        for i in range(2, 9)
    },
    "turned PNG": encode(noise(70, 110), exif=turned(6)),
    "turned WebP": encode(noise(70, 110), "WEBP", exif=turned(6)),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    ("resize_size", "interpolation"), [(16, "bilinear"), (20, "bicubic")]
)
def test_pixels_are_those_of_the_package(kit, name, resize_size, interpolation):
    transform = EvalTransform(
        image_size=16, resize_size=resize_size, interpolation=interpolation
    )
    content = PICTURES[name]
    image = kit.read_picture(content, shrink_to=transform.shrink_to)
    ours = kit.resize_and_crop(
        image, (16, 16), transform.crop_pct, interpolation
    )
    np.testing.assert_array_equal(ours, transform.pixels(content))


@pytest.mark.integration
def test_the_model_says_how_pictures_are_read(kit, model):
    opened = kit.Model(model.read_bytes(), threads=1)
    assert opened.labels == LABELS
    assert opened.size == (16, 16)
    content = PICTURES["large JPEG"]
    np.testing.assert_array_equal(
        opened.read(content), TRANSFORM.pixels(content)
    )


@pytest.mark.integration
def test_channels_first_and_no_labels(
    kit, model, small_model, pixels, tmp_path
):
    """Indices are the names then."""
    path = tmp_path / "nchw.onnx"
    to_onnx(small_model, path, data_format="NCHW")
    opened = kit.Model(path.read_bytes(), threads=1)
    assert opened.labels == [*"0123456789"]
    assert opened.size == (16, 16)
    usual = kit.Model(model.read_bytes(), threads=1)
    np.testing.assert_allclose(opened(pixels), usual(pixels), atol=1e-6)


def huge_png():
    """A PNG file whose header says 20,000 x 20,000 pixels."""
    content = bytearray(encode(noise(8, 8)))
    content[16:24] = 2 * (20_000).to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def partial_gif():
    """A GIF file whose first frame has another size than the picture."""
    content = bytearray(encode(noise(8, 8), "GIF"))
    content[6:8] = (9).to_bytes(2, "little")
    return bytes(content)


def plain_cmyk():
    file = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(file, "JPEG")
    content = file.getvalue()
    start = content.index(b"\xff\xee")  # where Adobe's mark is
    return content[:start] + content[start + 16 :]


BAD = {
    "nothing": (None, "it has no content"),
    "empty": (b"", "unknown format; JPEG, PNG, GIF, BMP, WEBP are read"),
    "text": (b"This is no picture.", "unknown format; "),
    "TIFF": (encode(noise(8, 8), "TIFF"), "unknown format; "),
    "cut": (encode(noise(99, 99), "JPEG")[:2000], "image file is truncated"),
    "huge": (huge_png(), "it has 20000x20000 pixels, more than `--max-pixels`"),
    "partial": (partial_gif(), "a GIF file's first frame must fill"),
    "CMYK": (plain_cmyk(), "a JPEG file in CMYK must have Adobe's mark"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_have_a_reason(kit, name):
    content, reason = BAD[name]
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        kit.read_picture(content)
    if content:  # and the package refuses it as well
        with pytest.raises(ValueError, match="`source` must be an image file"):
            TRANSFORM.pixels(content)


def test_parts_do_not_depend_on_what_is_done(kit):
    """Who goes on writes the same files as who began."""
    groups = [
        {"file": "", "group": 0, "names": [f"{i:04}" for i in range(47)]},
        {"file": "x.parquet", "group": 3, "names": [*"abcdefghijk"]},
    ]
    parts = kit.plan(groups, set(), 10)
    assert [len(part["names"]) for part in parts] == [10, 10, 10, 10, 7, 10, 1]
    random = np.random.default_rng(0)
    for _ in range(20):
        left = [part for part in parts if random.random() < 0.5]
        done = {x for part in parts if part not in left for x in part["names"]}
        assert kit.plan(groups, done, 10) == left


def test_a_part_counts_once_both_its_files_are_there(kit, tmp_path):
    output = kit.Output(tmp_path, b"model", 1)
    assert output.read_done() == set()
    row = ("a.png", "cat", 0.5, ["cat"], [0.5])
    with output.held():
        output.write(["a.png", "b.png"], [row], [("b.png", "why")])
    assert output.read_done() == {"a.png", "b.png"}
    (path,) = output.predictions.iterdir()
    path.rename(output.predictions / f".{path.name}.new")
    assert output.read_done() == set()
    assert not [*output.errors.iterdir(), *output.predictions.iterdir()]


def test_an_output_has_one_writer(kit, tmp_path):
    output = kit.Output(tmp_path, b"model", 1)
    other = kit.Output(tmp_path, b"model", 1)
    with (
        output.held(),
        pytest.raises(ValueError, match="`output` must have one writer"),
        other.held(),
    ):
        pass
    with other.held():
        pass


def test_what_is_in_neither_table_is_an_error(kit, tmp_path):
    """A machine that does not see the folder writes nothing elsewhere."""
    output = kit.Output(tmp_path / "shared", b"model", 1)
    row = ("a.png", "cat", 0.5, ["cat"], [0.5])
    with pytest.raises(FileNotFoundError):
        output.write(["a.png"], [row], [])
    groups = [{"file": "", "group": 0, "names": ["a.png", "b.png"]}]
    with output.held():
        output.write(["a.png"], [row], [])
        with pytest.raises(
            ValueError, match="1 of 2 pictures are in neither table"
        ):
            kit.check_complete(output, groups)


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), MemoryError()])
def test_what_may_pass_is_no_bad_picture(kit, error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(kit.Image, "open", fail)
    with pytest.raises(type(error)):
        kit.read_picture(PICTURES["PNG"])


def test_a_folder_that_cannot_be_listed_is_an_error(kit, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        kit.list_pictures(tmp_path)


@pytest.mark.integration
def test_a_network_of_other_inputs_is_refused(kit, small_model, tmp_path):
    path = tmp_path / "bare.onnx"
    to_onnx(small_model, path, preprocessing=None)
    with pytest.raises(ValueError, match="`--model` must take RGB pixels"):
        kit.Model(path.read_bytes(), threads=1)


@pytest.mark.parametrize(
    ("content", "top", "reason"),
    [
        (b"another", 1, "must be empty, or made with the same model and "),
        (b"model", 2, "must be empty, or made with the same model and `--top`"),
        (None, 1, "must have this script's files only; "),
    ],
    ids=["model", "top", "cut file"],
)
def test_output_of_another_job_is_refused(kit, tmp_path, content, top, reason):
    output = kit.Output(tmp_path, b"model", 1)
    with output.held():
        output.write(["a.png"], [("a.png", "cat", 0.5, ["cat"], [0.5])], [])
    (path,) = output.predictions.iterdir()
    if content is None:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"`output` {reason}"):
        kit.Output(tmp_path, content or b"model", top).read_done()


def test_the_lock_has_hashes_and_no_addresses():
    name = SCRIPT.with_name("requirements.lock")
    locked = entries(name)
    assert len(locked) > 20
    assert all(locked.values())
    assert "://" not in name.read_text()
    names = {package.partition("==")[0] for package in locked}
    assert not names & {"tensorflow", "keras", "keras-resnext"}


def write_parquet(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


@pytest.fixture
def sources(tmp_path, model):
    """Arguments of the tests of errors, by what they stand for."""
    for name in ("photos", "empty", "twice"):
        (tmp_path / name).mkdir()
    (tmp_path / "photos/a.png").write_bytes(PICTURES["PNG"])
    row = {"path": "a", "bytes": PICTURES["PNG"], "number": 1}
    write_parquet(tmp_path / "one.parquet", [row])
    write_parquet(tmp_path / "twice/1.parquet", [row])
    write_parquet(tmp_path / "twice/2.parquet", [row])
    (tmp_path / "text").write_text("This is neither a model nor a picture.")
    return lambda argument: (
        model
        if argument == "model.onnx"
        else tmp_path / argument[1:]
        if argument.startswith("@")
        else argument
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "@photos @out --model no.onnx",
            "`--model` must be an .onnx file; got",
        ),
        ("@photos @out --model @text", "`--model` must be an .onnx file: "),
        ("@no @out", "`source` must be a folder of pictures, or Parquet files"),
        ("@empty @out", "`source` must have pictures or Parquet files; got"),
        ("@text @out", "`source` must have Parquet files; "),
        ("@photos @text", "`output` must be a folder; got "),
        ("@photos @photos/out", "`output` must be outside the source; got"),
        ("@photos @out --top 0", "`--top` must be 1 or more; got 0"),
        ("@photos @out --workers 0", "`--workers` must be 1 or more; got 0"),
        ("@photos @out --part 0", "`--part` must be 1 or more; got 0"),
        ("@one.parquet @out --id no", "`--id` must be a column of "),
        ("@one.parquet @out --bytes no", "`--bytes` must be a column of "),
        ("@one.parquet @out --bytes path", "`--bytes` must be a column of b"),
        ("@twice @out", "`--id` must be a column of unique names; in path, a"),
    ],
)
def test_errors_are_one_line(
    kit, sources, arguments, expected, tmp_path, monkeypatch, capsys
):
    """And come before Ray, which is not installed here."""
    words = arguments.split()
    if "--model" not in words:
        words += ["--model", "model.onnx"]
    monkeypatch.setattr(
        sys, "argv", ["classify.py", *(str(sources(word)) for word in words)]
    )
    with pytest.raises(SystemExit) as stopped:
        kit.main()
    message = stopped.value.code
    assert message.startswith(f"Error: {expected}"), message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr() == ("", "")


def start(*arguments, **options):
    """The script in its own environment and process group."""
    return subprocess.Popen(
        [PYTHON, SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finish(*arguments):
    """The script's output; it must succeed, and say nothing else."""
    process = start(*arguments)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, ""), output
    return output


def kill_once(process, condition):
    """Kill a process and its group as soon as a condition holds."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def read(output):
    """The rows of both tables, lists of dicts."""
    return [
        pq.read_table(output / name).to_pylist()
        for name in ("predictions", "errors")
    ]


def expected(model, contents):
    """What ONNX Runtime answers, one picture after the other."""
    session = onnxruntime.InferenceSession(model.read_bytes())
    return [
        session.run(
            ["probabilities"],
            {"image": TRANSFORM.pixels(content)[None].astype("float32")},
        )[0][0]
        for content in contents
    ]


def check(rows, model, contents):
    """Each row has the answer that its picture gets alone."""
    probabilities = expected(model, contents)
    for row, scores in zip(rows, probabilities, strict=True):
        order = np.argsort(-scores, kind="stable")[:3]
        assert row["labels"] == [LABELS[i] for i in order], row
        # Sums in another order, in batches of another size.
        np.testing.assert_allclose(
            row["probabilities"], scores[order], rtol=1e-5
        )
        assert row["label"] == row["labels"][0]
        assert row["probability"] == row["probabilities"][0]


@contextlib.contextmanager
def temporary_files_of_killed_processes():
    """Delete those of Ray, which are not in `tmp_path`, afterwards."""
    before = {*pathlib.Path("/tmp").glob("ray-*")}
    yield
    for place in {*pathlib.Path("/tmp").glob("ray-*")} - before:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def folder(tmp_path):
    """310 pictures in folders, which take seconds, and what is none."""
    place = tmp_path / "photos"
    kinds = [encode(noise(600, 800, i), compress_level=1) for i in range(10)]
    for i in range(310):
        path = place / f"{i % 7}/picture {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kinds[i % 10] if i % 31 else BAD["text"][0])
    (place / "é.JPG").write_bytes(PICTURES["turned 6"])
    (place / "notes.txt").write_text("not a picture")
    os.mkfifo(place / "pipe.png")
    with contextlib.suppress(OSError):  # of systems where names are text
        (place / os.fsdecode(b"caf\xe9.png")).write_bytes(PICTURES["PNG"])
    return place


@needs_ray
@pytest.mark.integration
def test_each_picture_once_after_a_kill(model, folder, tmp_path):
    output = tmp_path / "classes"
    arguments = [folder, output, "--model", model, "--top", 3, "--part", 10]
    with temporary_files_of_killed_processes():
        kill_once(
            start(*arguments),
            lambda: len([*output.glob("predictions/part-*")]) >= 3,
        )
    done = sum(map(len, read(output)))
    assert 30 <= done < 310
    (folder / "new.png").write_bytes(PICTURES["PNG"])
    assert f"314 pictures: {done} done before" in finish(*arguments)
    rows, errors = read(output)
    rows.sort(key=lambda row: row["path"])
    good = {f"{i % 7}/picture {i}.png" for i in range(310) if i % 31}
    good = sorted(good | {"é.JPG", "new.png"})
    assert [row["path"] for row in rows] == good
    check(rows, model, [(folder / path).read_bytes() for path in good])
    reasons = {row["path"]: row["reason"] for row in errors}
    bad = {f"{i % 7}/picture {i}.png" for i in range(0, 310, 31)}
    assert len(errors) == len(reasons)
    assert {*reasons} == bad | {"pipe.png", "caf\\xe9.png"}
    assert reasons["pipe.png"] == "there is no such file"
    assert reasons["0/picture 0.png"].startswith("unknown format; ")
    assert "314 done before, 0 classified" in finish(*arguments)


@needs_ray
@pytest.mark.slow
def test_parquet_files_where_there_is_no_network(model, tmp_path):
    """As others write them: bytes in a struct, names are numbers."""
    contents = {i: encode(noise(40, 60, i)) for i in range(40)}
    rows = [
        {"image": {"bytes": x, "path": None}, "id": i}
        for i, x in contents.items()
    ]
    rows += [
        {"image": {"bytes": content, "path": None}, "id": 1000 + i}
        for i, (content, _) in enumerate(BAD.values())
    ]
    place = tmp_path / "pictures"
    place.mkdir()
    write_parquet(place / "a.parquet", rows[:20], row_group_size=15)
    write_parquet(place / "b.parquet", rows[20:])
    done = isolated.run(
        *(PYTHON, SCRIPT, place, tmp_path / "out", "--model", model),
        *("--bytes", "image.bytes", "--id", "id", "--part", "8"),
        *("--top", "3"),
    )
    assert (done.status, done.errors) == (0, "")
    assert done.names == []
    # Ray's way to learn this machine's addresses, which sends no packet.
    assert done.unroutable <= 2
    text = done.output
    assert "48 pictures: 0 done before, 40 classified, 8 not readable" in text
    rows, errors = read(tmp_path / "out")
    rows.sort(key=lambda row: int(row["path"]))
    assert [row["path"] for row in rows] == [str(i) for i in contents]
    check(rows, model, contents.values())
    reasons = {int(row["path"]): row["reason"] for row in errors}
    assert len(errors) == 8
    for i, (_, reason) in enumerate(BAD.values(), 1000):
        assert reasons[i].startswith(reason)


@needs_ray
@pytest.mark.slow
def test_a_cluster_by_its_address(model, tmp_path, monkeypatch):
    """One machine that is started as the head of a cluster."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    (tmp_path / "photos").mkdir()
    for i in range(20):
        (tmp_path / f"photos/{i}.png").write_bytes(PICTURES["PNG"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(PYTHON.with_name("ray"), "start", "--head", "--block"),
        *(f"--port={port}", "--num-cpus=2"),
        *("--include-dashboard=false", "--disable-usage-stats"),
    ]
    with temporary_files_of_killed_processes():
        head = subprocess.Popen(
            [*command, f"--temp-dir={tempfile.mkdtemp('', 'ray-', '/tmp')}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for_port(port)
            text = finish(
                *(tmp_path / "photos", tmp_path / "out", "--model", model),
                *("--part", 5, "--address", f"127.0.0.1:{port}"),
            )
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            head.wait()
    assert "20 classified" in text
    assert len(read(tmp_path / "out")[0]) == 20


def wait_for_port(port, timeout_s=120):
    for _ in range(timeout_s):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(1)
    raise TimeoutError(f"nothing listens at {port}")


# All pictures in one process and one loop, with one thread and with two.
PLAIN = """
import importlib.util, itertools, json, pathlib, sys, time

script, model, folder = sys.argv[1:]
spec = importlib.util.spec_from_file_location("classify", script)
kit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kit)
paths = kit.list_pictures(pathlib.Path(folder))
content = pathlib.Path(model).read_bytes()

def readable(opened):
    for path in paths:
        try:
            yield opened.read(pathlib.Path(folder, path))
        except ValueError:
            pass

for threads in (1, 2):
    opened = kit.Model(content, threads)
    pictures, count, start = readable(opened), 0, time.perf_counter()
    while batch := list(itertools.islice(pictures, 32)):
        count += len(opened(batch))
    print(json.dumps([count, time.perf_counter() - start]))
"""


@pytest.fixture(scope="module")
def twenty_thousand(tmp_path_factory):
    """Fashion-MNIST's test images, and the same a pixel to the right."""
    if not shutil.which("apt-get"):
        pytest.skip("needs apt-get")
    place = tmp_path_factory.mktemp("fashion")
    _, (pixels, _) = fashion.read(fashion._download(place))
    contents = {}
    for i, image in enumerate([*pixels, *np.roll(pixels, 1, 2)]):
        content = encode(image)
        contents[f"{i // 1000:02}/{i:05}.png"] = (
            content[: len(content) // 2] if i % 50 == 7 else content
        )
    for name, content in contents.items():
        (place / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "photos" / name).write_bytes(content)
    path = place / "model.onnx"
    to_onnx(Classifier.load("resnext29_8x4d_f64", "fashion_mnist"), path)
    return path, place / "photos", contents


@needs_ray
@pytest.mark.slow
def test_twenty_thousand_pictures(twenty_thousand, tmp_path, capsys):
    """Killed in the middle; then all of them again, beside a plain loop."""
    model, folder, contents = twenty_thousand
    output = tmp_path / "classes"
    arguments = [folder, output, "--model", model, "--top", 3]
    with temporary_files_of_killed_processes():
        kill_once(
            start(*arguments),
            lambda: len([*output.glob("predictions/part-*")]) >= 8,
        )
    done = sum(map(len, read(output)))
    assert 8000 <= done < 20_000
    assert f"20000 pictures: {done} done before" in finish(*arguments)
    rows, errors = read(output)
    bad = {name for name in contents if int(name[3:8]) % 50 == 7}
    assert len(rows) == 19_600
    assert len(errors) == 400
    assert {row["path"] for row in errors} == bad
    assert {row["path"] for row in rows} == {*contents} - bad
    check_in_batches(rows, model, contents)
    text = finish(folder, tmp_path / "again", "--model", model)
    seconds = float(re.search(r" in ([\d.]+) s", text)[1])
    loop = subprocess.run(
        [PYTHON, "-c", PLAIN, SCRIPT, model, folder],
        capture_output=True,
        text=True,
        check=True,
    )
    with capsys.disabled():
        print(f"\nkilled after {done} of 20000 pictures")
        print(f"two workers, with Ray's start: {20_000 / seconds:.0f} a second")
        for threads, line in enumerate(loop.stdout.splitlines(), 1):
            count, seconds = json.loads(line)
            assert count == 19_600
            print(
                f"a plain loop, threads {threads}: {20_000 / seconds:.0f} a "
                "second"
            )


def check_in_batches(rows, model, contents):
    """The answers are those of ONNX Runtime, called directly."""
    session = onnxruntime.InferenceSession(model.read_bytes())
    properties = session.get_modelmeta().custom_metadata_map
    labels = json.loads(properties["labels"])
    transform = EvalTransform.from_config(json.loads(properties["transform"]))
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        images = [transform.pixels(contents[row["path"]]) for row in part]
        feed = {"image": np.stack(images).astype("float32")}
        (scores,) = session.run(["probabilities"], feed)
        for row, probabilities in zip(part, scores, strict=True):
            order = np.argsort(-probabilities, kind="stable")[:3]
            np.testing.assert_allclose(
                row["probabilities"], probabilities[order], atol=1e-6
            )
            if row["label"] != labels[order[0]]:  # two are as probable
                assert probabilities[order[0]] - probabilities[order[1]] < 1e-6
