"""The page of export/web in Chromium.

It needs Node.js, `make web-modules` and a Chromium on the PATH; without them
these tests are skipped.
"""

import contextlib
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.transforms import EvalTransform
from tests.browser import MODULES
from tests.browser import open_browser
from tests.test_web import SAMPLES
from tests.test_web import WEB
from tests.test_web import add_model
from tests.test_web import photograph
from tests.test_web import served

pytestmark = pytest.mark.integration

BY = " \N{MULTIPLICATION SIGN} "


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def demo():
    """The classifier of the page's demo."""
    return Classifier.load(*add_model.DEMO)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What add_model.py writes for the demo, as `make web` runs it."""
    folder = tmp_path_factory.mktemp("demo")
    for name in ("add_model.py", "samples"):
        (folder / name).symlink_to(WEB / name)
    done = subprocess.run(
        [sys.executable, folder / "add_model.py"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert "resnext29_8x4d_f64 fashion_mnist, " in line
    assert line.endswith("28x28 pixels, 10 classes.")
    return folder / "model"


def make_site(folder, model):
    """A copy of the page, by links, with a copy of a model's folder."""
    folder.mkdir()
    for path in WEB.iterdir():
        if path.name != "model":
            (folder / path.name).symlink_to(path)
    shutil.copytree(model, folder / "model")
    return folder


@pytest.fixture(scope="module")
def site(model, tmp_path_factory):
    """The address of the page with the demo."""
    folder = tmp_path_factory.mktemp("site") / "page"
    with served(make_site(folder, model)) as address:
        yield address


@pytest.fixture
def serve_changed(model, tmp_path):
    """A function that serves a copy of the page that another one changed."""
    with contextlib.ExitStack() as stack:

        def serve_page(change):
            folder = make_site(tmp_path / "page", model)
            change(folder)
            return stack.enter_context(served(folder))

        yield serve_page


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of many kinds, by name."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("pictures")
    files = {path.stem: path for path in SAMPLES}
    flower = Image.fromarray(load_sample_images().images[1])
    random = np.random.default_rng(0)
    alpha = Image.fromarray(random.integers(0, 256, (40, 60, 4)).astype("u1"))
    deep = random.integers(0, 256, (40, 60)).astype("uint16") * 257
    kinds = {
        "photo.png": flower,
        "wide.png": flower.crop((0, 0, 640, 3)),
        "tall.png": flower.crop((0, 0, 2, 427)),
        "grey.png": flower.convert("L"),
        "black.png": flower.convert("1"),
        "palette.png": flower.quantize(50),
        "transparent.png": alpha,
        "grey-alpha.png": alpha.convert("LA"),
        "deep.png": Image.fromarray(deep),
        "photo.bmp": flower,
        "photo.gif": flower.quantize(50),
        "lossless.webp": flower,
        "transparent.webp": alpha,
        "photo.jpg": flower,
    }
    for name, image in kinds.items():
        options = {"lossless": True, "exact": True} if "webp" in name else {}
        image.save(folder / name, **options)
        files[name] = folder / name
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("jpg", "png"):
            name = f"turned-{orientation}.{kind}"
            flower.resize((64, 40)).save(folder / name, exif=exif, quality=95)
            files[name] = folder / name
    return files


def difference_from(classifier, answer, path):
    """How far an answer's probabilities are from those of Python at most."""
    assert "error" not in answer, answer["error"]
    (expected,) = classifier.predict(path)
    found = np.array(answer["probabilities"])
    assert np.argmax(found) == np.argmax(expected.probabilities)
    return np.abs(found - expected.probabilities).max()


def test_answers_are_those_of_python(browser, site, demo, pictures):
    """In WebAssembly with two threads."""
    browser.share(site)
    assert browser.ready() == "Ready, on WebAssembly, 2 threads."
    names = [path.stem for path in SAMPLES]
    differences = []
    for name in (*names, "photo.png", "photo.jpg", "turned-6.jpg"):
        answer = browser("choose", path=pictures[name])
        assert (answer["backend"], answer["threads"]) == ("wasm", 2)
        assert answer["labels"] == demo.labels
        differences.append(difference_from(demo, answer, pictures[name]))
    print(f"2 threads: at most {max(differences):.1e}")
    assert max(differences) <= 1e-4


def test_pixels_are_those_of_python(browser, site, demo, pictures):
    """Of all kinds of files, upright, without their transparency."""
    browser.share(site)
    for name, path in pictures.items():
        answer = browser("choose", path=path)
        assert "error" not in answer, (name, answer)
        seen = np.reshape(answer["pixels"], (28, 28, 3))
        difference = np.abs(seen - demo.transform.pixels(path).astype(int))
        # Of 16 bits, Chromium rounds where Pillow keeps the upper eight.
        assert difference.max() <= (name == "deep.png"), name


def test_a_photograph_of_40_megapixels(browser, site, demo, tmp_path):
    path = tmp_path / "large.png"
    tile = photograph(550, 730, seed=3)
    Image.fromarray(np.tile(tile, (10, 10, 1))).save(path, compress_level=1)
    browser.share(site)
    answer = browser("choose", path=path)
    assert difference_from(demo, answer, path) <= 1e-4
    assert f"7300{BY}5500 pixels" in browser.text("time")
    print(f"40 megapixels: {browser.text('time')}")


def png_of(width, height):
    """A PNG file that says it has this size, and has no pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_files_that_are_refused(browser, site, tmp_path):
    """Each with a message, after which the next picture is answered."""
    files = {
        "notes.txt": (b"Not a picture.", "is not a picture that this page"),
        "empty.png": (b"", "is not a picture that this page reads"),
        "page.png": (b"<svg></svg>", "is not a picture that this page reads"),
        "huge.png": (
            png_of(20_000, 20_000),
            f"huge.png has 20,000{BY}20,000 pixels, more than the 100 million",
        ),
        "cut.png": (
            SAMPLES[0].read_bytes()[:100],
            "cut.png cannot be decoded: it is damaged",
        ),
    }
    browser.share(site)
    for name, (content, expected) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        answer = browser("choose", path=path)
        assert expected in answer["error"]
        assert not browser.page("isVisible", "#result")
        assert not browser.page("isVisible", "#preview")
        assert "probabilities" in browser("choose", path=SAMPLES[0])
        assert browser.text("error") == ""
        assert browser.page("isVisible", "#result")


def test_drop_and_paste(browser, site):
    browser.share(site)
    content = list(SAMPLES[0].read_bytes())
    send = """(type, bytes) => {
      const data = new DataTransfer();
      if (bytes) {
        data.items.add(new File([new Uint8Array(bytes)], `${type}.png`));
      } else {
        data.setData("text/plain", "only text");
      }
      const [Kind, field] = {
        drop: [DragEvent, "dataTransfer"],
        paste: [ClipboardEvent, "clipboardData"],
      }[type];
      const event = new Kind(type, { [field]: data, bubbles: true });
      document.getElementById("stage").dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        with browser.one_answer() as answer:
            browser.evaluate(send, kind, content)
        assert answer()["name"] == f"{kind}.png"
        browser.evaluate(send, kind, None)
        assert browser.text("error").startswith("That is no picture file.")
        assert browser.page("isVisible", "#result")


def test_the_keyboard_reaches_everything(browser, site):
    browser.share(site)
    browser.page("focus", "#file")
    what = "({ id, firstChild }) => id || firstChild.alt"
    reached = []
    for _ in range(3 + len(SAMPLES)):
        browser("key", keys="Tab")
        reached.append(browser.evaluate(f"({what})(document.activeElement)"))
    names = [path.stem.replace("-", " ").capitalize() for path in SAMPLES]
    samples = [f"Sample: {name}" for name in names]
    assert reached == ["camera", *samples, "backend", "threads"]
    browser.page("focus", "#samples li:nth-child(2) button")
    with browser.one_answer() as answer:
        browser("key", keys="Enter")
    assert answer()["name"] == "Bag"
    assert browser.text("spoken").startswith("Bag: Bag, ")


def test_the_self_check_is_repeated(browser, site):
    browser.share(site)
    with browser.one_answer():  # of a new worker
        browser("choose", path=SAMPLES[0])
        browser.page("selectOption", "#threads", "1")
    assert browser.ready() == "Ready, on WebAssembly, 1 thread."
    assert browser.text("fact-self-check").startswith("passed at the start")
    for _ in range(9):
        browser("choose", path=SAMPLES[0])
    text = browser.wait_for("fact-self-check", "again after 10 pictures")
    found = re.fullmatch(
        r"passed again after 10 pictures: logits within (\S+) of Keras'; "
        r"(\S+) is allowed",
        text,
    )
    assert 0 < float(found[1]) < float(found[2]) / 10
    print(f"self-check: {text}")


def test_one_thread(browser, site, demo, pictures):
    browser.share(site)
    browser.page("selectOption", "#threads", "1")
    assert browser.wait_for("state", "Ready, on WebAssembly, 1 thread.")
    differences = []
    for name in (*(path.stem for path in SAMPLES), "photo.png"):
        answer = browser("choose", path=pictures[name])
        assert (answer["backend"], answer["threads"]) == ("wasm", 1)
        differences.append(difference_from(demo, answer, pictures[name]))
    print(f"1 thread: at most {max(differences):.1e}")
    assert max(differences) <= 1e-4


def test_accessibility(browser, site, pictures, tmp_path):
    """axe-core finds nothing, and nothing is wider than a narrow window."""
    (tmp_path / "notes.txt").write_text("Not a picture.")
    browser.share(site)
    for theme in ("light", "dark"):
        browser.page("emulateMedia", {"colorScheme": theme})
        for width in (1100, 360):
            browser.page("setViewportSize", {"width": width, "height": 900})
            for path in (pictures["photo.png"], tmp_path / "notes.txt"):
                browser("choose", path=path)
                assert browser("axe") == []
                overflow = "document.documentElement.scrollWidth - innerWidth"
                assert browser.evaluate(overflow) <= 0
    browser.page("setViewportSize", {"width": 1100, "height": 900})
    image = "document.querySelector('#samples img')"
    browser.evaluate(f"{image}.removeAttribute('alt')")
    assert "button-name" in str(browser("axe"))
    browser.evaluate(f"{image}.alt = 'Sample: Ankle boot'")


def test_a_camera_that_is_refused_and_one_that_is_not(browser, site):
    browser.share(site)
    browser.page("click", "#camera")
    assert browser.wait_for("error", "camera").startswith(
        "The camera was not allowed. Allow it for this page"
    )
    assert browser.text("camera") == "Use the camera"
    browser("grant", permission="camera")
    browser.page("click", "#camera")
    browser.until("document.getElementById('video').videoWidth")
    assert browser.text("camera") == "Close the camera"
    assert browser.text("error") == ""
    assert browser("axe") == []
    with browser.one_answer() as answer:
        browser.page("click", "#shoot")
    assert answer()["name"] == "The camera's picture"
    assert not browser.page("isVisible", "#video")
    assert (
        browser.evaluate("document.getElementById('video').srcObject") is None
    )


def test_nothing_leaves_the_page(browser, site):
    """Of all that the tests before made Chromium ask for, and what it may."""
    browser.share(site)
    browser("choose", path=SAMPLES[0])
    log = browser("log")
    assert any(url.endswith("model.onnx") for url in log["requests"])
    assert all(url.startswith(site) for url in without_blobs(log, site))
    assert log["problems"] == []
    with served(WEB) as elsewhere:
        tried = browser.evaluate(
            "(url) => fetch(url, {mode: 'no-cors'}).catch((e) => e.message)",
            f"{elsewhere}style.css",
        )
    assert tried == "Failed to fetch"
    assert "Content Security Policy" in str(browser("log")["problems"])


def without_blobs(log, site):
    """The addresses that were asked for, but for pictures in the page."""
    blob = f"blob:{site}"
    return [url for url in log["requests"] if not url.startswith(blob)]


@pytest.mark.slow
def test_webgpu(browser, site, demo, pictures):
    """On a GPU that is computed by the processor; not chosen by itself."""
    browser("open", url=site)
    assert browser.ready() == "Ready, on WebAssembly, 2 threads."
    browser.page("selectOption", "#backend", "webgpu")
    browser.until(
        "document.getElementById('state').textContent === 'Ready, on WebGPU.'"
    )
    print(f"self-check on WebGPU: {browser.text('fact-self-check')}")
    differences = []
    for name in ("ankle-boot", "photo.png"):
        answer = browser("choose", path=pictures[name])
        assert answer["backend"] == "webgpu"
        differences.append(difference_from(demo, answer, pictures[name]))
    print(f"WebGPU: at most {max(differences):.1e}")
    assert max(differences) <= 1e-4
    log = browser("log")
    assert any("ort.webgpu" in url for url in log["requests"])
    assert all(url.startswith(site) for url in without_blobs(log, site))
    assert log["problems"] == []


def test_a_browser_without_webgpu(browser, site):
    script = "Object.defineProperty(navigator, 'gpu', { value: undefined });"
    browser("open", url=site, script=script)
    browser.wait_for("facts", "model.onnx")
    assert browser.text("notice") == ""
    browser.page("selectOption", "#backend", "webgpu")
    browser.wait_for("notice", "This browser has no WebGPU here")
    assert browser.ready().startswith("Ready, on WebAssembly")


def change_bytes(folder):
    """Damage a model's file where no size changes."""
    path = folder / "model/model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_manifest(change):
    """A function that changes what stands in a folder's `model.json`."""

    def changed(folder):
        path = folder / "model/model.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return changed


def claim_another_logit(manifest):
    manifest["check"]["logits"][1][3] += 0.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_bytes, "The model file model.onnx is damaged, or of another"),
        (
            change_manifest(claim_another_logit),
            "WebAssembly, 2 threads does not compute what Keras computed: "
            "logits of the golden pictures differ by 0.5, and 0.004 is allowed",
        ),
        (
            lambda folder: (folder / "model/model.onnx").unlink(),
            "The model file model.onnx cannot be fetched: status 404",
        ),
        (
            lambda folder: (folder / "model/model.onnx").write_bytes(
                b"x" * 9**7
            ),
            "The model file model.onnx cannot be fetched: it has more than",
        ),
        (
            lambda folder: shutil.rmtree(folder / "model"),
            "There is no model here yet.",
        ),
        (
            lambda folder: (folder / "model/model.json").write_text("{"),
            "model/model.json is not one that this page reads.",
        ),
    ],
    ids=["damaged", "golden", "none", "long", "no folder", "no manifest"],
)
def test_a_model_that_cannot_be_trusted(
    browser, serve_changed, change, expected
):
    """The page says why it does not answer, and does not answer."""
    browser("open", url=serve_changed(change))
    assert browser.wait_for("notice", expected).startswith(expected)
    browser.page("setInputFiles", "#file", str(SAMPLES[0]))
    browser.page("waitForTimeout", 300)
    assert not browser.page("isVisible", "#result")
    assert browser.evaluate("answers.length") == 0


# What runs the model is right for a while, as some GPUs were reported to be.
WRONG_LATER = """
import * as ort from "./ort.wasm.min.mjs";
export const { env, Tensor } = ort;
let runs = 0;
export const InferenceSession = {
  async create(bytes) {
    const session = await ort.InferenceSession.create(bytes);
    return {
      async run(feeds) {
        const outputs = await session.run(feeds);
        runs += 1;
        if (runs > LAST) outputs.probabilities.data.reverse();
        return outputs;
      },
    };
  },
};
"""
# As if it were no software's.
REAL_GPU = """
Object.defineProperty(navigator, "gpu", {
  value: { requestAdapter: async () => ({ info: {} }) },
});
"""


def wrong_after(runs):
    """A function that gives a page a WebGPU that is wrong after some runs."""

    def change(folder):
        (folder / "node_modules").unlink()
        dist = folder / "node_modules/onnxruntime-web/dist"
        dist.mkdir(parents=True)
        for path in (MODULES / "onnxruntime-web/dist").glob("ort*wasm*"):
            (dist / path.name).symlink_to(path)
        script = WRONG_LATER.replace("LAST", str(runs))
        (dist / "ort.webgpu.min.mjs").write_text(script)

    return change


def test_a_gpu_that_is_wrong_at_once(browser, serve_changed, demo):
    browser("open", url=serve_changed(wrong_after(0)), script=REAL_GPU)
    assert browser.ready().startswith("Ready, on WebAssembly")
    notice = browser.text("notice")
    assert notice.startswith("WebGPU does not compute what Keras computed")
    assert notice.endswith("The model runs on WebAssembly, 2 threads now.")
    answer = browser("choose", path=SAMPLES[0])
    assert difference_from(demo, answer, SAMPLES[0]) <= 1e-4


def test_a_gpu_that_is_wrong_later(browser, serve_changed, demo):
    """Two golden pictures at first, then ten others, the last seven wrong."""
    browser("open", url=serve_changed(wrong_after(5)), script=REAL_GPU)
    assert browser.ready() == "Ready, on WebGPU."
    assert browser.text("fact-self-check").startswith("passed at the start")
    answers = [browser("choose", path=SAMPLES[0]) for _ in range(10)]
    assert {answer["backend"] for answer in answers} == {"webgpu"}
    notice = browser.wait_for("notice", "WebGPU does not compute")
    assert "Answers since the last check may have been wrong." in notice
    browser.until("answers.length === 11")
    last = browser.evaluate("answers.at(-1)")
    assert last["backend"] == "wasm"
    assert difference_from(demo, last, SAMPLES[0]) <= 1e-4


def test_it_works_without_a_connection(browser, model, demo, tmp_path):
    """After one visit: the page, the runtime and the model are kept."""
    with served(make_site(tmp_path / "page", model)) as address:
        browser("open", url=address)
        browser.ready()
        browser("choose", path=SAMPLES[0])
        assert f"{address}model/model.onnx" in browser("log")["requests"]
    browser.page("reload")
    assert browser.ready() == "Ready, on WebAssembly, 2 threads."
    answer = browser("choose", path=SAMPLES[1])
    assert difference_from(demo, answer, SAMPLES[1]) <= 1e-4
    with browser.one_answer() as answer:
        browser.page("click", "#samples button")
    assert answer()["name"] == "Ankle boot"


def test_a_server_without_headers(browser, serve_changed, demo):
    """One thread, and the page's own policy."""

    def change(folder):
        (folder / "_headers").unlink()
        (folder / "_headers").touch()

    browser("open", url=serve_changed(change))
    assert browser.ready() == "Ready, on WebAssembly, 1 thread."
    answer = browser("choose", path=SAMPLES[0])
    assert difference_from(demo, answer, SAMPLES[0]) <= 1e-4
    assert browser.evaluate("crossOriginIsolated") is False
    browser.evaluate("fetch('http://localhost:9').catch(() => 0)")
    assert "Content Security Policy" in str(browser("log")["problems"])


def test_progress_and_names_of_classes(browser, serve_changed, model):
    """Bytes while the model loads; names are text, whatever is in them."""
    name = "<img src=x onerror=alert(1)>"
    script = """addEventListener("DOMContentLoaded", () => {
      window.texts = [];
      const bytes = document.getElementById("bytes");
      new MutationObserver(() => texts.push(bytes.textContent))
        .observe(bytes, { childList: true });
    })"""
    change = change_manifest(lambda m: m.update(labels=[name] * 10))
    browser("open", url=serve_changed(change), script=script)
    browser.ready()
    size = f"{(model / 'model.onnx').stat().st_size / 1e6:.2f}"
    texts = browser.evaluate("texts")
    assert texts[0] == f"0.00 of {size} MB"
    assert f"{size} of {size} MB" in texts
    browser("choose", path=SAMPLES[0])
    assert browser.text("bars").startswith(name)
    assert browser.evaluate("document.querySelector('#bars img')") is None
    assert browser("log")["problems"] == []


def test_a_model_of_ones_own(browser, tmp_path, pictures):
    """Another size, crop and filter, and no names of classes."""
    keras.utils.set_random_seed(1)
    model = keras_resnext.ResNeXt(
        (1, 1, 1), 4, 4, stem="cifar", input_shape=(32, 32, 3), classes=7
    )
    transform = EvalTransform.from_crop_pct(32, 0.875, interpolation="bicubic")
    classifier = Classifier(model, None, transform)
    photo = tmp_path / "my photo #1.png"
    shutil.copyfile(pictures["photo.png"], photo)
    own = tmp_path / "model"
    manifest = add_model.write_model(
        classifier, own, name="mine", samples=[photo]
    )
    content = (own / "model.onnx").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    with served(make_site(tmp_path / "page", own)) as address:
        browser("open", url=address)
        browser.ready()
        assert "mine" in browser.text("facts")
        for name in ("photo.png", "tall.png", "wide.png", "turned-5.jpg"):
            answer = browser("choose", path=pictures[name])
            path = pictures[name]
            assert difference_from(classifier, answer, path) <= 1e-4, name
            assert answer["labels"] == [f"class {i}" for i in range(7)]
        with browser.one_answer() as answer:
            browser.page("click", "#samples button")
        assert answer()["name"] == "My photo #1"
        assert difference_from(classifier, answer(), photo) <= 1e-4
