# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ResNeXt in Keras: a quick start
#
# Classify images with a trained ResNeXt, look at how it is built, train one of
# your own, and export it for a phone and a server. The whole notebook takes
# about two minutes on two CPU cores.
#
# It needs `pip install '.[notebooks]'` in a clone, and Fashion-MNIST, 28x28
# pictures of clothes in ten classes. TensorFlow Datasets downloads it if it is
# not there; `make fashion` prepares it from Debian's package instead. When
# TensorFlow starts, it writes a few lines about the machine, also about a GPU
# that is not there; they do not mean that anything went wrong.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

import keras_resnext
from keras_resnext.training import evaluate
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.datasets import read_images

# %% [markdown]
# ## A trained network
#
# `Classifier.load` brings a network with its published weights, the names of
# its classes, and the transform that turns a picture into its input. This one
# is small and comes with the package. Its name says that it has 29 layers, 8
# paths in each block, 4 channels in a path, and 64 channels after its first
# stage (not 64 bits). `keras-resnext list --weights` lists the others, most of
# them for photographs of ImageNet's 1,000 classes. `predict` takes image files,
# folders, and arrays of pixels in [0, 255].

# %%
classifier = keras_resnext.Classifier.load(
    "resnext29_8x4d_f64", "fashion_mnist"
)

clothes = open_dataset("fashion_mnist")
clothes.prepare()
images, _ = read_images(clothes, "test", classifier.transform, count=8)
images = images.astype("uint8")
predictions = classifier.predict(images)

figure, axes = plt.subplots(1, 8, figsize=(8.5, 1.7), layout="constrained")
for ax, image, prediction in zip(axes, images, predictions, strict=True):
    ((name, probability),) = prediction.top(1)
    ax.imshow(image)
    ax.set_title(f"{name}\n{probability:.3f}", fontsize=9)
    ax.axis("off")
plt.show()

# %% [markdown]
# The first eight test images, each with the class that the network finds most
# likely and the probability that it gives to it.
#
# `evaluate` classifies all 10,000 of them and counts. The weights were
# published with an accuracy, and we should find the same. On another processor
# sums are rounded differently, and an image at the border between two classes
# may fall on the other side, so we count such images.

# %%
result = evaluate(classifier, "fashion_mnist")
published = classifier.record.top1 / 100
print(f"accuracy: {result.accuracy:.4f} on {result.examples} images")
print(f"published: {published:.4f}")
second, best = np.sort(result.probabilities, axis=1)[:, -2:].T
# Rounding moves probabilities by less than 1e-3 here.
undecided = np.sum(best - second < 1e-3)
print(f"undecided: {undecided} images")
missing = abs(result.accuracy - published) * result.examples
assert missing <= undecided + 0.5  # half an image, for the division

# %% [markdown]
# ## What ResNeXt is
#
# A ResNeXt is a ResNet in which the inside of every block is split into several
# narrow paths of the same shape. The number of paths is called the
# *cardinality*, C, and it is a third dimension to choose, beside depth (how
# many layers) and width (how many channels). When a network may grow, the paper
# found, more paths improve its accuracy more than more layers or more channels
# do. The name of a network says what was chosen: ResNeXt-50 (32x4d) has 50
# layers and 32 paths, each 4 channels wide in the first stage.
#
# The paper is Xie et al., *Aggregated Residual Transformations for Deep Neural
# Networks*, [arXiv 1611.05431](https://arxiv.org/abs/1611.05431).

# %% [markdown]
# ## Build one
#
# `ResNeXt50` takes the arguments of `keras.applications.ResNet50`, in the same
# order. We ask for random weights, because we only want to count them.


# %%
def trainable_weights(model):
    return keras_resnext.count_complexity(model).params


resnext50 = keras_resnext.ResNeXt50(weights=None)
print(f"{resnext50.output_shape} {trainable_weights(resnext50):,} weights")


# %% [markdown]
# That is slightly less than a ResNet-50, which has 25.6 million: the many paths
# are paid for by making each of them narrow.

# %% [markdown]
# ### Three spellings of one block
#
# The paths can be written down one after another and summed (`form="branches"`,
# figure 3a of the paper), joined before the last 1x1 convolution
# (`"concatenated"`, figure 3b), or run all at once with a grouped convolution
# (`"grouped"`, figure 3c, the default). The first shows the idea, the last is
# fast. This is how `keras.utils.plot_model` draws one block with 3 paths of 4
# channels.
#
# `"branches"`:
#
# ![Three paths of three convolutions each, and their
# sum](images/block_branches.svg)
#
# `"concatenated"`:
#
# ![Three paths of two convolutions each, joined before a last
# one](images/block_concatenated.svg)
#
# `"grouped"`:
#
# ![One path with a grouped convolution in the middle](images/block_grouped.svg)
#
# Here is a small network in the first form and in the last.


# %%
def small_model(form):
    return keras_resnext.ResNeXt(
        depths=(1, 1, 1),
        cardinality=8,
        base_width=4,
        stem="cifar",
        classes=10,
        classifier_activation=None,
        form=form,
    )


grouped, branches = small_model("grouped"), small_model("branches")
for model in (grouped, branches):
    print(f"{len(model.layers)} layers, {trainable_weights(model):,} weights")

# %% [markdown]
# There are many more layers in one than in the other, and exactly as many
# weights. In fact they are the *same* weights: path 3 of 8 holds the third
# eighth of what the grouped form holds. If that is so, we can deal the weights
# of `grouped` out to the paths of `branches`, and both must compute the same.

# %%
for layer in branches.layers:
    name, _, path = layer.name.partition("_path")
    weights = grouped.get_layer(name).get_weights() if layer.weights else []
    if path:
        # The paths meet in the third convolution: there it is the inputs
        # that belong to a path, everywhere else the outputs.
        axis = 2 if name.endswith("3_conv") else -1
        weights = [np.split(w, 8, axis)[int(path) - 1] for w in weights]
    layer.set_weights(weights)

noise = np.random.default_rng(0).normal(size=(4, 32, 32, 3))
difference = np.abs(
    grouped.predict(noise, verbose=0) - branches.predict(noise, verbose=0)
)
print(f"largest difference of logits: {difference.max():.1e}")
assert difference.max() < 1e-4

# %% [markdown]
# What is left is rounding: the two forms add the same numbers in another order.
# `keras_resnext.convert_form(model, form)` does this for every block of a
# model.

# %% [markdown]
# ## Train your own
#
# A `Recipe` holds every number of a training run, and its defaults fit the
# 1,797 small scans of digits that come with scikit-learn. We change one thing,
# the number of epochs, so that this takes about a minute on two cores.
#
# `train` writes everything into a folder, and resumes if it is started again
# with the same folder. A new temporary folder makes sure that a rerun of this
# notebook starts from scratch.

# %%
from keras_resnext.training import Recipe
from keras_resnext.training import train

recipe = Recipe(epochs=5)
recipe


# %%
def print_epoch(entry):
    print(
        f"epoch {entry['epoch']}: accuracy {entry['accuracy']:.3f}, "
        f"val_accuracy {entry['val_accuracy']:.3f}"
    )


folder = Path(tempfile.mkdtemp(prefix="resnext-quickstart-"))
run = train(recipe, folder, on_epoch=print_epoch)

# %% [markdown]
# The digits have a fixed split: 1,437 to train on and 360 for validation, which
# training never sees. Only the validation curves say how well the network will
# do on new digits. Training images are shifted at random, and the network is
# asked to be a little less than certain (*label smoothing*), which keeps the
# training loss up.

# %%
Image(filename=run.learning_curves, width=800)

# %%
classifier = keras_resnext.Classifier.load(folder)
result = evaluate(classifier, "digits")
print(f"accuracy: {result.accuracy:.4f} on {result.examples} images")
assert result.accuracy >= 0.95

# %% [markdown]
# ### What it gets wrong
#
# The folder of a run is loaded as a `Classifier` like the one above, so it
# predicts in the same way. Here are the first ten validation digits, and below
# them the ten hardest of all: those to whose true class the network gives the
# least probability. Mistakes are red.

# %%
digits = open_dataset("digits")
images, labels = read_images(digits, digits.val_split, classifier.transform)
images = images.astype("uint8")
scores = np.stack([p.probabilities for p in classifier.predict(images)])
hardest = scores[np.arange(len(labels)), labels].argsort()[:10]

figure, axes = plt.subplots(2, 10, figsize=(10, 2.8), layout="constrained")
for ax, i in zip(axes.flat, [*range(10), *hardest], strict=True):
    predicted = scores[i].argmax()
    ax.imshow(images[i])
    ax.set_title(
        f"{classifier.labels[predicted]} ({scores[i, predicted]:.2f})",
        color="black" if predicted == labels[i] else "red",
    )
    ax.axis("off")
plt.show()

# %% [markdown]
# ## Export
#
# Now the model leaves Keras: TFLite for phones and small boards, ONNX for
# servers, desktops and browsers. The files include the preprocessing and take
# pixels in [0, 255], so whoever uses them needs no Keras and no constants.
#
# An exporter does not take the converter's word for it. It opens the new file
# in its own runtime, runs our validation images through it, and compares its
# *logits*, the scores before they become probabilities, with those of Keras; a
# file that disagrees is not written. Class names and transform travel in the
# file.

# %%
from keras_resnext.export import to_onnx
from keras_resnext.export import to_tflite

for export, name in ((to_tflite, "model.tflite"), (to_onnx, "model.onnx")):
    artifact = export(
        classifier, folder / "export" / name, images=images, overwrite=True
    )
    agreement = artifact.agreement
    print(
        f"{name}: {artifact.size / 1e6:.2f} MB, largest logit difference "
        f"{agreement.max_logit_difference:.1e}, top-1 agreement "
        f"{agreement.top1_agreement:.2%}"
    )
    assert agreement.top1_agreement == 1

# %% [markdown]
# ## Where to go next
#
# - **What is inside.** [Anatomy of the block](02_anatomy.ipynb) takes the
#   network apart.
# - **Your own photographs.** [Fine-tuning](03_finetuning.ipynb) starts from
#   trained weights, so that a few images are enough.
#   `Recipe(dataset="photos", image_size=64)` trains from random weights on a
#   folder `photos/<split>/<class>/<image>`, with the splits `train` and
#   `validation`. Data sets of TensorFlow Datasets with one label for each image
#   work by their name, such as `cifar10`.
# - **Larger networks.** `Recipe(model="resnext29_8x64d", ...)` is the paper's
#   CIFAR network; `keras_resnext.ResNeXt` builds any other, and
#   `help(keras_resnext.ResNeXt)` describes every argument.
# - **The command line.** `keras-resnext train`, `evaluate`, `predict` and
#   `export` do all of the above without a line of Python; `keras-resnext
#   --help` lists them.
# - **What it looks at.** [Looking inside](05_looking_inside.ipynb) draws it.
# - **Boxes and outlines.** [Detection and
#   segmentation](06_detection_segmentation.ipynb) builds on its feature maps.
# - **Several devices, and what stops a training.** [Bigger](07_bigger.ipynb).
# - **Off to a device.** [Out of Python](08_out_of_python.ipynb) shows the
#   phone, the page and the server; [Share](09_share.ipynb) publishes a model.
