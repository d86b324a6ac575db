# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Anatomy of the block
#
# What is inside a ResNeXt block, where the idea comes from, and what it costs
# beside the networks it descends from. We start with a single neuron, widen it
# into a block, write that block in three ways that compute the same, and then
# put VGG, Inception, ResNet, ResNeXt and Xception side by side: first their
# blocks, then their parameters, multiply-adds, activations, time and memory.
#
# Nothing is downloaded, and nothing is trained. It needs
# `pip install '.[notebooks]'` in a clone, and Fashion-MNIST as `make fashion`
# prepares it. Most of the time goes into measuring.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # processors are measured here

# Before keras: it turns oneDNN on, which TensorFlow asks for when it starts.
import keras_resnext

print(f"keras_resnext {keras_resnext.__version__}")

# %%
import inspect
import json
import subprocess
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.datasets import read_images

ORANGE, BLUE, GREY = "#c2571a", "#4a6fa5", "#9aa5b1"
generator = np.random.default_rng(0)

# %% [markdown]
# ## A neuron splits, transforms and aggregates
#
# The simplest neuron computes an inner product: it multiplies each input by a
# weight and adds up. The paper (Xie et al.,
# [arXiv 1611.05431](https://arxiv.org/abs/1611.05431), section 3.2) reads that
# in three steps, because the same three steps describe much larger things:
#
# 1. **Split** the input vector `x` into its components, one number each.
# 2. **Transform** each component; here it is scaled by a weight.
# 3. **Aggregate** what comes out, by adding.

# %%
x, w = generator.normal(size=(2, 256))

parts = list(x)  # split
transformed = [weight * part for weight, part in zip(w, parts, strict=True)]
aggregated = sum(transformed)

print(f"in three steps {aggregated:.12f}, at once {w @ x:.12f}")
# Two sums of n products, each in its own order, differ by at most n roundings
# each of the sum of the products' sizes.
rounding = 2 * len(x) * np.finfo("float64").eps * (abs(w) @ abs(x))
assert abs(aggregated - w @ x) <= rounding

# %% [markdown]
# ## A network in the neuron
#
# Now keep the three steps and put something larger in the place of "scaled by a
# weight". The paper calls this a *network in neuron*: each transform is a small
# network of its own,
#
# $$F(x) = \sum_{i=1}^{C} T_i(x).$$
#
# The number of transforms, *C*, is the **cardinality**. A neuron's is the
# length of its input. Here it is a number to choose.
#
# Each `T` of ResNeXt is a *bottleneck*: a matrix brings the 256 channels of a
# pixel down to *d* channels, a second one works on these, a third one goes back
# up to 256. *d* is the **width** of a path. In the first stage of ResNeXt-50
# there are 32 paths of width 4. (In the real block the second matrix is a 3x3
# convolution that also looks at the neighbouring pixels. We leave that out for
# a moment, so that everything is plain matrices.)

# %%
cardinality, width, channels = 32, 4, 256
down = generator.normal(size=(cardinality, channels, width))
middle = generator.normal(size=(cardinality, width, width))
up = generator.normal(size=(cardinality, width, channels))


def relu(x):
    return np.maximum(x, 0)


def transform(x, i):
    """One path: 256 channels, to 4, to 4, to 256."""
    return relu(relu(x @ down[i]) @ middle[i]) @ up[i]


as_a_sum = sum(transform(x, i) for i in range(cardinality))
print(f"{cardinality} paths, a result of {as_a_sum.size} channels")

# %% [markdown]
# The two pictures show the neuron and the block in the same way: an input at
# the top, one column a path, the sum at the bottom. The block also has a
# **shortcut**, which carries its input past the paths: the result is
# `x + F(x)`. That part comes from ResNet.


# %%
def draw_paths(ax, title, paths, above, below, highlight=ORANGE):
    """Columns of boxes between two circles; [] is a shortcut, None dots."""
    x = np.arange(len(paths)) - (len(paths) - 1) / 2
    most = max(len(path or ()) for path in paths)
    y = np.arange(most, 0, -1.0)
    line = {"color": "#333333", "lw": 1, "zorder": 1}
    for place, path in zip(x, paths, strict=True):
        if path is None:
            ax.text(place, (most + 1) / 2, "...", ha="center", fontsize=14)
            continue
        ax.plot([0, place, place, 0], [most + 1, most + 0.6, 0.4, 0], **line)
        for height, label in zip(
            y[(most - len(path)) // 2 :], path, strict=False
        ):
            ax.text(
                place,
                height,
                label,
                ha="center",
                va="center",
                fontsize=8,
                bbox={"boxstyle": "round", "fc": "white", "ec": highlight},
            )
    for height, label in ((most + 1, above), (0, below)):
        ax.text(
            0,
            height,
            label,
            ha="center",
            va="center",
            fontsize=8,
            bbox={"boxstyle": "round", "fc": "#eeeeee", "ec": "#333333"},
        )
    ax.set(xlim=(x[0] - 0.7, x[-1] + 0.7), ylim=(-0.5, most + 1.5))
    ax.set_title(title, fontsize=10)
    ax.axis("off")


path = ["256 to 4", "4 to 4", "4 to 256"]
figure, axes = plt.subplots(
    1, 2, figsize=(10, 3.2), width_ratios=(4, 5), layout="constrained"
)
draw_paths(
    axes[0],
    "A neuron: an inner product",
    [["times w1"], ["times w2"], None, ["times w256"]],
    "x: 256 numbers",
    "sum: 1 number",
    BLUE,
)
draw_paths(
    axes[1],
    "A block: 32 paths and a shortcut",
    [[], path, path, None, path],
    "x: 256 channels",
    "sum: 256 channels",
)
plt.show()

# %% [markdown]
# ### The same sum as three matrices
#
# Thirty-two small products are slow, one large product is fast. So we look for
# large matrices that do the work of all paths:
#
# - The first matrices side by side bring `x` to all 32 x 4 = 128 channels.
# - The second ones must not mix paths. On the diagonal of a 128 x 128 matrix,
#   with zeros around them, they do not. A convolution with such a matrix is a
#   **grouped convolution**, and needs not store or multiply the zeros.
# - The last matrices on top of each other take 128 channels up to 256. Summing
#   over the rows sums over the paths: the aggregation comes for free.

# %%
wide_down = np.concatenate(down, axis=1)  # 256 x 128
diagonal = np.zeros((cardinality * width, cardinality * width))
for i in range(cardinality):
    place = slice(i * width, (i + 1) * width)
    diagonal[place, place] = middle[i]
wide_up = np.concatenate(up, axis=0)  # 128 x 256

at_once = relu(relu(x @ wide_down) @ diagonal) @ wide_up
difference = abs(at_once - as_a_sum).max()
print(f"values up to {abs(as_a_sum).max():.0f}, difference {difference:.0e}")
# Each of the three sums rounds once for each of its terms, by at most eps times
# the sum of all absolute values.
sizes = abs(x) @ abs(wide_down) @ abs(diagonal) @ abs(wide_up)
terms = channels + cardinality * width + cardinality * width
assert difference <= 2 * terms * np.finfo("float64").eps * sizes.max()

# %%
figure, axes = plt.subplots(
    1, 3, figsize=(10, 3.6), width_ratios=(2, 2, 4), layout="constrained"
)
for ax, matrix, title in zip(
    axes,
    (wide_down, diagonal, wide_up),
    ("down: 256 x 128", "middle: 128 x 128", "up: 128 x 256"),
    strict=True,
):
    ax.imshow(matrix != 0, cmap="Oranges", vmin=0, vmax=1.4)
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="output channel", ylabel="input channel")
plt.show()

stored = middle.size
print(f"the middle stores {stored} of {diagonal.size} numbers")
assert np.count_nonzero(diagonal) == stored == diagonal.size // cardinality

# %% [markdown]
# Where a matrix has numbers it is orange. The first and the last are full, the
# middle one has 32 blocks of 4 x 4 on its diagonal and is empty elsewhere. That
# is why paths are cheap: of the middle matrix, one in 32 numbers is left, and
# what is saved pays for more channels.

# %% [markdown]
# ### What a block costs
#
# A path of width *d* has 256*d* weights to go down, 9*d*² in its 3x3
# convolution, and 256*d* to go up. All *C* paths have
#
# $$C \,(256\,d + 3 \cdot 3 \cdot d \cdot d + 256\,d)$$
#
# weights (equation 4 of the paper). For each cardinality, the paper chose the
# width that keeps this at about 70 thousand. Let us compute it, and count the
# weights of the second block of the network itself. Multiply-adds follow: each
# weight is used once at each of the 56 x 56 pixels of this stage.

# %%
print("paths  width  equation 4  counted  multiply-adds")
for c, d in ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4)):
    formula = c * (256 * d + 3 * 3 * d * d + 256 * d)
    network = keras_resnext.ResNeXt50(weights=None, cardinality=c, base_width=d)
    layers = keras_resnext.count_complexity(network).by_layer
    block = [layers[f"conv2_block2_{i}_conv"] for i in (1, 2, 3)]
    counted = sum(layer.params for layer in block)
    multiply_adds = sum(layer.multiply_adds for layer in block)
    print(f"{c:5}  {d:5}  {formula:10,}  {counted:7,}  {multiply_adds:13,}")
    assert counted == formula
    assert multiply_adds == formula * 56 * 56

# %% [markdown]
# The first row is the block of ResNet-50: one path of width 64. All five cost
# the same to within 3 %. Which is the most accurate is the subject of
# [04_cardinality](04_cardinality.ipynb).

# %% [markdown]
# ## Three forms of the real block
#
# The package builds blocks in each of the paper's three forms (Fig. 3):
#
# | form | what it spells out | made for |
# |---|---|---|
# | `"branches"` (a) | every path by itself, then a sum | reading |
# | `"concatenated"` (b) | paths joined before the last 1x1 | reading |
# | `"grouped"` (c) | all paths at once, a grouped convolution | running |
#
# We showed above, with matrices, why they are equal. Now let us see it in a
# trained network, the one that is installed with the package, on photographs of
# clothes that it never saw. Random weights would be a weaker test: their batch
# norms have the mean 0 and the variance 1, and mixing up two of them would
# change nothing.
#
# `convert_form` rewrites a built model and deals the weights out to the paths.
# If all that differs between the forms is the order of additions, differences
# must be as small as rounding errors, and they must shrink by about 2²⁹ when
# we compute in float64, whose numbers have 29 more binary digits.

# %%
classifier = keras_resnext.Classifier.load(
    "resnext29_8x4d_f64", "fashion_mnist"
)
clothes = open_dataset("fashion_mnist")
clothes.prepare()
pixels, labels = read_images(clothes, "test", classifier.transform, count=100)
images = classifier.transform.normalize(pixels)


def forms_of(dtype):
    """The trained network in its three forms, without the softmax."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    grouped = keras_resnext.ResNeXt(
        depths=(3, 3, 3),
        cardinality=8,
        base_width=4,
        filters=64,
        stem="cifar",
        input_shape=(28, 28, 3),
        classes=10,
        classifier_activation=None,
    )
    keras.config.set_dtype_policy(policy)
    grouped.set_weights(classifier.model.get_weights())
    return {
        "grouped": grouped,
        "concatenated": keras_resnext.convert_form(grouped, "concatenated"),
        "branches": keras_resnext.convert_form(grouped, "branches"),
    }


differences = {}
for dtype in ("float32", "float64"):
    forms = forms_of(dtype)
    logits = {
        form: np.asarray(model(images, training=False))
        for form, model in forms.items()
    }
    for form, model in forms.items():
        right = (logits[form].argmax(-1) == labels).sum()
        difference = abs(logits[form] - logits["grouped"]).max()
        differences[form, dtype] = difference
        print(
            f"{dtype} {form:12} {len(model.layers):3} layers, "
            f"{model.count_params():,} weights, {right} of 100 right, "
            f"difference {difference:.0e}"
        )

# %%
# Each convolution sums as many products as its kernel has inputs, and each
# addition may round. The sums of all layers, one after the other:
terms = sum(
    np.prod(layer.kernel.shape[:-1])
    for layer in forms["grouped"].layers
    if hasattr(layer, "kernel")
)
largest = abs(logits["grouped"]).max()
for (_, dtype), difference in differences.items():
    assert difference <= terms * np.finfo(dtype).eps * largest
for form in ("concatenated", "branches"):
    shrunk = differences[form, "float32"] / differences[form, "float64"]
    print(f"{form}: {shrunk:.0e} times smaller in float64")
    # 2**29 but for the luck of the errors' signs: both are maxima of sums of
    # thousands of roundings, which may cancel more in one than in the other.
    assert 2**24 < shrunk < 2**34
predictions = {form: tuple(y.argmax(-1)) for form, y in logits.items()}
assert len(set(predictions.values())) == 1

# %% [markdown]
# The same answers, the same number of weights, up to five and a half times as
# many layers, and differences that are nothing but rounding. So you can think
# in branches and compute in groups.

# %% [markdown]
# ## One family
#
# *Split, transform, merge* was not new; Inception had it. ResNeXt took each of
# its ideas from a relative:
#
# - **VGG** (2014): stack blocks of the same shape. One simple rule instead of
#   hundreds of numbers to choose.
# - **Inception** (2014, its third version 2015): split a block into paths,
#   transform each in its own way, merge by concatenation. Accurate for its
#   cost, but every path of every block is designed by hand.
# - **ResNet** (2015): VGG's repetition, with a shortcut around each block, so
#   that very deep networks train.
# - **ResNeXt** (2016): Inception's split, transform and merge, with paths that
#   are all alike, in ResNet's blocks. What Inception chose by hand becomes one
#   number, the cardinality.
# - **Xception** (2016): the other end of that axis. Each channel is a path of
#   its own: a *depthwise* convolution, followed by a 1x1 convolution.
#
# `keras.applications` has the other four. We do not draw their blocks from
# memory but read them from the models: from where paths merge, a walk back
# along the layers to where they part.


# %%
def paths_into(model, merge):
    """The convolutions on each path into a layer, from where paths part."""
    producers = {layer.output.name: layer for layer in model.layers}
    readers = {}
    for layer in model.layers:
        for tensor in inputs_of(layer):
            readers[tensor.name] = readers.get(tensor.name, 0) + 1

    def walk(tensor):
        layer = producers[tensor.name]
        if readers[tensor.name] > 1 or isinstance(layer, pools):
            return [[]]
        before = [path for x in inputs_of(layer) for path in walk(x)]
        return [path + labels_of(layer) for path in before]

    pools = (keras.layers.MaxPooling2D, keras.layers.InputLayer)
    return [path for x in inputs_of(merge) for path in walk(x)]


def inputs_of(layer):
    if isinstance(layer, keras.layers.InputLayer):
        return []
    return layer.input if isinstance(layer.input, list) else [layer.input]


def labels_of(layer):
    """What a layer does to channels, in a word or two."""
    if isinstance(layer, keras.layers.SeparableConv2D):
        return ["3x3\nper channel", f"1x1, {layer.filters}"]
    if isinstance(layer, keras.layers.AveragePooling2D):
        return ["mean\n3x3"]
    if isinstance(layer, keras.layers.Conv2D):
        return ["{}x{}, {}".format(*layer.kernel_size, layer.filters)]
    return []


relatives = {
    name: getattr(keras.applications, name)(weights=None)
    for name in ("VGG16", "InceptionV3", "ResNet50", "Xception")
}
# The first stage of ResNeXt-50, in the form that shows its paths.
stage = keras_resnext.ResNeXt(
    (2,), 32, 4, form="branches", weights=None, input_shape=(224, 224, 3)
)
xception_sums = [
    layer
    for layer in relatives["Xception"].layers
    if isinstance(layer, keras.layers.Add)
]
blocks = {
    "VGG16": (relatives["VGG16"], "block3_pool"),
    "InceptionV3": (relatives["InceptionV3"], "mixed0"),
    "ResNet50": (relatives["ResNet50"], "conv2_block2_add"),
    "ResNeXt50": (stage, "conv2_block2_add"),
    "Xception": (relatives["Xception"], xception_sums[3].name),
}
paths = {}
for name, (model, merge) in blocks.items():
    found = paths_into(model, model.get_layer(merge))
    paths[name] = sorted(found, key=len)  # a shortcut first
    kinds = {tuple(path) for path in found if path}
    print(
        f"{name:11} paths: {sum(map(bool, found)):2}, different ones: "
        f"{len(kinds)}, shortcut: {'yes' if [] in found else 'no'}"
    )
assert len(paths["InceptionV3"]) == 4
assert paths["ResNeXt50"][0] == []
assert paths["ResNeXt50"][1:] == [["1x1, 4", "3x3, 4", "1x1, 256"]] * 32

# %%
figure = plt.figure(figsize=(10.5, 7.2), layout="constrained")
axes = figure.subplot_mosaic(
    [
        ["VGG16"] * 3 + ["InceptionV3"] * 7 + ["ResNet50"] * 4,
        ["ResNeXt50"] * 9 + ["Xception"] * 5,
    ]
)
few = paths["ResNeXt50"]
shown = paths | {"ResNeXt50": [*few[:3], None, few[-1]]}
shapes = {
    "VGG16": ("128 channels", "max pooling"),
    "InceptionV3": ("192 channels", "concatenate: 256"),
    "ResNet50": ("256 channels", "add: 256"),
    "ResNeXt50": ("256 channels", "add: 256"),
    "Xception": ("728 channels", "add: 728"),
}
titles = {"ResNeXt50": "ResNeXt50: 32 equal paths"}
for name, ax in axes.items():
    draw_paths(
        ax,
        titles.get(name, name),
        shown[name],
        *shapes[name],
        ORANGE if name == "ResNeXt50" else BLUE,
    )
plt.show()

# %% [markdown]
# One typical block of each network, from input (top) to output (bottom); a
# number after a comma is a number of channels. VGG has one path, Inception four
# different ones, ResNet one and a shortcut, ResNeXt thirty-two equal ones and a
# shortcut, Xception a shortcut and three pairs of convolutions, in which the
# 3x3 convolution sees each channel by itself.
#
# A depthwise convolution is nothing but a grouped convolution with one channel
# a path. To see it, we use one 3x3 kernel of 728 channels both ways:

# %%
inputs = generator.normal(size=(1, 19, 19, 728)).astype("float32")
depthwise = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)
grouped = keras_resnext.layers.GroupedConv2D(
    728, 3, groups=728, padding="same", use_bias=False
)
for layer in (depthwise, grouped):
    layer.build(inputs.shape)
(kernel,) = depthwise.get_weights()  # (3, 3, channels, 1)
grouped.set_weights([kernel.transpose(0, 1, 3, 2)])  # (3, 3, 1, channels)
one, other = np.asarray(depthwise(inputs)), np.asarray(grouped(inputs))
difference = abs(one - other).max()
print(f"values up to {abs(one).max():.2f}, difference {difference:.0e}")
# Sums of nine products, in another order.
sizes = abs(kernel).sum(axis=(0, 1)).max() * abs(inputs).max()
assert difference <= 2 * 9 * np.finfo("float32").eps * sizes

# %% [markdown]
# So ResNet, ResNeXt and Xception lie on one line: ResNet has cardinality 1,
# ResNeXt 32, Xception as many as there are channels.

# %% [markdown]
# ## What they cost on paper
#
# `count_complexity` counts three things for one image, at the image size for
# which each network was published:
#
# - **parameters**: the numbers that training finds. They decide the size of the
#   file.
# - **multiply-adds**: how often two numbers are multiplied and added in
#   convolutions and dense layers; many papers call them FLOPs.
# - **activations**: how many numbers the convolutions put out. Each must be
#   written to memory and read again, so that they often say more about time
#   than multiply-adds do.

# %%
networks = relatives | {"ResNeXt50": keras_resnext.ResNeXt50(weights=None)}
costs = {
    name: keras_resnext.count_complexity(model)
    for name, model in networks.items()
}
print("network      pixels  parameters (M)  multiply-adds (G)  activations (M)")
for name, cost in costs.items():
    print(
        f"{name:11} {networks[name].input_shape[1]:7} "
        f"{cost.params / 1e6:15.1f} {cost.multiply_adds / 1e9:18.2f} "
        f"{cost.activations / 1e6:16.1f}"
    )
assert costs["ResNeXt50"].params == 25_028_904
assert costs["ResNeXt50"].multiply_adds == 4_230_479_872

# %% [markdown]
# - VGG16 has more than five times as many parameters as the others, most of
#   them in its first dense layer.
# - ResNeXt-50 has fewer parameters than ResNet-50 and 10 % more multiply-adds.
#   Most of that difference is not cardinality: Keras' ResNet-50 halves the
#   image in the first 1x1 convolution of a stage's first block, ours and the
#   paper's in the 3x3 after it. Our own `ResNet50` does the latter.
# - InceptionV3 and Xception look at images of 299 pixels, which have 1.8 times
#   the area of 224. At their size, ResNeXt-50 would cost more, too.

# %%
first_dense = costs["VGG16"].by_layer["fc1"].params / costs["VGG16"].params
print(f"VGG16's first dense layer: {first_dense:.0%} of its parameters")
assert first_dense > 0.5

ours = keras_resnext.ResNet50(weights=None)
adds = keras_resnext.count_complexity(ours).multiply_adds
print(f"our ResNet50: {adds / 1e9:.2f} G multiply-adds")
assert costs["ResNet50"].multiply_adds < adds < costs["ResNeXt50"].multiply_adds

larger = keras_resnext.ResNeXt50(weights=None, input_shape=(299, 299, 3))
adds = keras_resnext.count_complexity(larger).multiply_adds
print(f"our ResNeXt50 at 299 pixels: {adds / 1e9:.2f} G multiply-adds")

# %% [markdown]
# ## What they cost here
#
# Now we run all five on this machine, one image at a time and eight at a time,
# each as a plain `tf.function`, with nothing folded or tuned.
#
# Each network gets a process of its own, because a process's peak of memory
# never falls: a second network would start at the peak of the first. In it, we
# read the peak after importing the libraries, after the images one by one, and
# after those eight by eight, which can only be higher. Weights start at zero,
# because drawing random numbers would need three times the memory of the
# largest weight for a moment. Time and memory do not depend on their values.


# %%
def measure(name):
    """Print time and memory of a network as JSON; run in a process."""
    import resource
    import time
    from unittest import mock

    import keras
    import tensorflow as tf

    def peak():
        """The most memory this process has had, in MB."""
        try:
            # On Linux, `ru_maxrss` starts at that of the parent process.
            with open("/proc/self/status") as status:
                (line,) = (x for x in status if x.startswith("VmHWM:"))
            return int(line.split()[1]) / 1000
        except OSError:
            unit = 1e6 if sys.platform == "darwin" else 1e3
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    def zeros(self, shape, dtype=None, **kwargs):
        return keras.ops.zeros(shape, dtype)

    result = {"libraries": peak()}
    builder = getattr(keras.applications, name, None)
    builder = builder or getattr(keras_resnext, name)
    scaled, normal = (
        mock.patch.object(initializer, "__call__", zeros)
        for initializer in (
            keras.initializers.VarianceScaling,
            keras.initializers.RandomNormal,
        )
    )
    with scaled, normal:
        model = builder(weights=None)
    infer = tf.function(lambda images: model(images, training=False))
    for batch in (1, 8):
        images = tf.random.uniform((batch, *model.input_shape[1:]))
        infer(images).numpy()  # makes the graph, and warms up
        seconds = []
        while len(seconds) < 3 or (len(seconds) < 20 and sum(seconds) < 4):
            start = time.perf_counter()
            infer(images).numpy()
            seconds.append(time.perf_counter() - start)
        result[batch] = {"seconds": seconds, "peak": peak()}
    print(json.dumps(result))


imports = "import json\nimport sys\nimport keras_resnext\n"
measured = {}
for name in networks:
    program = f"{imports}{inspect.getsource(measure)}measure({name!r})"
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    measured[name] = json.loads(child.stdout.splitlines()[-1])

# %%
print("                  batch 1                batch 8")
print("network      time (ms)  memory (MB)  time (ms)  memory (MB)  ms / G")
times, memory = {}, {}
for name, result in measured.items():
    for batch in (1, 8):
        some = result[str(batch)]
        times[name, batch] = 1e3 * np.median(some["seconds"])
        memory[name, batch] = some["peak"] - result["libraries"]
    rate = times[name, 8] / (8 * costs[name].multiply_adds / 1e9)
    print(
        f"{name:11} {times[name, 1]:10.0f} {memory[name, 1]:12.0f} "
        f"{times[name, 8]:10.0f} {memory[name, 8]:12.0f} {rate:7.1f}"
    )
    weights = 4 * networks[name].count_params() / 1e6
    assert memory[name, 8] >= memory[name, 1] >= weights

# %%
figure, axes = plt.subplots(2, 2, figsize=(10, 5), layout="constrained")
for row, batch in zip(axes, (1, 8), strict=True):
    for ax, values, label in zip(
        row, (times, memory), ("time (ms)", "memory (MB)"), strict=True
    ):
        bars = ax.barh(
            list(networks),
            [values[name, batch] for name in networks],
            color=[
                ORANGE if name == "ResNeXt50" else GREY for name in networks
            ],
        )
        ax.bar_label(bars, fmt=" {:,.0f}", fontsize=8)
        ax.invert_yaxis()
        ax.margins(x=0.12)
        ax.set_title(f"batch {batch}: {label}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Medians of one run, in the order of the table; ResNeXt-50 is orange. Memory is
# the process's peak above what the libraries take, and contains the weights
# once: they are most of VGG16's at batch 1. What batch 8 adds is mostly
# activations.
#
# The last column of the table divides the time of batch 8 by the multiply-adds,
# and is not the same for all. A depthwise 3x3 convolution, as in Xception, uses
# each number that it reads nine times; a dense one uses it nine times for each
# of its filters. The first waits for memory more. Multiply-adds are a fair
# first guess of time, no more: measure on the machine that you will use.

# %% [markdown]
# ## What they achieve
#
# Accuracies are not ours to measure in five minutes. These are published: top-1
# errors on the validation images of ImageNet (in how many of 100 photographs
# the most probable of 1000 classes is wrong), one crop from the centre of each,
# from the table in the README of
# [keras-applications 1.0.8](https://github.com/keras-team/keras-applications).
# That release still had ResNeXt, so all five stand in one table. It says how
# many million parameters each network has, batch norm's statistics included,
# which lets us check that we built the same ones.

# %%
published = {  # top-1 error (%), parameters (M)
    "VGG16": (28.732, 138.4),
    "InceptionV3": (22.102, 23.9),
    "ResNet50": (25.072, 25.6),
    "Xception": (20.994, 22.9),
    "ResNeXt50": (22.260, 25.1),
}
for name, (_, millions) in published.items():
    assert round(networks[name].count_params() / 1e6, 1) == millions

# Names stand to the right of the dots, but where there is no room.
offsets = {"ResNeXt50": (0, 9), "VGG16": (0, -21)}
figure, axes = plt.subplots(
    1, 2, figsize=(10, 4), layout="constrained", sharey=True
)
for name, (error, millions) in published.items():
    color = ORANGE if name == "ResNeXt50" else BLUE
    for ax, cost in zip(
        axes,
        (costs[name].multiply_adds / 1e9, times[name, 1]),
        strict=True,
    ):
        ax.scatter(cost, 100 - error, s=4 * millions, color=color, alpha=0.8)
        ax.annotate(
            name,
            (cost, 100 - error),
            xytext=offsets.get(name, (8, -3)),
            textcoords="offset points",
            ha="center" if name in offsets else "left",
            fontsize=9,
        )
for ax, label in zip(
    axes,
    ("multiply-adds (G)", "time of one image, measured above (ms)"),
    strict=True,
):
    ax.set(xlabel=label, xlim=(0, 1.15 * ax.get_xlim()[1]), ylim=(69, 81))
    ax.grid(alpha=0.2)
axes[0].set_ylabel("top-1 accuracy as published (%)")
plt.show()

gain = published["ResNet50"][0] - published["ResNeXt50"][0]
print(f"ResNeXt50 beside ResNet50: {gain:+.1f} points of accuracy")

# %% [markdown]
# Accuracy against cost, as multiply-adds on the left and as measured time on
# the right; the area of a dot shows the parameters. Up and to the left is
# better. VGG16 is the most expensive and the least accurate. ResNeXt-50 stands
# right above ResNet-50 on the left: nearly the same multiply-adds, and 2.8
# points more. Xception and InceptionV3 are about as accurate or better, with
# larger images.
#
# Read such a plot with care. The networks were trained by different people with
# different recipes. The fair comparison is that of the paper, which trained
# ResNet-50 and ResNeXt-50 alike: errors of 23.9 % and 22.2 % (its table 3),
# 1.7 points apart.

# %% [markdown]
# ## Where to go next
#
# - [04_cardinality](04_cardinality.ipynb): is it the cardinality that helps?
#   The paper's answer, and that of a small study of this project.
# - `keras_resnext.ResNeXt` builds any member of the family from cardinality 1
#   (ResNet) to one channel a path: `ResNeXt((3, 4, 6, 3), 128, 1)`.
# - `keras-resnext summary resnext50` prints the cost by stage, and with
#   `--paper` every network of the paper's tables.
