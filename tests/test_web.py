"""The page of export/web without a browser: arithmetic, server, model."""

import contextlib
import http.client
import importlib.util
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading

import keras
import numpy as np
import PIL
import pytest
from PIL import Image

from keras_resnext.transforms import EvalTransform

WEB = pathlib.Path(__file__).parents[1] / "export/web"
NODE = shutil.which("node")
SAMPLES = sorted((WEB / "samples").glob("*.png"))

needs_node = pytest.mark.skipif(NODE is None, reason="there is no node")

# Reads a line of JSON, a list of arguments for each call of one function of a
# module, and prints the results.
CALL = """
const [module, name] = process.argv.slice(1);
const { [name]: f } = await import(module);
const { default: fs } = await import("node:fs");
const plain = (_, x) => (ArrayBuffer.isView(x) ? Array.from(x) : x);
const calls = JSON.parse(fs.readFileSync(0, "utf-8"));
console.log(JSON.stringify(calls.map((given) => f(...given)), plain));
"""
RESIZE = """
import { Resizer } from "RESAMPLE";
export function resize(path, width, height, transform, strip) {
  const rgba = fs.readFileSync(path);
  const resizer = new Resizer(width, height, transform);
  for (let y = resizer.top; y < resizer.bottom; y += strip) {
    const stop = Math.min(y + strip, resizer.bottom);
    const rows = rgba.subarray(4 * width * y, 4 * width * stop);
    resizer.add(rows, y);
  }
  return resizer.finish();
}
import fs from "node:fs";
"""
HEAD = """
import { readHeader } from "HEADER";
import fs from "node:fs";
export const read = (path) =>
  readHeader(new Uint8Array(fs.readFileSync(path)));
"""


def load(name):
    """A script of the page's folder as a module."""
    spec = importlib.util.spec_from_file_location(name, WEB / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


serve = load("serve")
add_model = load("add_model")


def javascript(module, name, calls):
    """What a function of a module returns for each list of arguments."""
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", CALL, module, name],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def photograph(height, width, seed=0):
    """Smooth colours and noise, uint8 `(height, width, 3)`."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 1, width) * np.linspace(1, 0.2, height)[:, None]
    noise = random.integers(0, 56, (height, width, 3))
    return (slope[..., None] * [200, 120, 60] + noise).astype("uint8")


@needs_node
def test_pixels_are_those_of_the_package(tmp_path):
    """Both filters, enlarged and reduced, wide, narrow, and cropped."""
    module = tmp_path / "resize.mjs"
    module.write_text(RESIZE.replace("RESAMPLE", str(WEB / "resample.js")))
    shapes = [(70, 110), (301, 97), (32, 32), (20, 31), (9, 5), (1, 1)]
    shapes += [
        (33, 32),
        (3, 700),
        (1300, 2),
        (480, 640),
        (200, 100),
        (201, 100),
    ]
    calls, expected = [], []
    for number, shape in enumerate(shapes):
        pixels = photograph(*shape)
        path = tmp_path / f"{number}.rgba"
        Image.fromarray(pixels).convert("RGBA").save(path, "PNG")
        path.write_bytes(Image.open(path).tobytes())
        for interpolation in ("bilinear", "bicubic"):
            for resize_size in (32, 37):
                transform = EvalTransform(
                    image_size=32,
                    resize_size=resize_size,
                    interpolation=interpolation,
                )
                height, width = shape
                config = transform.to_config()
                calls.append([str(path), width, height, config, 1 + number])
                expected.append(transform.pixels(pixels))
    found = javascript(str(module), "resize", calls)
    for call, one, other in zip(calls, found, expected, strict=True):
        difference = np.reshape(one, (32, 32, 3)).astype(int) - other
        # Before Pillow 13, the passes of tall pictures had another order.
        is_older = int(PIL.__version__.partition(".")[0]) < 13
        allowed = int(is_older and call[2] > 2 * call[1])
        assert np.abs(difference).max() <= allowed, call


@needs_node
def test_headers_say_the_size_before_anything_is_decoded(tmp_path):
    module = tmp_path / "head.mjs"
    module.write_text(HEAD.replace("HEADER", str(WEB / "header.js")))
    image = Image.fromarray(photograph(37, 53))
    clear = image.convert("RGBA")
    clear.putalpha(7)
    exif = Image.Exif()
    exif[0x010E] = "x" * 5000
    files = {
        "p.png": (image, {}),
        "j.jpg": (image, {}),
        "progressive.jpg": (image, {"progressive": True, "exif": exif}),
        "g.gif": (image, {}),
        "b.bmp": (image, {}),
        "lossy.webp": (image, {}),
        "lossless.webp": (image, {"lossless": True}),
        "alpha.webp": (clear, {"exif": exif}),
    }
    for name, (picture, options) in files.items():
        picture.save(tmp_path / name, **options)
    cut = {
        "cut.png": ((tmp_path / "p.png").read_bytes()[:20], "PNG"),
        "cut.jpg": ((tmp_path / "j.jpg").read_bytes()[:30], "JPEG"),
    }
    (tmp_path / "note.txt").write_text("Not a picture.")
    (tmp_path / "empty").write_bytes(b"")
    for name, (content, _) in cut.items():
        (tmp_path / name).write_bytes(content)
    names = [*files, *cut, "note.txt", "empty"]
    found = javascript(
        str(module), "read", [[str(tmp_path / name)] for name in names]
    )
    for name, header in zip(names, found, strict=True):
        if name in files:
            assert (header["width"], header["height"]) == (53, 37), name
        elif name in cut:
            assert header == {"kind": cut[name][1], "width": 0, "height": 0}
        else:
            assert header is None, name


@needs_node
def test_golden_pictures_are_the_same_in_both_languages():
    numbers = range(len(add_model.STEPS))
    calls = [[n, size] for size in (28, 33, 100) for n in numbers]
    found = javascript(str(WEB / "golden.js"), "drawGolden", calls)
    for call, pixels in zip(calls, found, strict=True):
        expected = add_model.golden_picture(*call)
        np.testing.assert_array_equal(pixels, expected.ravel())
        assert len(np.unique(expected)) > 20
    assert found[0] != found[1]


@needs_node
def test_logits_are_the_same_in_both_languages():
    probabilities = [0.75, 0.25, 1e-20, 0.0]
    (found,) = javascript(str(WEB / "golden.js"), "toLogits", [[probabilities]])
    check = add_model.golden_check([probabilities])
    np.testing.assert_allclose(found, check["logits"][0], atol=1e-6)
    assert check["tolerance"] == pytest.approx(1e-3 * np.abs(found).max())


def test_the_page_says_the_policy_that_its_server_sends():
    headers = dict(serve.read_headers(WEB))
    policy = headers["Content-Security-Policy"]
    page = (WEB / "index.html").read_text()
    (written,) = re.findall('Security-Policy" content="([^"]+)"', page)
    # In a page itself, browsers ignore who may frame it.
    assert policy == f"{written}; frame-ancestors 'none'"
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert "connect-src 'self'" in policy
    assert not re.findall(r"\bstyle=|\bon\w+=|https?://", page)


def test_what_npm_installs_is_locked_with_hashes():
    package = json.loads((WEB / "package.json").read_text())
    lock = json.loads((WEB / "package-lock.json").read_text())
    wanted = package["dependencies"] | package["devDependencies"]
    entries = {
        path.removeprefix("node_modules/"): entry
        for path, entry in lock["packages"].items()
        if path
    }
    assert len(entries) > len(wanted)
    for name, entry in entries.items():
        assert entry["integrity"].startswith("sha512-"), name
        assert "resolved" not in entry, name
        assert entry["version"] == wanted.get(name, entry["version"]), name


@contextlib.contextmanager
def served(folder):
    """The address of the kit's server for a folder."""
    with serve.make_server(folder) as server:
        accepted, accept = [], server.get_request

        def get_request():
            accepted.append(accept())
            return accepted[-1]

        server.get_request = get_request
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://localhost:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
            # Browsers keep connections, which threads of their own serve.
            for connection, _ in accepted:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def get(address, path):
    """Status, headers and body of what a server answers."""
    host = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_the_server_sends_types_and_headers_and_hides_the_rest(tmp_path):
    folder = tmp_path / "page"
    (folder / "model").mkdir(parents=True)
    (folder / ".cache").mkdir()
    shutil.copyfile(WEB / "_headers", folder / "_headers")
    types = {
        "index.html": "text/html; charset=utf-8",
        "app.js": "text/javascript; charset=utf-8",
        "ort.mjs": "text/javascript; charset=utf-8",
        "ort.wasm": "application/wasm",
        "model/model.onnx": "application/octet-stream",
        "unknown.xyz": "application/octet-stream",
    }
    for name in (*types, ".npmrc", ".cache/x.js", "../secret.txt"):
        (folder / name).write_text("content")
    with served(folder) as address:
        for name, kind in types.items():
            status, headers, body = get(address, f"/{name}")
            assert (status, body) == (200, b"content"), name
            assert headers["Content-Type"] == kind
            for name, value in serve.read_headers(WEB):
                assert headers[name] == value
        assert get(address, "/")[0] == 200
        for path in (
            *("/.npmrc", "/.cache/x.js", "/model/", "/none.js"),
            *("/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd"),
        ):
            status, headers, body = get(address, path)
            assert status == 404, path
            assert "Content-Security-Policy" in headers
            assert b"content" not in body


def test_the_server_refuses_what_cannot_work(tmp_path, monkeypatch, capsys):
    def fails(*arguments):
        monkeypatch.setattr(sys, "argv", ["serve.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            serve.main()
        return stopped.value.code

    monkeypatch.setattr(serve, "FOLDER", tmp_path)
    shutil.copyfile(WEB / "_headers", tmp_path / "_headers")
    assert "has no node_modules/onnxruntime-web" in fails()
    runtime = tmp_path / "node_modules/onnxruntime-web/dist/ort.wasm.min.mjs"
    runtime.parent.mkdir(parents=True)
    runtime.touch()
    assert "run `python add_model.py` there" in fails()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.json").touch()
    assert fails("--port", "65536") == (
        "Error: `--port` must be from 0 to 65535; got 65536."
    )
    with served(tmp_path) as address:
        port = address.rstrip("/").rpartition(":")[2]
        assert fails("--port", port) == (
            "Error: `--host` and `--port` must be free to listen on; "
            f"localhost:{port}: Address already in use."
        )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--weights", "imagenet"], "`--weights` must come with a model's"),
        (["none.keras"], "`source` must be the folder of a training run"),
        (["resnext5"], "resnext5"),
        (["logits.keras"], "`model` must end in class probabilities"),
    ],
    ids=["weights alone", "no file", "no name", "logits"],
)
def test_errors_of_adding_a_model_are_one_line(
    arguments, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(add_model, "FOLDER", tmp_path)
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save("logits.keras")
    monkeypatch.setattr(sys, "argv", ["add_model.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        add_model.main()
    (line,) = stopped.value.code.splitlines()
    assert line.startswith("Error: ")
    assert expected in line
    assert not (tmp_path / "model").exists()


def test_samples_are_copied_if_they_are_pictures(tmp_path):
    transform = EvalTransform(image_size=8, resize_size=8)
    note = tmp_path / "note.txt"
    note.write_text("Not a picture.")
    with pytest.raises(ValueError, match="`source` must be an image file"):
        add_model.copy_samples([note], tmp_path / "a", transform)
    with pytest.raises(ValueError, match="must have different names; got x.p"):
        add_model.copy_samples(
            [pathlib.Path("a/x.png"), pathlib.Path("b/x.png")],
            tmp_path / "b",
            transform,
        )
    shutil.copyfile(SAMPLES[0], tmp_path / "red_shoe #1.png")
    assert add_model.copy_samples(
        [tmp_path / "red_shoe #1.png"], tmp_path / "c", transform
    ) == [{"file": "model/samples/red_shoe%20%231.png", "text": "Red shoe #1"}]
    assert (tmp_path / "c/red_shoe #1.png").is_file()
