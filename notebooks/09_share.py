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
# # Share
#
# A model that others can use is more than a file of weights. They need to know
# what goes in, what the outputs mean, how good it is and who says so, where it
# fails, and what they may do with it. On the Hugging Face Hub, a public store
# of models, all of this is a *repository*: the weights, a configuration, and a
# *model card*, which is the README that people read and whose first lines
# programs read.
#
# `push_to_hub` writes such a repository. This notebook asks it for a *dry run*,
# which writes into a folder what would be published, so that we can look at
# every file and open it again. Nothing is uploaded, and no account is needed.
#
# It needs `pip install '.[notebooks,weights]'` in a clone, and Fashion-MNIST,
# which `make fashion` prepares.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["HF_HUB_OFFLINE"] = "1"  # we mean it

import collections
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from huggingface_hub import ModelCard
from IPython.display import Markdown
from IPython.display import display
from safetensors import safe_open
from sklearn.datasets import load_sample_images

import keras_resnext
from keras_resnext.export import export_files
from keras_resnext.export import plan_files
from keras_resnext.training import evaluate
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.datasets import read_images

folder = Path(tempfile.mkdtemp(prefix="resnext-share-"))

# %% [markdown]
# ## What to publish
#
# We pretend that the network which comes with the package, for the ten classes
# of Fashion-MNIST, is ours and new. In your own work it is
# `Classifier.load("runs/mine")`.

# %%
classifier = keras_resnext.Classifier.load(
    "resnext29_8x4d_f64", "fashion_mnist"
)
print(classifier.record.name)
print(classifier.input_description)
print(", ".join(classifier.labels))

# %% [markdown]
# ## How good it is
#
# The numbers of a card should come from a measurement, not from memory.
# `evaluate` classifies every image of the test split once, and remembers which
# data set, which split and which transform that was. `push_to_hub` takes the
# result as it is, and refuses one with other classes or another transform.

# %%
evaluation = evaluate(classifier, "fashion_mnist")
print(
    f"{evaluation.split}: accuracy {evaluation.accuracy:.4f}, cross-entropy "
    f"{evaluation.loss:.4f}, on {evaluation.examples:,} images"
)

# The published accuracy, unless rounding decides, which moves probabilities by
# less than 1e-3 here.
second, best = np.sort(evaluation.probabilities, axis=1)[:, -2:].T
undecided = np.sum(best - second < 1e-3)
published = classifier.record.top1 / 100
missing = abs(evaluation.accuracy - published) * evaluation.examples
print(f"published: {published:.4f}; undecided images: {undecided}")
assert missing <= undecided + 0.5  # half an image, for the division

# %% [markdown]
# One number hides a lot. A reader wants to know where the network fails, and
# the card has a place for it: a description, which only the author can write.
# Let us look before we write it.

# %%
right = evaluation.predictions == evaluation.labels
recall = np.array(
    [
        right[evaluation.labels == i].mean()
        for i in range(len(evaluation.class_names))
    ]
)
order = recall.argsort()
figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
bars = ax.barh(np.array(evaluation.class_names)[order], recall[order])
ax.bar_label(bars, fmt="{:.3f}", label_type="center", color="white")
ax.axvline(evaluation.accuracy, color="black", linestyle=":")
ax.set_xlim(0, 1)
ax.set_xlabel("share of the class's test images that are recognised")
plt.show()

shirt = evaluation.class_names.index("Shirt")
taken = collections.Counter(
    evaluation.class_names[i]
    for i in evaluation.predictions[(evaluation.labels == shirt) & ~right]
)
print("shirts are taken for:", dict(taken.most_common()))
assert order[0] == shirt
# Every class has as many test images, so that the mean is the accuracy.
assert np.isclose(recall.mean(), evaluation.accuracy)

# %% [markdown]
# A bar for each class, the worst at the bottom; the dotted line is the accuracy
# over all. Shirts are the hard ones, and they are taken for other garments for
# the upper body.
#
# What about pictures that are no clothes at all? A classifier has no class for
# "something else". Here are two photographs that come with scikit-learn.

# %%
photographs = load_sample_images().images
predictions = classifier.predict(photographs)
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for ax, photo, prediction in zip(axes, photographs, predictions, strict=True):
    (label, probability), *_ = prediction.top(1)
    ax.imshow(photo)
    ax.set_title(f"“{label}”, {probability:.2f}")
    ax.axis("off")
    print(f"{label}: {probability:.3f}")
plt.show()

# %% [markdown]
# A pavilion and a flower, each with the network's answer and its probability. A
# probability is shared out among the ten classes, whatever the picture, so that
# even the best of ten nonsensical answers gets a tenth or more. That is worth a
# sentence in the card.

# %%
description = f"""
Trained on the 60,000 training images of Fashion-MNIST: 28x28 pixels, one
garment each, grey on black.

**Meant for** teaching and tests. **Not for** photographs: it gives one of its
ten classes to whatever it is shown, and its probabilities say nothing about
pictures unlike those of Fashion-MNIST.

**Where it fails.** The hardest class is Shirt, of which it recognises
{recall[shirt]:.0%}; the others are most often taken for
{taken.most_common(1)[0][0]}.
"""

# %% [markdown]
# ## Files for other runtimes
#
# Not everybody has Keras. The `.tflite` and `.onnx` files that `export_files`
# writes may go into the same repository; [Out of
# Python](08_out_of_python.ipynb) explains them. Beside them is `report.json`,
# which has a *fingerprint* of the classifier that they are of: `push_to_hub`
# refuses files of one that was trained further since, and files that changed.

# %%
clothes = open_dataset("fashion_mnist")
images, classes = read_images(clothes, "test", classifier.transform, count=300)
calibration, _ = read_images(
    clothes, "train", classifier.transform, count=100, shuffle_seed=0
)
plan = plan_files(
    folder / "export", ["tflite", "onnx"], [None, "int8"], overwrite=True
)
report = export_files(
    classifier,
    plan,
    images=images,
    classes=classes,
    calibration=calibration,
)
assert all(file.passed for file in report.files)
print(", ".join(plan.files.values()))

# %% [markdown]
# ## The dry run
#
# Everything so far comes together in one call. Without `dry_run`, the same call
# would publish the same files, in one commit.

# %%
repository = folder / "repository"
keras_resnext.push_to_hub(
    classifier,
    "user/fashion",
    evaluation=evaluation,
    description=description,
    exports=folder / "export",
    dry_run=repository,
)
for path in sorted(repository.iterdir()):
    print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")

# %% [markdown]
# ### The card
#
# The first lines, between two lines of dashes, are for programs: the Hub
# filters by licence, task and library, and shows the numbers beside the model.

# %%
text = (repository / "README.md").read_text()
_, header, body = text.split("---\n", 2)
print(header)

card = ModelCard(text)
values = {r.metric_name: r.metric_value for r in card.data.eval_results}
assert values["Top-1 accuracy"] == evaluation.accuracy
assert card.data.license == classifier.record.license

# %% [markdown]
# The rest is for people. Our description stands below the first paragraphs;
# what can be known from the classifier was written by the program. The accuracy
# has an interval, because 10,000 images are a sample: in the long run, 95 of
# 100 such intervals contain the accuracy on all pictures of this kind.

# %%
# Headings in bold, so that they are none of this page.
display(Markdown(re.sub("^#+ (.+)$", r"**\1**", body, flags=re.M)))

# %% [markdown]
# ### Nothing of this machine
#
# What is published stays published. The folder from which we work, our home and
# the paths of the data are nobody's business, so we search all files for them.

# %%
places = folder, Path.home(), Path.cwd(), clothes.builder.data_dir
private = {str(place) for place in places} - {"/"}
files = [path for path in repository.rglob("*") if path.is_file()]
for path in files:
    content = path.read_bytes()
    for secret in private:
        assert secret.encode() not in content, (path.name, secret)
print("no paths in", len(files), "files")

# %% [markdown]
# ### The configuration
#
# One `config.json` serves several readers, each with keys of its own. Plain
# Keras reads `class_name` and `config`, and finds only layers of its own there,
# because the grouped convolutions were written as `keras.layers.Conv2D`. This
# package reads `keras_resnext`, with its own layers, the labels and the
# transform. A ResNeXt that timm has too, such as ResNeXt-50, also gets timm's
# keys; this small network with the stem for small images is none of these.

# %%
config = json.loads((repository / "config.json").read_text())
ours = config["keras_resnext"]
print("Keras:", ", ".join(key for key in config if key != "keras_resnext"))
print("keras_resnext:", ", ".join(ours))
print(json.dumps(ours["transform"]))
assert ours["labels"] == classifier.labels
layers = {layer["class_name"] for layer in config["config"]["layers"]}
print("layers for Keras:", ", ".join(sorted(layers)))
assert not any(
    layer["module"].startswith("keras_resnext")
    for layer in config["config"]["layers"]
)

# %% [markdown]
# ### The weights
#
# They are there twice: `model.weights.h5` for plain Keras, and
# `model.safetensors` for other libraries, with the names that torchvision gave
# to the layers of ResNets and PyTorch's order of dimensions. A safetensors file
# is a list of names and shapes, followed by plain numbers; opening it runs no
# code, which cannot be said of every format for weights.

# %%
with safe_open(repository / "model.safetensors", "numpy") as stored:
    names = stored.keys()
    tensors = {name: stored.get_tensor(name) for name in names}
for name in list(tensors)[:5]:
    print(f"{name:28} {tensors[name].dtype} {tensors[name].shape}")
print(f"... {len(tensors)} tensors")

statistics = [
    tensor
    for name, tensor in tensors.items()
    if "running" in name or "num_batches" in name
]
count = sum(t.size for t in tensors.values()) - sum(t.size for t in statistics)
print(f"{count:,} trained values")
assert count == classifier.record.parameters

# %% [markdown]
# ## Open it again
#
# Published files that nobody has opened are a hope. `push_to_hub` opens what it
# has written before it goes on; we do it once more, as three readers would. The
# first has this package. Where we give a folder, that reader writes
# `"hf://user/fashion"`.

# %%
inputs = classifier.transform.normalize(images)
expected = classifier.model.predict(inputs, verbose=0)

opened = keras_resnext.Classifier.load(repository)
assert opened.labels == classifier.labels
assert opened.transform == classifier.transform
for ours, theirs in zip(
    classifier.model.get_weights(), opened.model.get_weights(), strict=True
):
    np.testing.assert_array_equal(ours, theirs)
scores = opened.model.predict(inputs, verbose=0)
print(f"this package: {np.abs(scores - expected).max():.1e} at most")
# The same weights in the same layers: a few roundings of float32 at most.
assert np.abs(scores - expected).max() <= 1e-6

# %% [markdown]
# The second has Keras alone, in a process in which this package cannot be
# imported. It must do by itself what the card says about pixels: divide them by
# 255, subtract the mean, divide by the standard deviation.

# %%
script = folder / "plain_keras.py"
script.write_text(
    """
import sys

sys.modules["keras_resnext"] = None  # cannot be imported

import keras
import numpy as np

repository, images, answers = sys.argv[1:]
model = keras.saving.load_model(repository)
pixels = np.load(images)
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
normalized = (pixels / 255 - np.float32(mean)) / np.float32(std)
np.save(answers, model.predict(normalized, verbose=0))
""".lstrip()
)

np.save(folder / "images.npy", images[:64])
done = subprocess.run(
    [
        *(sys.executable, script, repository),
        *(folder / "images.npy", folder / "answers.npy"),
    ],
    capture_output=True,
    text=True,
)
assert done.returncode == 0, done.stderr
answers = np.load(folder / "answers.npy")
difference = np.abs(answers - expected[:64]).max()
print(f"plain Keras: {difference:.1e} at most")
# float32 sums in another order: 1e-4 of the largest logit, as in exported
# files, which moves a probability by half of that.
logits = np.log(expected) - np.log(expected).mean(axis=-1, keepdims=True)
assert difference <= 0.5 * 1e-4 * np.abs(logits).max()

# %% [markdown]
# The third takes a file for a phone and needs neither. It carries its labels.

# %%
with zipfile.ZipFile(repository / "model_int8.tflite") as archive:
    assert archive.read("labels.txt").decode().split("\n")[:10] == (
        classifier.labels
    )
for entry in json.loads((repository / "report.json").read_text())["files"]:
    print(f"{entry['file']}: same class {entry['top1_agreement']:.2%}")

# %% [markdown]
# ## What a licence has to say
#
# Without a licence, others have no permission to use the weights, however
# public they are. The licence of the code does not give it, and neither does
# that of the pictures. There are three questions, and a card should answer
# each:
#
# 1. **The weights.** What may others do with them? This is `license`, an SPDX
#    identifier such as `apache-2.0`.
# 2. **What they were made from.** Weights that were fine-tuned from others keep
#    the licence of those.
# 3. **The pictures.** Under which terms may they be used, and were people asked
#    who are in them? This belongs in the description.
#
# The second question is the one that is forgotten. A classifier with published
# weights remembers whose they are, and cannot be published under other terms.

# %%
print(f"{classifier.record.license}: {classifier.record.origin}")
try:
    keras_resnext.push_to_hub(
        classifier, "user/fashion", license="mit", dry_run=folder / "other"
    )
except ValueError as error:
    print(error)
else:
    raise AssertionError("Another licence was accepted.")
assert not (folder / "other").exists()

# %% [markdown]
# It knows this only while the loaded weights are unchanged. After
# fine-tuning nobody else can know, so look it up before you start. These are
# the licences of the published weights that the package lists, and whether they
# allow commercial use:

# %%
licenses = collections.Counter(
    (record.license, record.commercial)
    for record in keras_resnext.list_weights()
)
for (name, commercial), number in licenses.most_common():
    allowed = "yes" if commercial else "no"
    print(f"{name:14} {number:3} files, commercial use: {allowed}")

default = keras_resnext.get_weights("resnext50", "imagenet")
print(f'weights="imagenet" of ResNeXt-50: {default.name}, {default.license}')
assert default.commercial

# %% [markdown]
# And if nothing is said? A classifier of your own has no record, and the card
# does not guess.

# %%
own = keras_resnext.Classifier(
    keras_resnext.ResNeXt(
        (1, 1, 1), 8, 4, stem="cifar", input_shape=(28, 28, 3), classes=10
    ),
    labels=classifier.labels,
)
for license in (None, "apache-2.0"):
    place = folder / f"own_{license}"
    keras_resnext.push_to_hub(own, "user/own", license=license, dry_run=place)
    card = (place / "README.md").read_text()
    section = card.split("## Licence and source\n\n")[1].split("\n")[0]
    print(f"license={license}: {section}")
    assert ("No licence was given" in section) == (license is None)
assert "No evaluation was given." in card

# %% [markdown]
# ## For real
#
# In a terminal, first into a folder, then to the Hub:
#
# ```console
# keras-resnext push runs/mine user/birds --license apache-2.0 --dry-run card
# hf auth login
# keras-resnext push runs/mine user/birds --license apache-2.0
# ```
#
# The upload is one commit: readers see all of it or nothing. A repository that
# has files already is not overwritten unless you say so, and what was there
# stays in its history. Others then open it with
#
# ```python
# classifier = keras_resnext.Classifier.load("hf://user/birds")
# model = keras.saving.load_model("hf://user/birds")
# ```
#
# [Sharing](../docs/sharing.md) says what was tested and what was not, and
# [Privacy](../docs/privacy.md) what leaves your machine.
