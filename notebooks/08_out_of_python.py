# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Out of Python
#
# A trained network is of use where its pictures are: on a phone, in a browser,
# on a server. None of these runs Keras. This notebook turns a network into
# files for other runtimes, shows how to know that they compute the same, makes
# them four times smaller, and opens them in a process that can import neither
# TensorFlow nor Keras.
#
# It needs `pip install '.[notebooks]'` in a clone, and Fashion-MNIST, which
# `make fashion` prepares. Nothing is trained, and nothing is downloaded.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import runpy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import PIL.Image
from IPython.display import Image

import keras_resnext
from keras_resnext.export import ExportError
from keras_resnext.export import Session
from keras_resnext.export import export_files
from keras_resnext.export import plan_files
from keras_resnext.export import to_onnx
from keras_resnext.export import to_tflite
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.datasets import read_images

folder = Path(tempfile.mkdtemp(prefix="resnext-out-"))

# %% [markdown]
# ## A network and some pictures
#
# The package comes with a small network for Fashion-MNIST: 28x28 pictures of
# clothes in ten classes. We take two sets of pictures. Those of the test split
# are for comparing a file with Keras. Those of the training split will be
# needed later, to choose the ranges of eight-bit numbers. They must not be the
# same: ranges chosen on the pictures they are judged by look better than they
# are.

# %%
classifier = keras_resnext.Classifier.load(
    "resnext29_8x4d_f64", "fashion_mnist"
)
clothes = open_dataset("fashion_mnist")
clothes.prepare()
images, classes = read_images(clothes, "test", classifier.transform, count=300)
calibration, _ = read_images(
    clothes, "train", classifier.transform, count=100, shuffle_seed=0
)

inputs = classifier.transform.normalize(images)
expected = classifier.model.predict(inputs, verbose=0)
keras_top = expected.argmax(axis=-1)
accuracy = np.mean(keras_top == classes)
print(f"Keras: accuracy {accuracy:.4f} on {len(images)} images")
assert images.min() >= 0
assert images.max() <= 255

# %% [markdown]
# ## A file that is verified
#
# Two formats cover most places. **TFLite** is for phones and small boards; its
# runtime is called LiteRT. **ONNX** is for servers, desktops and browsers; its
# runtime is ONNX Runtime. A converter translates the network into operations of
# the format, and many things can go wrong on the way without an error: pixels
# are normalised twice or not at all, a padding is off by one, an operation
# means something else.
#
# That is why an exporter of this package opens the new file in the file's own
# runtime, runs pictures through it, and compares the answers with those of
# Keras. It compares *logits*, the values before the softmax, because the
# softmax hides how wrong an unlikely class is.
#
# A `Session` shares what several files of one model have in common, such as the
# answers of Keras.

# %%
session = Session(classifier, images=images)
artifacts = {
    "tflite": to_tflite(session, folder / "model.tflite"),
    "onnx": to_onnx(session, folder / "model.onnx"),
}


def describe(artifact):
    agreement = artifact.agreement
    name = " ".join(filter(None, [artifact.format, artifact.quantize]))
    return (
        f"{name:15} {artifact.size / 1e6:.2f} MB, "
        f"logit difference {agreement.max_logit_difference:.2g} at most, "
        f"same class {agreement.top1_agreement:.2%}"
    )


for artifact in artifacts.values():
    print(describe(artifact))
    assert artifact.agreement.relative_difference <= 1e-4
    assert artifact.agreement.top1_agreement == 1
print(artifacts["onnx"].input)

# %% [markdown]
# What is left is rounding. A float32 number has 24 bits, one part in sixteen
# million. The sums inside a network have thousands of terms, and the file adds
# them in another order and with the batch normalisation folded into the
# convolutions. That may cost some ten bits of the 24, hence the limit: a logit
# may be off by one part in 10,000 of the largest.
#
# The last line says what the file takes: plain RGB pixels in [0, 255]. The
# normalisation is part of the file. Whoever uses it needs no constants, and
# must not normalise.

# %% [markdown]
# ### A file that disagrees is not written
#
# A check that has never failed is hard to trust, so here is a mistake that is
# easily made. Quantisation, which the next section explains, takes some example
# pictures. We pass them in [0, 1] instead of [0, 255]. The converter has no
# objection: to it, they are very dark pictures.

# %%
try:
    to_tflite(
        session,
        folder / "wrong.tflite",
        quantize="int8",
        calibration=calibration / 255,
    )
except ExportError as error:
    refusal = error
    print(str(error).replace(str(folder), "."))
else:
    raise AssertionError("A wrong file was written.")
assert not (folder / "wrong.tflite").exists()
assert refusal.artifact.agreement.correlation < 0.99
print(f"same class: {refusal.artifact.agreement.top1_agreement:.2%}")

# %% [markdown]
# The file was made, run, compared and thrown away. An older file at that path
# would still be there.

# %% [markdown]
# ## Eight bits
#
# *Quantisation* stores a number as a whole number from -127 to 127, times a
# *step* that many numbers share. An eight-bit weight takes a quarter of the
# memory of a float32 one, and processors multiply eight-bit numbers several at
# a time.
#
# The price is rounding. Let us pay it by hand for one convolution. Each of its
# filters has a step of its own, chosen so that the largest weight becomes 127.
# A number is then off by anything between minus half a step and half a step.
# If all of these are equally likely, the root of the mean square (RMS) of the
# error is the step divided by the square root of 12.

# %%
name = "conv4_block2_1_conv"
folded = keras_resnext.fold_batch_norm(classifier.model)
kernel = folded.get_layer(name).get_weights()[0]
step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
rounded = np.round(kernel / step) * step


def rms(values):
    return np.sqrt(np.mean(np.square(values, dtype="float64")))


by_hand = rms(kernel - rounded) / rms(kernel)
predicted = rms(step) / np.sqrt(12) / rms(kernel)
print(f"{name}: {kernel.size:,} weights, {len(step)} steps")
print(f"error by hand {by_hand:.4%}, by the rule {predicted:.4%}")
# The mean of n such squares has a relative standard deviation of 0.9 / sqrt(n),
# its root half of that; we allow four of them. And the largest of each filter's
# 256 weights is exact.
tolerance = 4 * 0.45 / np.sqrt(kernel.size) + 1 / 256
assert abs(by_hand / predicted - 1) < tolerance

# %% [markdown]
# Under one percent, for this layer. Activations, the numbers between layers,
# can be rounded as well, and there are two ways to find their steps:
#
# - **`"dynamic"`** looks at the values in each call, while the network runs. It
#   needs no example pictures.
# - **`"int8"`** fixes the ranges beforehand, from the activations of some
#   *calibration* pictures. Everything but the softmax and the logits is then
#   computed with whole numbers, which the processors of phones do fastest, and
#   some accelerators do nothing else.
#
# Both are verified like any other file, with other limits: rounding may move
# logits, but they must still point in the same direction. The measure is their
# correlation with those of Keras.

# %%
for quantize in ("dynamic", "int8"):
    artifacts[quantize] = to_tflite(
        session,
        folder / f"model_{quantize}.tflite",
        quantize=quantize,
        calibration=calibration if quantize == "int8" else None,
    )

for artifact in artifacts.values():
    agreement = artifact.agreement
    print(f"{describe(artifact)}, correlation {agreement.correlation:.6f}")

# The quarter that eight bits are, and what the file holds beside weights.
for quantize in ("dynamic", "int8"):
    assert artifacts[quantize].size < 0.4 * artifacts["tflite"].size


# %%
def centred_logs(probabilities):
    """Logits, up to a constant for each image."""
    logs = np.log(probabilities.astype("float64"))
    return logs - logs.mean(axis=-1, keepdims=True)


figure, axes = plt.subplots(
    1, 3, figsize=(10, 3.6), sharex=True, sharey=True, layout="constrained"
)
keras_logits = centred_logs(expected)
for ax, key in zip(axes, ("tflite", "dynamic", "int8"), strict=True):
    file_logits = centred_logs(artifacts[key].scores)
    ax.plot(keras_logits.ravel(), file_logits.ravel(), ".", markersize=2)
    difference = np.abs(keras_logits - file_logits).max()
    title = {"tflite": "float32"}.get(key, key)
    ax.set_title(f"{title}: {difference:.2g} at most")
    ax.set_xlabel("logit in Keras")
    ax.set_aspect("equal")
axes[0].set_ylabel("logit in LiteRT")
plt.show()

# %% [markdown]
# Each point is one class of one picture, 3,000 in a panel: the float32 file on
# the left, `dynamic` in the middle, `int8` on the right. In the first, all
# points lie on the diagonal; in the others they are scattered closely around
# it.
#
# Is that close enough? The accuracy does not tell on 300 pictures: its standard
# error is more than a whole point. Counting the pictures whose class changed
# tells more. Which of them can change is known: a logit moves by a bounded
# amount, so that only pictures on which Keras itself was undecided do.

# %%
print(f"standard error: {np.sqrt(accuracy * (1 - accuracy) / 300):.4f}")
ordered = np.sort(keras_logits, axis=-1)
gap = ordered[:, -1] - ordered[:, -2]
for quantize in ("dynamic", "int8"):
    artifact = artifacts[quantize]
    top = artifact.scores.argmax(axis=-1)
    changed = top != keras_top
    print(
        f"{quantize}: accuracy {np.mean(top == classes):.4f}, "
        f"{changed.sum()} of {len(images)} changed"
    )
    # Two logits must meet, each moved by the largest difference at most.
    limit = 2 * artifact.agreement.max_logit_difference
    assert np.all(gap[changed] <= limit)
    print(f"  could change: {np.sum(gap <= limit)} of {len(images)}")

# %% [markdown]
# ### The error of each layer
#
# If an eight-bit file is worse than hoped, where does it come from? A quantised
# `Artifact` has the error of every layer, measured on four of the pictures, as
# the ratio of noise to signal (RMS):
#
# - `weights`: the error of its weights alone, as we computed it by hand;
# - `activations`: the error of its exact outputs when they are rounded once;
# - `accumulated`: the error of its outputs in the quantised network, with what
#   all layers before it contributed.

# %%
errors = artifacts["int8"].layer_errors
layer = next(error for error in errors if error.name == name)
print(f"{name}: weights {layer.weights:.4%}, by hand {by_hand:.4%}")
# The same rounding, of kernels folded by two programs in float32.
assert np.isclose(layer.weights, by_hand, rtol=1e-3)

figure, ax = plt.subplots(figsize=(10, 4.6), layout="constrained")
position = np.arange(len(errors))
for offset, part in ((-0.2, "weights"), (0.2, "activations")):
    heights = [100 * (getattr(error, part) or 0) for error in errors]
    ax.bar(position + offset, heights, 0.4, label=f"int8, {part}")
for key, style in (("int8", "ko-"), ("dynamic", "k^:")):
    ax.plot(
        [100 * error.accumulated for error in artifacts[key].layer_errors],
        style,
        markersize=3,
        linewidth=1,
        label=f"{key}, accumulated",
    )
ax.set_xticks(position, [error.name for error in errors], rotation=90)
ax.tick_params(axis="x", labelsize=8)
ax.set_ylabel("noise / signal, percent")
ax.set_ylim(0)
ax.margins(x=0.01)
ax.legend(ncols=4, loc="upper left", bbox_to_anchor=(0, 1.12), frameon=False)
plt.show()

# %% [markdown]
# Layers run from the first on the left to the classifier on the right. Bars are
# what a layer adds by itself, lines what has accumulated. The weights cost
# about the same everywhere. The activations of most layers cost more, and those
# of the last block most: by the rule above, with 255 steps in a range, an error
# of 3 percent means that the range is 26 times the RMS. A few large values set
# the step for all.
#
# The lines do not only rise. Independent errors average out wherever many
# values are summed, and most of all in the pooling before the classifier.

# %% [markdown]
# ### Keeping the worst layers in float32
#
# `exclude=3`, on the command line `--exclude-worst 3`, leaves those layers in
# float32 whose own errors, of weights and activations together, are the three
# largest.

# %%
worst = sorted(errors, key=lambda error: error.own)[-3:]
print("worst:", ", ".join(error.name for error in worst))

mixed = to_tflite(
    session,
    folder / "model_mixed.tflite",
    quantize="int8",
    calibration=calibration,
    exclude=3,
)
kept = [error.name for error in mixed.layer_errors if error.own == 0]
assert sorted(kept) == sorted(error.name for error in worst)
for artifact in (artifacts["int8"], mixed):
    last = artifact.layer_errors[-1]
    print(
        f"{artifact.size / 1e6:.2f} MB, noise in the logits "
        f"{last.accumulated:.2%}, mean logit difference "
        f"{artifact.agreement.mean_logit_difference:.4f}"
    )
assert mixed.size > artifacts["int8"].size

# %% [markdown]
# The file has grown noticeably, and the logits are only slightly closer. In
# this network no layer stands out far enough; where one does, such as a first
# convolution with a huge range, excluding it pays. Look at the picture first.
#
# If eight bits cost too much accuracy and no single layer is to blame, there is
# *quantisation-aware training*: the network is trained on with the rounding in
# place, and learns ranges and weights that suit it. `keras-resnext finetune
# runs/x --qat` does it for the finished run `runs/x`, and the guide
# [int8](../docs/int8.md) says when it pays.

# %% [markdown]
# ## Without Keras
#
# Now the other side: what the author of an app or a service writes, with
# nothing but the files. Class names and transform are inside: a TFLite file is
# also a zip archive, and an ONNX file has metadata.

# %%
with zipfile.ZipFile(folder / "model_int8.tflite") as archive:
    print(archive.namelist())
    labels = archive.read("labels.txt").decode().splitlines()
    print(json.loads(archive.read("transform.json")))
assert labels == classifier.labels

# %% [markdown]
# The script below reads PNG files with Pillow and classifies them twice, in
# LiteRT with the int8 file and in ONNX Runtime with the float32 file. Its first
# lines make sure that we do not fool ourselves: a module that is `None` in
# `sys.modules` cannot be imported.

# %%
script = folder / "classify.py"
script.write_text(
    """
import json
import sys
import zipfile

for name in ("tensorflow", "keras", "keras_resnext", "jax", "torch"):
    sys.modules[name] = None

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

tflite, onnx, *pictures = sys.argv[1:]
pixels = np.stack([np.asarray(Image.open(path)) for path in pictures])

# LiteRT: one image at a time, here as bytes.
runner = Interpreter(tflite).get_signature_runner("serving_default")
details = runner.get_input_details()["image"]
in_litert = np.concatenate([
    runner(image=image[None].astype(details["dtype"]))["probabilities"]
    for image in pixels
])
with zipfile.ZipFile(tflite) as archive:
    labels = archive.read("labels.txt").decode().splitlines()

# ONNX Runtime: a batch of any size, as floats, not divided by anything.
session = onnxruntime.InferenceSession(onnx)
(in_onnx,) = session.run(["probabilities"], {"image": pixels.astype("f4")})
properties = session.get_modelmeta().custom_metadata_map
assert json.loads(properties["labels"]) == labels

print(json.dumps({
    "input": [str(details["shape"]), details["dtype"].__name__],
    "labels": labels,
    "litert": in_litert.tolist(),
    "onnx": in_onnx.tolist(),
    "imported": [
        name for name, module in sys.modules.items() if module is not None
        and name.split(".")[0] in ("tensorflow", "keras", "keras_resnext")
    ],
}))
""".lstrip()
)

pictures = []
for i, image in enumerate(images[:10]):
    pictures.append(folder / f"picture_{i}.png")
    PIL.Image.fromarray(image.astype("uint8")).save(pictures[-1])


def run_alone(*command):
    """What a Python process of its own prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


files = folder / "model_int8.tflite", folder / "model.onnx"
answer = json.loads(run_alone(script, *files, *pictures))
print("input of the int8 file:", *answer["input"])
print("imported of TensorFlow and Keras:", answer["imported"])
assert answer["imported"] == []

# %% [markdown]
# Did it compute what we verified? The int8 file must answer as it did here. So
# must the ONNX file, within its limit; and a probability changes by half of
# what its logits change, at most, because the slope of the softmax, p (1 - p),
# is nowhere more than a quarter, and the other logits can add as much again.

# %%
in_litert, in_onnx = np.array(answer["litert"]), np.array(answer["onnx"])
largest_logit = np.abs(keras_logits).max()
difference = np.abs(in_onnx - expected[:10]).max()
print(f"ONNX Runtime there, Keras here: {difference:.1e} at most")
assert difference <= 0.5 * 1e-4 * largest_logit
np.testing.assert_allclose(in_litert, artifacts["int8"].scores[:10], atol=1e-6)

figure, axes = plt.subplots(2, 5, figsize=(10, 5), layout="constrained")
for i, ax in enumerate(axes.flat):
    ax.imshow(images[i].astype("uint8"))
    best, exact = in_litert[i].argmax(), in_onnx[i].argmax()
    ax.set_title(
        f"{labels[best]}\nLiteRT int8 {in_litert[i, best]:.3f}\n"
        f"ONNX Runtime {in_onnx[i, best]:.3f}",
        fontsize=10,
        color="black" if best == exact == classes[i] else "red",
    )
    ax.axis("off")
plt.show()

# %% [markdown]
# Ten test pictures with the class that the int8 file gives, and its probability
# in both files; a title is red where a file is wrong or the two disagree. The
# probabilities differ in the second or third digit, which is what eight bits
# cost.
#
# These pictures had the network's size already. Photographs have to be turned
# upright, resized and cropped first, as `transform.json` says: with
# antialiasing, and not squeezed into a square. If a phone disagrees with
# Python, this step is the first to look at.

# %% [markdown]
# ## All files at once, and a report
#
# `export_files` writes several files, verifies each, and measures it in a
# process that loads nothing else. In a terminal the same is
#
# ```console
# keras-resnext export resnext29_8x4d_f64 --weights fashion_mnist \
#     --format tflite,onnx --quantize none,int8 --data fashion_mnist \
#     --max-images 300
# ```

# %%
plan = plan_files(folder / "export", ["tflite", "onnx"], [None, "int8"])
report = export_files(session, plan, classes=classes, calibration=calibration)
for file in report.files:
    print(
        f"{file.name:12} {file.bytes / 1e6:.2f} MB, "
        f"accuracy {file.accuracy:.4f}, {file.latency_ms:.2f} ms an image, "
        f"{file.peak_bytes / 1e6:.0f} MB of memory"
    )
assert all(file.passed for file in report.files)
assert report.keras_accuracy == accuracy
Image(filename=folder / "export" / "report.png", width=900)

# %% [markdown]
# The picture is `report.png`, which lies beside the files with `report.json`:
# size, time, memory and difference of the four files, and a table with the
# limits they were held to. Whether eight bits are faster depends on the runtime
# and the processor; the times are of the machine that ran this.

# %% [markdown]
# ## A phone, a page, a server
#
# The repository has a kit for each place, in `export/`: a folder to copy, and a
# README that says what of it was run. All of them take these files as they are;
# the server takes a SavedModel too.
#
# | kit | file | takes from it |
# |---|---|---|
# | [mobile](../export/mobile/README.md) | TFLite | labels, transform |
# | [web](../export/web/README.md) | ONNX | labels, transform, and its SHA-256 |
# | [serving](../export/serving/README.md) | ONNX | labels, transform, shape |
#
# The kits are in a clone of the repository and not in an installed package, so
# we look for them, and leave these steps out if they are not there.

# %%
here = Path.cwd()
roots = [Path(keras_resnext.__file__).parents[1], here, *here.parents]
kits = next(
    (
        root / "export"
        for root in roots
        if (root / "export" / "mobile" / "classify.py").is_file()
    ),
    None,
)
print("kits:", "found" if kits else "not found; clone the repository")

# %% [markdown]
# **The phone.** `classify.py` runs a TFLite file as a phone does. An Android or
# iOS app does the same with `Classify.kt` or `Classify.swift`.

# %%
if kits:
    boot = kits / "mobile" / "ankle-boot.png"
    answer = run_alone(
        kits / "mobile" / "classify.py",
        *(boot, "--model", folder / "model_int8.tflite", "--top", 3),
    )
    print(answer.replace(str(boot), boot.name))
    assert "Ankle boot" in answer.splitlines()[1]

# %% [markdown]
# **The page.** `add_model.py` writes an ONNX file and a `model.json` with what
# JavaScript must know. A browser may compute on a graphics processor with a
# driver nobody has tested, so the page repeats our verification each time it
# loads: it draws two *golden pictures* from whole numbers, the same bytes in
# both languages, and compares its logits with those that Keras gave here. This
# is that check, in Python.

# %%
if kits:
    page = runpy.run_path(str(kits / "web" / "add_model.py"))
    manifest = page["write_model"](
        classifier, folder / "page", name="Fashion-MNIST"
    )
    print(", ".join(manifest))
    golden = np.stack([page["golden_picture"](i, 28) for i in range(2)])
    runtime = onnxruntime.InferenceSession(folder / "page" / "model.onnx")
    (scores,) = runtime.run(None, {"image": golden.astype("float32")})
    check = manifest["check"]
    difference = np.abs(centred_logs(scores) - check["logits"]).max()
    print(
        f"golden pictures: {difference:.1e} off, "
        f"{check['tolerance']:.1e} allowed"
    )
    assert difference <= check["tolerance"]

# %% [markdown]
# `make web` serves it with the demo's model; `python export/web/add_model.py
# runs/mine` puts in your own.
#
# **The server.** It answers REST and gRPC in the Open Inference Protocol. Here
# we open a file as the server does and give it a picture file; the protocol
# around it is for a terminal:
#
# ```console
# make serve
# python export/serving/client.py export/mobile/ankle-boot.png
# ```

# %%
if kits:
    server = runpy.run_path(str(kits / "serving" / "runtimes.py"))
    network = server["open_model"](folder / "export" / "model.onnx", threads=1)
    pixels = network.transform.pixels(boot)
    (scores,) = network.run(pixels[None])
    best = scores.argmax()
    print(f"{network.shape} -> {network.labels[best]}, {scores[best]:.4f}")
    assert network.labels[best] == classifier.predict(boot)[0].label

# %% [markdown]
# ## Where to go next
#
# - [Exporting](../keras_resnext/export/README.md) has all options and limits,
#   SavedModel, and what other readers do with the files.
# - **Millions of files** are for [export/batch](../export/batch/README.md).
# - **An accelerator without grouped convolutions** takes
#   `keras_resnext.convert_form(model, "branches")`, the same network in plain
#   ones.
# - [Share](09_share.ipynb) publishes the network together with these files.
