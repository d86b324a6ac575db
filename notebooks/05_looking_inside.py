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
# # Looking inside a classifier
#
# An accuracy says how often a network is right. It does not say what in the
# picture it used, what it takes for similar, or how far its confidence can be
# trusted. Here are four ways to find out:
#
# 1. **Grad-CAM**: where in the image the network saw a class;
# 2. **integrated gradients**: what each pixel contributes to a class;
# 3. **embeddings**: the network's own description of an image, and the images
#    that it finds alike;
# 4. **calibration**: whether it is right nine times out of ten when it says
#    that it is 90 % sure.
#
# The notebook needs `pip install '.[notebooks]'` in a clone, and Fashion-MNIST,
# 28x28 pictures of clothes in ten classes. TensorFlow Datasets downloads it if
# it is not there; `make fashion` prepares it from Debian's package instead.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

import keras_resnext
from keras_resnext import explain
from keras_resnext.training import evaluate
from keras_resnext.training.calibration import TemperatureScaling
from keras_resnext.training.calibration import reliability
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.datasets import read_images

# isort: split
# After keras_resnext, which chooses how TensorFlow uses the processor.
import keras

# %% [markdown]
# ## A network and its images
#
# One small network is installed with the package: 29 layers and 360,000
# parameters, trained on Fashion-MNIST. `Classifier.load` gives the network, its
# class names, and the transform that its weights were trained with. `evaluate`
# classifies all 10,000 test images.

# %%
classifier = keras_resnext.Classifier.load(
    "resnext29_8x4d_f64", "fashion_mnist"
)
result = evaluate(classifier, "fashion_mnist")
print(f"accuracy: {result.accuracy:.4f} on {result.examples} images")

# %% [markdown]
# The weights were published with an accuracy. We should find the same, except
# for images that are so close to the border between two classes that rounding
# decides. Another processor may round differently, so we count them.

# %%
second, best = np.sort(result.probabilities, axis=1)[:, -2:].T
# Rounding moves probabilities by less than 1e-3 here.
undecided = np.sum(best - second < 1e-3)
published = classifier.record.top1 / 100
print(f"published: {published:.4f}; undecided images: {undecided}")
missing = abs(result.accuracy - published) * result.examples
assert missing <= undecided + 0.5  # half an image, for the division

# %% [markdown]
# We also want to see the images, so we read their pixels, in the same order.

# %%
data = open_dataset("fashion_mnist")
pixels, labels = read_images(data, data.val_split, classifier.transform)
pixels = pixels.astype("uint8")
names = classifier.labels
predictions = result.predictions
right = predictions == labels
assert (labels == result.labels).all()


def show(ax, image, title, color="black", **options):
    ax.imshow(image, **options)
    ax.set_title(title, color=color, fontsize=9)
    ax.axis("off")


# %% [markdown]
# ## Where it looked: Grad-CAM
#
# The last convolutions of this network leave a *feature map*: a grid of 7x7
# places with 256 numbers, or *channels*, each. After that, only an average over
# the places and one dense layer follow, so the feature map is the last point at
# which the network still knows where things are.
#
# Grad-CAM asks how much the score of a class, its *logit*, would grow with each
# channel. It weights the channels by that, adds them up, and leaves out places
# that speak against the class. What remains is a heat map of 7x7 places;
# `overlay` enlarges it and lays it over the image.

# %%
shown = [np.flatnonzero(right & (labels == k))[0] for k in range(10)]
heats = [explain.grad_cam(classifier, pixels[i]) for i in shown]

figure, axes = plt.subplots(2, 10, figsize=(12, 3), layout="constrained")
for i, heat, column in zip(shown, heats, axes.T, strict=True):
    show(column[0], pixels[i], names[predictions[i]])
    show(column[1], explain.overlay(pixels[i], heat), "")
plt.show()
print(f"heat maps of {heats[0].shape}")

# %% [markdown]
# In each column is a test image with its class, which the network gets right,
# and below it the same image with its heat map, red where most of the evidence
# is.
#
# ### Is that really what the network computes?
#
# A picture like this is easy to believe, so let us check it. In this network
# the logit is the average of the feature map times the weights of the dense
# layer, plus a bias. Each of the 49 places therefore adds its own part to the
# logit: its 256 numbers times the weights of the class, divided by 49. We
# compute these parts without `explain` and compare twice: the positive parts
# must be the heat map, and all parts together must be the logit.

# %%
model = classifier.model
dense = model.layers[-1]
kernel, bias = dense.get_weights()
feature_model = keras.Model(
    model.input, [model.get_layer("conv4_block3_out").output, dense.input]
)


def feature_maps(images):
    inputs = classifier.transform.normalize(images)
    return feature_model.predict(inputs, verbose=0)[0]


maps = feature_maps(pixels[shown])
parts = np.einsum("nrsc,cn->nrs", maps, kernel[:, predictions[shown]]) / 49
assert maps.shape == (10, 7, 7, 256)
# float32 keeps seven digits, and 29 layers lose some of them.
tolerance = 1e-4 * np.abs(parts).max()
difference = np.abs(np.maximum(parts, 0) - heats).max()
print(f"largest difference of heat maps: {difference:.1e}")
assert difference < tolerance

logits = parts.sum(axis=(1, 2)) + bias[predictions[shown]]
own = explain.embed(classifier, list(pixels[shown])) @ kernel + bias
own = own[np.arange(10), predictions[shown]]
print(f"largest difference of logits: {np.abs(logits - own).max():.1e}")
assert np.abs(logits - own).max() < 49 * tolerance

# %% [markdown]
# ### Does the network need the hot places?
#
# A heat map explains the network only if the network depends on what it marks.
# That can be tested: take away the hottest part of the garment and see how much
# confidence is lost, then do the same with the coldest part, of the same size,
# and with a part chosen at random. We take a fifth of the garment's pixels, in
# 500 images, in two ways: painted grey, which hides what is there, or painted
# black like the background, which cuts it out. For so many images we use the
# formula that we have just verified, because it works on a whole batch.


# %%
def painted(image, order, value):
    """A copy with the first fifth of the garment, by `order`, in one grey."""
    garment = np.flatnonzero(image.max(axis=-1) > 0)
    chosen = garment[np.argsort(order.flat[garment], kind="stable")]
    copy = image.copy()
    copy.reshape(-1, 3)[chosen[: len(garment) // 5]] = value
    return copy


def confidence_in(images, classes):
    inputs = classifier.transform.normalize(np.stack(images))
    scores = model.predict(inputs, verbose=0)
    return scores[np.arange(len(images)), classes]


tested = np.flatnonzero(right)[:500]
classes = predictions[tested]
maps = feature_maps(pixels[tested])
heat = np.einsum("nrsc,cn->nrs", maps, kernel[:, classes])
noise = np.random.default_rng(0).random(heat.shape)
print(f"whole: {result.probabilities[tested, classes].mean():.3f}")

confidence = {}
for value, way in ((128, "painted grey"), (0, "cut out")):
    for order, part in (
        (-heat, "hottest"),
        (noise, "random"),
        (heat, "coldest"),
    ):
        order = order.repeat(4, axis=1).repeat(4, axis=2)  # 7 places, 28 pixels
        images = [
            painted(pixels[i], o, value)
            for i, o in zip(tested, order, strict=True)
        ]
        confidence[way, part] = confidence_in(images, classes)
        mean = confidence[way, part].mean()
        print(f"{part} fifth {way}: mean confidence {mean:.3f}")

# %%
for way in ("painted grey", "cut out"):
    gain = confidence[way, "coldest"] - confidence[way, "hottest"]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(
        f"{way}: the coldest fifth costs {gain.mean():.3f} less than the "
        f"hottest (standard error {error:.3f})"
    )
    if way == "cut out":
        assert gain.mean() > 3 * error
whole = result.probabilities[tested, classes].mean()
costs = {key: whole - values.mean() for key, values in confidence.items()}
assert costs["cut out", "random"] > 0.8 * costs["cut out", "hottest"]
assert all(
    cost < 0.1 for (way, _), cost in costs.items() if way == "painted grey"
)

# %% [markdown]
# Cut out, the coldest fifth costs the network far less than the hottest: what
# the heat map leaves out, the network can indeed spare. But a random fifth
# costs about as much as the hottest one. It is scattered, which breaks more
# outlines; a fair control would have the same shape. Painted grey, all three
# cost little and nearly the same, so outlines seem to matter more than what is
# printed on the cloth. The network was also trained with random rectangles
# erased, to get along without any single part.
#
# Take a heat map for what it is: it says which places add to the logit, and we
# have verified that they do. Whether the network would miss them is another
# question, and needs a test like this one.

# %% [markdown]
# ### The same image, asked about two classes
#
# A heat map belongs to an image *and a class*. `class_index` asks about another
# class than the most probable one, which is how to look at a mistake: what made
# the network think of the wrong class, and what did it see of the right one?
# Here are the three mistakes that it is most confident of.

# %%
mistakes = np.flatnonzero(~right)
surest = mistakes[np.argsort(-result.probabilities.max(axis=1)[mistakes])[:3]]

figure, axes = plt.subplots(3, 3, figsize=(6.5, 7), layout="constrained")
for i, row in zip(surest, axes, strict=True):
    show(row[0], pixels[i], f"labelled {names[labels[i]]}")
    for ax, k in zip(row[1:], (predictions[i], labels[i]), strict=True):
        heat = explain.grad_cam(classifier, pixels[i], class_index=int(k))
        show(
            ax,
            explain.overlay(pixels[i], heat),
            f"{names[k]}: {result.probabilities[i, k]:.2f}",
            color="red" if k == predictions[i] else "green",
        )
plt.show()

# %% [markdown]
# Each row is one test image. On its left is the picture with its label, in the
# middle the heat map of the class that the network chose (red), and on the
# right that of the label (green), both with the network's probability. Judge
# for yourself who is wrong: some labels of this data set are.

# %% [markdown]
# ## What each pixel contributes: integrated gradients
#
# Grad-CAM is coarse, 7x7 places. Integrated gradients work on the pixels
# themselves. They start at a *baseline*, an image without information, and walk
# in a straight line to the real one. On the way, the gradient of the logit says
# how much each pixel matters at that point; the average over the way, times how
# far the pixel has changed, is the pixel's contribution.
#
# What makes the method worth the effort is that the contributions add up: their
# sum is the logit of the image minus that of the baseline, so nothing is left
# unexplained. A computer cannot average over infinitely many points, only over
# `steps` of them, and the sum shows whether they are enough.

# %%
bag = shown[names.index("Bag")]
k = int(predictions[bag])
image = classifier.transform(pixels[bag])
black = classifier.transform.normalize(np.zeros((28, 28, 3)))
vectors = explain.embed(model, np.stack([image, black]))
top, bottom = (vectors @ kernel + bias)[:, k]
print(f"logit: {top:.3f}; of the baseline {bottom:.3f}")

for steps in (25, 50, 100, 200, 400, 800):
    attributions = explain.integrated_gradients(
        classifier, pixels[bag], baseline=black, steps=steps
    )
    gap = abs(attributions.sum() - (top - bottom)) / abs(top - bottom)
    print(f"{steps} steps: sum {attributions.sum():.3f}, {gap:.1%} off")
    if gap < 0.05:
        break
assert gap < 0.05
assert steps > 50

# %% [markdown]
# The default of 50 steps is not enough here: near the black image the gradient
# changes quickly. We have asked for an error of 5 %; do the same with an image
# or two of your own, and take the number of steps that is needed there.
#
# ### The baseline is part of the question
#
# A contribution is always relative to the baseline, and "without information"
# is ours to define. By default the baseline is zero in the network's own input,
# which for normalised images is ImageNet's mean colour, a grey. In this data
# set the background is black, so grey means "a grey card" and every black pixel
# of the background is a change that has to be accounted for. With a black
# baseline the background does not change, and its contribution is exactly zero.

# %%
compared = [shown[names.index(n)] for n in ("Dress", "Sandal", "Bag")]
figure, axes = plt.subplots(3, 3, figsize=(6.5, 7), layout="constrained")
shares = {"grey": [], "black": []}
for i, row in zip(compared, axes, strict=True):
    show(row[0], pixels[i], names[predictions[i]])
    for ax, (name, baseline) in zip(
        row[1:], (("grey", 0.0), ("black", black)), strict=True
    ):
        attributions = explain.integrated_gradients(
            classifier, pixels[i], baseline=baseline, steps=steps
        )
        total = attributions.sum(axis=-1)
        background = pixels[i].max(axis=-1) == 0
        share = np.abs(total[background]).sum() / np.abs(total).sum()
        shares[name].append(share)
        limit = np.abs(total).max()
        show(
            ax,
            total,
            f"{name} baseline",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
        )
plt.show()
for name, values in shares.items():
    print(f"{name} baseline: {np.mean(values):.0%} on the background")
assert shares["black"] == [0, 0, 0]
assert np.mean(shares["grey"]) > 0.5

# %% [markdown]
# Red pixels speak for the class, blue ones against it; white ones contribute
# nothing. With the grey baseline, in the middle, most of the contributions lie
# outside of the garment. Neither picture is wrong: the middle one explains "why
# a dress and not a grey card", the right one "why a dress and not an empty
# picture". Both are speckled, with opposite signs side by side: single pixels
# say little, the sum over a region says more.

# %% [markdown]
# ## What it finds alike: embeddings
#
# Just before its last layer, the network has turned an image into 256 numbers,
# its *embedding*. The classifier on top of them is linear, so the layers below
# must have arranged images of one class together. That makes embeddings useful
# for more than the ten classes: to search for similar pictures, to find
# duplicates, to sort pictures into new groups.
#
# `embed` returns them, `nearest_neighbors` looks for the vectors with the
# smallest angle to a query. The similarity is the cosine of that angle, 1 for
# the same direction.

# %%
count = 2000
vectors = explain.embed(classifier, pixels[:count])
print(f"embeddings: {vectors.shape}")

queries = [int(np.flatnonzero(labels[:count] == k)[0]) for k in (0, 5, 7, 8)]
neighbors, similarities = explain.nearest_neighbors(
    vectors, vectors[queries], count=8
)
assert list(neighbors[:, 0]) == queries
# The first one is the query itself: a sum of 256 products in float32.
assert np.abs(similarities[:, 0] - 1).max() < 256 * np.finfo("float32").eps

figure, axes = plt.subplots(4, 8, figsize=(10, 6), layout="constrained")
for row, found, alike in zip(axes, neighbors, similarities, strict=True):
    for ax, i, similarity in zip(row, found, alike, strict=True):
        same = labels[i] == labels[found[0]]
        title = f"{names[labels[i]]}\n"
        title += "query" if ax is row[0] else f"{similarity:.3f}"
        show(ax, pixels[i], title, color="black" if same else "red")
plt.show()

# %% [markdown]
# The first picture of each row is the query, the others are its nearest
# neighbours among 2,000 images, with their similarity. Images of another class
# would have red titles.
#
# Four rows are an impression. For a number, take each of the 2,000 images as a
# query and ask whether its nearest neighbour, other than itself, has the same
# class. As a comparison, look for neighbours by the pixels themselves.


# %%
def neighbor_agrees(features):
    found, _ = explain.nearest_neighbors(features, features, count=2)
    own = np.arange(len(features))
    other = np.where(found[:, 0] == own, found[:, 1], found[:, 0])
    return labels[other] == labels[own]


by_embedding = neighbor_agrees(vectors)
by_pixels = neighbor_agrees(pixels[:count, ..., 0].reshape(count, -1) / 255.0)
print(f"neighbour of the same class, by embedding: {by_embedding.mean():.3f}")
print(f"neighbour of the same class, by pixels: {by_pixels.mean():.3f}")
print(f"accuracy of the classifier: {right[:count].mean():.3f}")

# Both methods saw the same images: count those that only one gets right.
better = int((by_embedding & ~by_pixels).sum())
worse = int((by_pixels & ~by_embedding).sum())
print(f"only by embedding: {better} images, only by pixels: {worse}")
assert better > worse + 3 * np.sqrt(better + worse)

# %% [markdown]
# If both methods were equally good, the images that only one of them gets right
# would be split evenly, with a standard deviation of the difference that is the
# square root of their number. The difference is more than three times that.
#
# ### A map of the classes
#
# 256 numbers cannot be drawn, but the two directions in which the vectors
# differ most can. This is a principal component analysis, here by a singular
# value decomposition.

# %%
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
centred = unit - unit.mean(axis=0)
_, strength, directions = np.linalg.svd(centred, full_matrices=False)
flat = centred @ directions[:2].T
explained = (strength[:2] ** 2).sum() / (strength**2).sum()
print(f"two directions have {explained:.0%} of the variance")

figure, ax = plt.subplots(figsize=(8, 6), layout="constrained")
for k, name in enumerate(names):
    points = flat[labels[:count] == k]
    ax.scatter(*points.T, s=8, color=f"C{k}", alpha=0.6, label=name)
ax.set(xlabel="first direction", ylabel="second direction")
ax.set_title("Embeddings of 2,000 test images")
figure.legend(loc="outside right center", markerscale=3)
plt.show()

# %% [markdown]
# Each point is an image, coloured by its label. Classes that look alike lie
# close together: sneakers beside ankle boots, clothes for the upper body beside
# each other. Where colours mix, as those of shirts and T-shirts do, the
# other directions must separate them, or the network confuses them.

# %% [markdown]
# ## How far confidence can be trusted: calibration
#
# The largest probability that a network gives is called its *confidence*. A
# network is *calibrated* if confidence and accuracy agree: of all images with a
# confidence of 0.9, nine in ten should be right. A *reliability diagram* sorts
# the images into bins by confidence and draws the accuracy of each. The
# *expected calibration error* (ECE) is the distance of the two, averaged over
# the bins, each weighted by its number of images.
#
# The report of an evaluation has both, with accuracies by class, the confusion
# matrix and pictures of the mistakes. It is a page that opens offline.

# %%
folder = Path(tempfile.mkdtemp(prefix="resnext-inside-"))
numbers = result.report(folder / "report")
print(*sorted(path.name for path in (folder / "report").iterdir()), sep="\n")
Image(filename=folder / "report" / "reliability.png", width=800)

# %% [markdown]
# On the left are the probabilities as they are, on the right those after the
# repair below; under each diagram is the number of images in each bin. The bars
# on the left, accuracies, end above the diagonal: this network is
# *under*confident, it is right more often than it says. Most networks err to
# the other side. The reason is in its recipe: it was trained with label
# smoothing, towards a probability of 0.91 for the true class instead of 1, and
# has learned to be modest.

# %%
recipe = keras_resnext.training.RECIPES["fashion_mnist"]
target = 1 - recipe.label_smoothing + recipe.label_smoothing / len(names)
calibration = numbers["calibration"]
print(f"trained towards: {target:.2f}")
print(f"mean confidence: {calibration['mean_confidence']:.3f}")
print(f"accuracy: {result.accuracy:.3f}")
print(f"calibration error: {calibration['ece']:.3f}")
assert calibration["mean_confidence"] < target < result.accuracy

# %% [markdown]
# ### One number repairs it
#
# *Temperature scaling* divides all logits by one number, the temperature,
# before the softmax. The order of the classes stays, so accuracy does too; only
# the confidences move, up with a temperature below 1, down with one above. The
# best temperature is the one with the lowest loss.
#
# The report fits it on the same images that it then judges, and says so. To
# know what it does for *other* images, we fit it on 2,000 of them and judge by
# the other 8,000.

# %%
order = np.random.default_rng(0).permutation(result.examples)
fitted, judged = order[:2000], order[2000:]
temperature = TemperatureScaling(
    result.probabilities[fitted], labels[fitted]
).fit()
scaling = TemperatureScaling(result.probabilities[judged], labels[judged])
errors = {}
for name, value in (("before", 1.0), ("after", temperature)):
    bins = reliability(scaling.confidences(value), right[judged])
    errors[name] = bins.calibration_error
    print(
        f"{name}: temperature {value:.3f}, loss {scaling.loss(value):.4f}, "
        f"calibration error {errors[name]:.4f}"
    )
assert scaling.loss(temperature) < scaling.loss(1.0)
assert errors["after"] < errors["before"]

# %% [markdown]
# Some error always remains, because a bin of a few images has an accuracy that
# is partly luck. To see how much, let a computer play a perfectly calibrated
# network: it gives our confidences, and is right exactly as often as they say.

# %%
rng = np.random.default_rng(0)
confidences = scaling.confidences(temperature)
perfect = [
    reliability(confidences, rng.random(len(judged)) < confidences)
    for _ in range(200)
]
chance = [bins.calibration_error for bins in perfect]
low, high = np.quantile(chance, (0.05, 0.95))
print(f"calibration error of a perfect network: {low:.4f} to {high:.4f}")

# %% [markdown]
# What lies above that range is a real error. It is what is left of the bends in
# the diagram: one temperature moves all confidences together, and cannot lift
# some while it lowers others.
#
# ### A calibrated network to keep
#
# A temperature need not travel beside the network. Dividing the weights and the
# bias of the dense layer by it divides the logits, so the network itself can be
# calibrated, saved and exported.

# %%
dense.set_weights([kernel / temperature, bias / temperature])
classifier.save(folder / "calibrated.keras")
calibrated = keras_resnext.Classifier.load(folder / "calibrated.keras")

some = judged[:500]
scores = calibrated.model.predict(
    calibrated.transform.normalize(pixels[some]), verbose=0
)
expected = confidences[:500]
difference = np.abs(scores.max(axis=1) - expected).max()
print(f"largest difference of confidences: {difference:.1e}")
assert difference < 1e-4  # float32, through 29 layers
assert calibrated.labels == names

dense.set_weights([kernel, bias])  # as it was

# %% [markdown]
# ## Where to go next
#
# - `explain` takes your own networks and photographs too:
#   `explain.grad_cam(classifier, "photo.jpg")`. ResNeXt-50 at 224 pixels has
#   7x7 places too, each of them 32 pixels wide; larger photographs give more.
# - `grad_cam(..., layer="conv3_block3_out")` looks at an earlier feature map,
#   with more places and less meaning.
# - `keras-resnext evaluate runs/mine --report runs/mine/report` writes the
#   report of a network that you have trained.
