# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Cardinality
#
# A network that may grow can become deeper, wider, or get more paths in each
# block. The ResNeXt paper (Xie et al.,
# [arXiv 1611.05431](https://arxiv.org/abs/1611.05431)) says that more paths are
# the best use of additional cost. This notebook shows what the paper measured,
# repeats its questions with small networks on Fashion-MNIST, and asks how sure
# the answers are. The small networks were trained beforehand: this is a *study*
# whose records are in the repository. We read them, do the statistics step by
# step, and train one of the networks live, for a tenth as long.
#
# It needs `pip install '.[notebooks]'` in a clone of the repository, which has
# the records, and Fashion-MNIST as `make fashion` prepares it. What a
# path and a block are is explained in [02_anatomy](02_anatomy.ipynb).

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import base64
import dataclasses
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import keras_resnext
from keras_resnext.paper import TABLES
from keras_resnext.training import Recipe
from keras_resnext.training import evaluate
from keras_resnext.training import train

ORANGE, BLUE, GREY = "#c2571a", "#4a6fa5", "#9aa5b1"

# %% [markdown]
# ## The paper's question
#
# **Cardinality** is the number *C* of paths in a block, **width** the number
# *d* of channels of one path. A block of ResNet-50 is one path of 64 channels,
# `1x64d`; ResNeXt-50 has 32 paths of 4 channels, `32x4d`. To compare them
# fairly, the cost must stay the same while *C* grows. The weights of one block
# of the first stage are
#
# $$C \,(256\,d + 9\,d^2 + 256\,d),$$
#
# (equation 4), so for each *C* there is one *d* that costs as much as `1x64d`.
# We solve for it, and compare with the widths that the paper took.

# %%
budget = 2 * 256 * 64 + 9 * 64**2
print(f"1x64d has {budget:,} weights")
for cardinality, chosen in ((2, 40), (4, 24), (8, 14), (32, 4)):
    # The positive root of 9 d^2 + 512 d - budget / C.
    d = (-512 + (512**2 + 36 * budget / cardinality) ** 0.5) / 18
    weights = cardinality * (512 * chosen + 9 * chosen**2)
    print(
        f"C = {cardinality:2}: d = {d:4.1f} would cost the same, "
        f"{cardinality}x{chosen}d has {weights:,} weights"
    )
    assert abs(d - chosen) < 0.5  # the nearest whole number
    assert abs(weights / budget - 1) < 0.03

# %% [markdown]
# With more paths, each must be narrower, but not in proportion: 32 paths of
# width 4 have 128 channels together, twice those of `1x64d`. That is the trade.
# Paths that do not look at each other's channels save weights in the 3x3
# convolution, and buy channels with them.
#
# ## The paper's answer
#
# The paper trained these networks on ImageNet, with 50 and with 101 layers
# (its table 3; `keras_resnext.paper` has the published errors).

# %%
table = TABLES["Table 3: cardinality against width"]
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for layers, color, marker in ((50, ORANGE, "o"), (101, BLUE, "s")):
    rows = [row for row in table if f"-{layers}," in row.label]
    names = [row.label.split(", ")[1] for row in rows]
    errors = [row.top1 for row in rows]
    ax.plot(names, errors, marker + "-", color=color, label=f"{layers} layers")
    for x, error in enumerate(errors):
        ax.annotate(
            f"{error:.1f}",
            (x, error),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    print(f"{layers} layers: {errors[-1] - errors[0]:+.1f} points")
ax.set(
    xlabel="cardinality x width, at constant cost",
    ylabel="top-1 error on ImageNet (%)",
    ylim=(20.5, 24.6),
)
ax.legend()
ax.grid(alpha=0.2)
plt.show()

# %% [markdown]
# Errors as published: from left to right there are more and narrower paths, and
# both lines fall, by 1.7 points with 50 layers and 0.8 with 101.
#
# Then the paper doubled the cost of ResNet-101 in three ways (its table 4):

# %%
table = TABLES[
    "Table 4: cardinality against depth and width, at twice the cost"
]
for row in table:
    print(f"{row.label:26} {row.top1:.1f} %")

# %% [markdown]
# The first two networks are the starting points. Going deeper (ResNet-200) or
# wider (`1x100d`) helped less than more paths (`2x64d`, `64x4d`). Even the
# second starting point, at half their cost, errs less than the deeper and the
# wider one.
#
# Two things are worth noticing before we believe that of other networks and
# other data. The tables have one number for each network, and do not say how
# much it would change if the same network were trained again. And ImageNet has
# a thousand classes and 1.28 million images, which is a different problem from
# most.

# %% [markdown]
# ## The study
#
# The study asks the same questions on a scale where each network can be trained
# several times: Fashion-MNIST, 60,000 images of clothes in ten classes, and
# 10,000 more to test. The networks are narrow. `resnext11_32x1d_f64` has 11
# layers and 32 paths of width 1, and its first stage puts out 64 channels
# (`f64`) where the paper's have 256.
#
# Each line of `benchmarks/results/study.jsonl` is a finished training. The next
# cell looks for the file in the folder of this notebook and those above it,
# and beside the installed package.


# %%
def find_records():
    """The study's records in the clone that we run in or that is installed."""
    here, package = Path.cwd(), Path(keras_resnext.__file__).parent
    for folder in (here, *here.parents, package.parent):
        path = folder / "benchmarks" / "results" / "study.jsonl"
        if path.exists():
            return path
    raise FileNotFoundError(
        "benchmarks/results/study.jsonl was not found; run this notebook in a "
        "clone of the repository."
    )


records = [json.loads(line) for line in find_records().open()]


def right_images(record):
    """Which test images a network classified right, bool (10000,)."""
    packed = np.frombuffer(base64.b64decode(record["right"]), "uint8")
    return np.unpackbits(packed, count=record["images"]).astype(bool)


runs = {}  # (model, shortcuts) -> seed -> record
for record in records:
    network = record["model"], record["residual"]
    runs.setdefault(network, {})[record["seed"]] = record
    # The stored bits must give the stored error, a float32.
    error = 100 * (1 - right_images(record).mean())
    assert abs(error - record["error"]) < 100 * np.finfo("float32").eps
print(f"{len(records)} trainings of {len(runs)} networks")

# %% [markdown]
# All runs have the same recipe; only the network and the **seed** differ. The
# seed decides the starting weights, the order of the images, and how each is
# shifted and flipped. These are the fields of the recipe that differ from the
# defaults of `Recipe`:

# %%
recipe = records[0]["recipe"]
assert all(record["recipe"] == recipe for record in records)
defaults = json.loads(json.dumps(dataclasses.asdict(Recipe())))
changed = {k: v for k, v in recipe.items() if v != defaults[k]}
print(changed)
print({record["device"] for record in records}, records[0]["backend"])


# %% [markdown]
# ### Every run
#
# Here is each network with its cost and its test error: the mean over seeds,
# and the **standard deviation**, which says how far single runs typically lie
# from the mean.


# %%
def title(network):
    model, residual = network
    name = model.removeprefix("resnext").removesuffix("_f64")
    return name if residual else f"{name}, no shortcuts"


errors = {
    network: np.array([r["error"] for r in seeds.values()])
    for network, seeds in runs.items()
}
print("layers_paths            multiply-adds (M)  seeds  error (%)")
for network, values in errors.items():
    cost = next(iter(runs[network].values()))["multiply_adds"] / 1e6
    print(
        f"{title(network):23} {cost:17.1f} {len(values):6} "
        f"{values.mean():6.2f} ± {values.std(ddof=1):.2f}"
    )

# %%
constant = ("1x16d", "2x10d", "4x6d", "8x3d", "32x1d")
constant = [(f"resnext11_{paths}_f64", True) for paths in constant]
twice = ("20_1x16d", "20_32x1d", "11_1x25d", "11_2x16d", "11_64x1d")
twice = [(f"resnext{name}_f64", True) for name in twice]
figure, axes = plt.subplots(
    1, 2, figsize=(10, 4), layout="constrained", sharey=True
)
for ax, networks, label in zip(
    axes,
    (constant, twice),
    ("11 layers, at constant cost", "at about twice that cost"),
    strict=True,
):
    for x, network in enumerate(networks):
        values = errors[network]
        ax.plot([x] * len(values), values, "x", color=BLUE, alpha=0.7)
        ax.errorbar(
            x,
            values.mean(),
            values.std(ddof=1),
            fmt="o",
            color=ORANGE,
            capsize=5,
        )
    names = [title(network) for network in networks]
    if networks is constant:
        names = [name.removeprefix("11_") for name in names]
    ax.set_xticks(range(len(names)), names)
    ax.set(xlabel=label, xlim=(-0.5, len(names) - 0.5))
    ax.grid(alpha=0.2)
axes[0].set_ylabel("test error on Fashion-MNIST (%)")
plt.show()

# %% [markdown]
# A cross is a run, a dot the mean of a network, a bar its standard deviation.
# On the left are the same cost and more, narrower paths from left to right: no
# clear descent, and runs of one network lie as far apart as networks do. On the
# right, the two networks with 20 layers are far below the others.

# %% [markdown]
# ## Is a difference real?
#
# 32 paths have a lower mean error than one path. Would they again, with other
# seeds and other test images? Both are left to chance, and so there are two
# tests.
#
# ### Other seeds: a paired t-test
#
# We compare networks seed by seed. Two runs of one seed saw the same images in
# the same order, shifted and flipped alike, which takes away what was luck with
# these. A **paired t-test** then asks whether the mean of the differences is
# far from zero, measured by how much they vary.

# %%
one, other = ("resnext11_32x1d_f64", True), ("resnext11_1x16d_f64", True)
seeds = sorted(runs[one].keys() & runs[other].keys())
differences = np.array(
    [runs[one][s]["error"] - runs[other][s]["error"] for s in seeds]
)
print("32x1d minus 1x16d, by seed:", differences.round(2))

spread = differences.std(ddof=1) / len(seeds) ** 0.5
t = differences.mean() / spread
p_seeds = 2 * stats.t.sf(abs(t), df=len(seeds) - 1)
print(f"mean {differences.mean():+.2f} ± {spread:.2f}, t = {t:.2f}, ", end="")
print(f"p = {p_seeds:.3f}")
assert np.isclose(p_seeds, stats.ttest_1samp(differences, 0).pvalue)

# %% [markdown]
# *p* is the probability of a mean as far from zero as this one, or farther, if
# in truth the networks were equally good. Small means: hard to explain by luck.
#
# ### Other test images: McNemar's test
#
# Two networks agree on most images. Only images that exactly one of them gets
# right count. If the networks were equally good, each such image
# would be a coin toss, and **McNemar's test** asks whether the coin looks fair.

# %%
for seed in seeds:
    first, second = (right_images(runs[n][seed]) for n in (one, other))
    better, worse = (first & ~second).sum(), (second & ~first).sum()
    p = stats.binomtest(int(better), int(better + worse)).pvalue
    print(
        f"seed {seed}: only 32x1d right {better}, only 1x16d right {worse}, "
        f"p = {p:.3f}"
    )

# %% [markdown]
# ### Five questions at once
#
# The usual limit is p < 0.05: one in twenty comparisons of equally good
# networks looks like a difference. We ask five questions, and five chances to
# be wrong would add up. **Bonferroni's correction** divides the limit by their
# number: each must reach p < 0.01. We call a difference *shown* if both p
# values are below it. Of McNemar's test, which gives one for each seed, the
# median counts.

# %%
published = {
    (row.model, row.residual): row.top1
    for rows in TABLES.values()
    for row in rows
}
plain, many = ("resnext11_1x16d_f64", True), ("resnext11_32x1d_f64", True)
twice_as_many = ("resnext11_64x1d_f64", True)
questions = {  # text: ours, and the paper's counterparts
    "32 paths instead of one": (
        (many, plain),
        (("resnext50", True), ("resnet50", True)),
    ),
    "no shortcuts, one path": (
        ((plain[0], False), plain),
        (("resnet50", False), ("resnet50", True)),
    ),
    "no shortcuts, 32 paths": (
        ((many[0], False), many),
        (("resnext50", False), ("resnext50", True)),
    ),
    "twice the cost: 64 paths\ninstead of more layers": (
        (twice_as_many, ("resnext20_1x16d_f64", True)),
        (("resnext101_64x4d", True), ("resnet200", True)),
    ),
    "twice the cost: 64 paths\ninstead of a wider path": (
        (twice_as_many, ("resnext11_1x25d_f64", True)),
        (("resnext101_64x4d", True), ("resnext101_1x100d", True)),
    ),
}
LEVEL = 0.05 / len(questions)


def p_text(p):
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def compare(one, other):
    """Mean difference of errors, its interval, and p of both tests."""
    seeds = sorted(runs[one].keys() & runs[other].keys())
    rights = [
        np.array([right_images(runs[n][s]) for s in seeds])
        for n in (one, other)
    ]
    first, second = (100 * (1 - right.mean(axis=1)) for right in rights)
    test = stats.ttest_rel(first, second)
    better = (rights[0] & ~rights[1]).sum(axis=1)
    worse = (rights[1] & ~rights[0]).sum(axis=1)
    p_images = np.median(
        [
            stats.binomtest(int(b), int(b + w)).pvalue
            for b, w in zip(better, worse, strict=True)
        ]
    )
    interval = test.confidence_interval(1 - LEVEL)
    return (first - second).mean(), interval, test.pvalue, p_images


answers = {}
for text, ((one, other), (theirs, their_other)) in questions.items():
    answers[text] = compare(one, other)
    mean, (low, high), p_seeds, p_images = answers[text]
    shown = p_seeds < LEVEL and p_images < LEVEL
    paper = published[theirs] - published[their_other]
    print(
        f"{text.replace(chr(10), ' ')}: {mean:+z.2f} points "
        f"({low:+.2f} to {high:+.2f}), {p_text(p_seeds)} over seeds, "
        f"{p_text(p_images)} over images: "
        f"{'SHOWN' if shown else 'not shown'}; the paper {paper:+.1f}"
    )

# %%
figure, ax = plt.subplots(figsize=(10, 4), layout="constrained")
for y, (text, (mean, (low, high), *_)) in enumerate(answers.items()):
    theirs, their_other = questions[text][1]
    paper = published[theirs] - published[their_other]
    first = y == 0
    ax.plot([low, high], [y, y], color=ORANGE, lw=3, alpha=0.5)
    ax.plot(
        mean,
        y,
        "o",
        color=ORANGE,
        label="this study, with 99 % interval" if first else None,
    )
    ax.plot(
        paper,
        y,
        "D",
        color=BLUE,
        label="the paper, on ImageNet" if first else None,
    )
ax.axvline(0, color="#333333", lw=1)
ax.set_yticks(range(len(answers)), list(answers))
ax.invert_yaxis()
ax.set(xlabel="difference of test errors in points; left of zero is better")
ax.grid(axis="x", alpha=0.2)
ax.legend(loc="upper right")
plt.show()

# %% [markdown]
# Dots are the study's mean differences, bars their intervals at the corrected
# level (99 %), diamonds the paper's differences on ImageNet. A bar that touches
# the line at zero shows nothing.
#
# - **32 paths instead of one, at constant cost:** not shown. The mean has the
#   paper's sign, and the interval contains zero.
# - **Without shortcuts:** no difference shown, where the paper found that
#   errors rise by 7.3 and 3.9 points. A possible reason: shortcuts help deep
#   networks to train, and with 11 layers there is only one block a stage. Nor
#   is the comparison quite fair, because each shortcut here has weights (it
#   changes the number of channels), and they go with it.
# - **Twice the cost:** more layers beat more paths here, by 1.1 points, and
#   that *is* shown. It is the opposite of the paper's order. Between more paths
#   and a wider path, nothing is shown.

# %% [markdown]
# ## Not shown is not shown to be zero
#
# How large a difference could so few seeds have shown? That is the **power** of
# the test, and we can find it by pretending: draw the errors of two networks
# whose true difference we know, with runs that deviate by 0.2 points (several
# networks above do), run the test, and repeat that 20,000 times. The power is
# how often the test finds the difference.

# %%
generator = np.random.default_rng(0)
REPEATS = 20_000


def power(difference, seeds, deviation=0.2):
    """How often a paired t-test over seeds finds a difference, at 1 %."""
    # The difference of two runs varies by the square root of two more.
    pairs = generator.normal(
        difference, deviation * 2**0.5, size=(REPEATS, seeds)
    )
    return (stats.ttest_1samp(pairs, 0, axis=1).pvalue < LEVEL).mean()


deltas = np.arange(0, 2.01, 0.1)
figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for seeds, color in ((3, GREY), (4, ORANGE), (10, BLUE), (30, "#333333")):
    curve = [power(delta, seeds) for delta in deltas]
    ax.plot(deltas, curve, color=color, label=f"{seeds} seeds each")
ax.axhline(0.8, color="#333333", lw=1, ls=":")
ax.text(2.0, 0.82, "four times in five", ha="right", fontsize=9)
ax.set(
    xlabel="true difference of errors (points)",
    ylabel="how often it is found",
    ylim=(0, 1.05),
)
ax.legend(loc="lower right")
ax.grid(alpha=0.2)
plt.show()

# Without a difference, the test must be wrong at its level, one in a hundred.
wrong = power(0, 4)
chance = (LEVEL * (1 - LEVEL) / REPEATS) ** 0.5  # standard deviation
print(f"no difference, 4 seeds: found in {wrong:.1%}")
assert abs(wrong - LEVEL) < 5 * chance
print(f"0.3 points, 4 seeds: found in {power(0.3, 4):.0%}")
print(f"1.1 points, 4 seeds: found in {power(1.1, 4):.0%}")
needed = next(n for n in range(4, 100) if power(0.3, n) >= 0.8)
print(f"0.3 points are found four times in five with {needed} seeds each")

# %% [markdown]
# The curves show how often a true difference would be found, for four numbers
# of seeds. With the study's four, a difference of one point is found most
# times, one of 0.3 points seldom. So the study can say that depth was
# worth more than paths *here*, and cannot say whether 32 paths are 0.3 points
# better than one.

# %% [markdown]
# ## Train one yourself
#
# Now one of the study's networks, live: `resnext11_32x1d_f64`, with 32 paths of
# a single channel. So that it does not take long on two cores, we train for
# **one epoch where the study trained for ten**. Everything else in the recipe
# is the study's, but for the warm-up, which is a tenth of the training in both.
#
# Other things differ, too. The study ran Keras on JAX on large GPUs, which
# round the factors of float32 products to fewer digits (TensorFloat-32), and
# its random numbers are others. So this is not one more seed of the study, and
# its error does not belong in the tables above. It shows what a run is.

# %%
short = changed | {"epochs": 1, "warmup_epochs": 0.1}
live = Recipe(**short, model=many[0])


def print_step(progress):
    """A sign of life, now and then."""
    if progress.step % 100 == 0:
        print(f"step {progress.step}: loss {progress.loss:.3f}")


folder = Path(tempfile.mkdtemp(prefix="resnext-cardinality-"))
run = train(live, folder, on_step=print_step)
print(f"{run.history[-1]['images_per_second']:.0f} images a second")
result = evaluate(keras_resnext.Classifier.load(folder), "fashion_mnist")

live_error = 100 * (1 - result.accuracy)
# Of n images, each right with the probability q.
sampling = (
    100 * (result.accuracy * (1 - result.accuracy) / result.examples) ** 0.5
)
print(
    f"error {live_error:.2f} % ± {sampling:.2f} on {result.examples:,} images"
)
assert result.examples == 10_000
# Better than guessing, and not better than ten times as much training.
assert errors[many].mean() < live_error < 90

# %%
figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for seed, record in runs[many].items():
    curve = 100 * (1 - np.array(record["curve"]))
    ax.plot(
        range(1, len(curve) + 1),
        curve,
        color=BLUE,
        alpha=0.7,
        label=None if seed else "the study's runs, by epoch",
    )
ax.plot(1, live_error, "o", color=ORANGE, ms=9, label="one epoch, live")
ax.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, None))
ax.legend()
ax.grid(alpha=0.2)
plt.show()

# %% [markdown]
# Blue lines are the study's four runs of this network, by epoch, the orange dot
# is ours. Ours may lie below the blue lines at epoch 1: its learning rate has
# already fallen to zero by then, and theirs is at its highest. They reach
# their final error only as their rate falls.
#
# And here is what our network thinks of twelve test images: the name that it
# gives, and in red, with the true name below it, where it is wrong.

# %%
figure, axes = plt.subplots(2, 6, figsize=(10, 4), layout="constrained")
numbers = np.arange(axes.size)
for ax, number, pixels in zip(
    axes.flat, numbers, result.images(numbers), strict=True
):
    predicted, true = (
        result.class_names[labels[number]]
        for labels in (result.predictions, result.labels)
    )
    ax.imshow(pixels.astype("uint8"))
    if predicted == true:
        ax.set_title(predicted, fontsize=10)
    else:
        ax.set_title(f"{predicted}\n(is: {true})", fontsize=10, color="red")
    ax.axis("off")
plt.show()

# %% [markdown]
# ## What to take from it
#
# - At constant cost, 32 paths were not shown to be better or worse than one
#   here. On ImageNet, with larger networks, the paper found them better.
# - More paths are no law. At twice the cost, more layers were worth more here,
#   and the study does not tell *why*: its networks have few layers, channels
#   and classes, ten epochs do not train them to the end, nothing was tuned, and
#   costs called constant differ by up to 14 %.
# - Before you believe a difference, train with several seeds, pair them, and
#   ask what your number of seeds can show at all.
#
# The study's own page, `benchmarks/results/study.md`, has the losses and all
# caveats; `python -m benchmarks study` adds runs to the records.
