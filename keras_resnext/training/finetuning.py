"""Fine-tuning: a recipe that adapts to a small data set, and its reasons."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from keras_resnext.classifier import Classifier
from keras_resnext.extras import suggest
from keras_resnext.names import block_name
from keras_resnext.names import parse_network
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.options import TrainOptions
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.run import Run
from keras_resnext.training.trainer import train
from keras_resnext.transforms import EvalTransform
from keras_resnext.variants import default_image_size
from keras_resnext.weights import convert
from keras_resnext.weights.hub import Repository
from keras_resnext.weights.load import fetch_source
from keras_resnext.weights.load import find_source
from keras_resnext.weights.read import open_weights
from keras_resnext.weights.registry import WeightsRecord

# Largest class / smallest class, from which classes are weighted.
IMBALANCE = 2.0
_LARGEST_BATCH = 32
# Statistics of fewer images are worse than those that come with the weights.
_LEAST_BATCH_FOR_STATISTICS = 16


@dataclasses.dataclass(frozen=True)
class FinetunePlan:
    """A recipe for fine-tuning, and why it is as it is.

    Args:
        recipe: The `Recipe`.
        reasons: What was chosen and why, a line each, ten at most.

    Example:

    >>> plan = plan_finetuning("photos/", "runs/new")
    >>> plan.recipe.save("mine.json")  # to edit, and to use with `train`
    """

    recipe: Recipe
    reasons: tuple[str, ...]


def finetune(
    dataset: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] = "imagenet",
    model: str | None = None,
    options: TrainOptions | None = None,
    on_plan: Callable[[FinetunePlan], None] | None = None,
    **arguments: Any,
) -> Run:
    """Train published weights on a data set of your own, or resume that.

    First the classifier alone, then the whole network at a lower rate, with
    settings that fit the data; see `plan_finetuning`. Called again with the
    same arguments, training resumes where it stopped.

    Args:
        dataset: A folder `<class>/<image>` or `<split>/<class>/<image>`, or a
            TFDS name; see `keras_resnext.training.datasets.open_dataset`.
        workdir: Folder of the run, see `Run`.
        weights: Weights to start from: a tag of `list_weights`, a file, the
            folder of a run, or a repository, `"hf://user/name"`. Size and
            crop of images are those that are stored with them, if any are.
            Defaults to `"imagenet"`.
        model: Name of the network. Defaults to the one that `weights` are of,
            with a tag to `"resnext50"`.
        options: `TrainOptions`. Defaults to `None`, their defaults.
        on_plan: Called with the `FinetunePlan` before training. Defaults to
            `None`.
        **arguments: `on_step` and `on_epoch` of `train`, and fields of the
            `Recipe` that replace those of the plan, such as `epochs=5`.

    Returns:
        The finished `Run`.

    Raises:
        ValueError: see `plan_finetuning` and `train`.
        ConnectionError: if a repository or published weights cannot be
            fetched.

    Example:

    >>> run = finetune("photos/", "runs/new", epochs=10)
    >>> classifier = keras_resnext.Classifier.load("runs/new")
    >>> classifier.predict("photo.jpg")[0].label
    """
    callbacks = {
        name: arguments.pop(name)
        for name in ("on_step", "on_epoch")
        if name in arguments
    }
    options = options or TrainOptions()
    plan = plan_finetuning(
        dataset,
        workdir,
        weights=weights,
        model=model,
        data_dir=options.data_dir,
        **arguments,
    )
    return train(
        plan.recipe,
        workdir,
        options,
        on_start=lambda data: on_plan and on_plan(plan),
        **callbacks,
    )


def plan_finetuning(
    dataset: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] = "imagenet",
    model: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    **fields: Any,
) -> FinetunePlan:
    """Choose a recipe for fine-tuning on a data set, usually a small one.

    Batch and epochs follow the number of images: a batch has 8 to 32, and an
    epoch at least eight batches where there are enough; the fewer images, the
    more epochs, from 6 to 40. In the first quarter the classifier is trained
    alone. Batch norm keeps its statistics with batches of less than 16 images.
    Classes are weighted if the largest has at least twice the images of the
    smallest. A run in `workdir` keeps the recipe that it has.

    Args:
        dataset: See `finetune`.
        workdir: Folder of the run; nothing is written.
        weights: See `finetune`.
        model: See `finetune`.
        data_dir: Where TFDS keeps its data sets. Defaults to TFDS' own.
        **fields: Fields of the `Recipe`; the others adapt to them.

    Returns:
        A `FinetunePlan`.

    Raises:
        ValueError: if the data set, the weights or a field cannot be used, or
            `workdir` contains another run.
        ConnectionError: if a repository cannot be fetched.

    Example:

    >>> plan = plan_finetuning("photos/", "runs/new", flip=False)
    >>> plan.recipe.epochs, plan.recipe.batch_size
    (40, 8)
    """
    run = Run(workdir)
    check_fields(fields)
    data = open_dataset(
        dataset,
        data_dir or run.data_dir,
        split_file=run.split_file,
        val_fraction=fields.get("val_fraction", 0.0),
    )
    weights = _resolved(weights)
    if run.started:
        given = {"weights": weights, "model": model or run.recipe.model}
        recipe = dataclasses.replace(
            run.recipe, dataset=data.name, **given, **fields
        )
        run.check(recipe)
        return FinetunePlan(recipe, (f"Resuming {run.path} with its recipe.",))
    start, about_weights = _start_from(weights, model, fields)
    data.prepare()
    if not data.num_examples("train"):
        raise ValueError(
            f"`dataset` must have images to train on; {data.name} has none in "
            "the split train."
        )
    choices, about_schedule = _fit_schedule(data, {**start, **fields})
    augmentation, about_augmentation = _fit_augmentation(data)
    balance, about_balance = _fit_classes(data)
    recipe = Recipe(
        **{
            "dataset": data.name,
            **start,
            **choices,
            **augmentation,
            **balance,
            **fields,
        }
    )
    return FinetunePlan(
        recipe,
        (
            about_balance,
            about_weights,
            *about_schedule,
            about_augmentation,
            *_shortened(data.check()),
        ),
    )


def _shortened(problems):
    """The first problems of the data, in three lines at most."""
    if len(problems) <= 3:
        return problems
    rest = len(problems) - 2
    return [*problems[:2], f"{rest} more problems: see `ImageData.check`."]


def check_fields(fields):
    """Refuse what is no field of a recipe."""
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in fields:
        if name not in known:
            raise ValueError(
                f"`finetune` takes fields of a recipe; {name!r} is none."
                f"{suggest(name, known)}"
            )


def _resolved(weights):
    """Initial weights as a recipe names them: runs by their whole path."""
    run = _run_of(weights)
    return str(run.path.resolve() if run else weights)


def _start_from(weights, model, fields):
    """Network, weights and image size, and a line about them."""
    if run := _run_of(weights):
        return start_from_run(run, model)
    name = model or "resnext50"
    source = find_source(weights, name)
    start = {"weights": weights, "crop_pct": 1.0}
    if isinstance(source, WeightsRecord):
        transform = source.transform
        about = f"{source.name} ({source.license})"
    else:
        network, start["residual"] = _network_of(source)
        name = model or network
        transform = _stored_transform(source)
        about = f"{name} with {source}"
    if transform:
        start["crop_pct"] = transform.crop_pct
    size = fields.get("image_size") or (
        transform.image_size if transform else default_image_size(name)
    )
    start |= {"model": name, "image_size": size}
    ours = EvalTransform.from_crop_pct(size)
    if transform and (transform.mean, transform.std) != (ours.mean, ours.std):
        about += f" (normalization {transform.normalization}, now imagenet)"
    return start, f"Start: {about}, {size} pixels."


def _run_of(weights):
    """The run whose folder is given as weights, if it is one."""
    place = pathlib.Path(weights)
    if place.is_dir() and Run(place).started:
        return Run(place)
    return None


def _network_of(source):
    """Name of the network that a file's weights are of; shortcuts or not."""
    path = fetch_source(source)
    with open_weights(path) as stored:
        shapes = stored.shapes
    name = convert.infer_architecture(shapes)
    if parse_network(name) is None:
        raise ValueError(
            f"`weights` must be of a network of this package; {source} has "
            f"those of {name}."
        )
    return name, f"{block_name(2, 1)}_0_conv" in shapes


def _stored_transform(source):
    """The transform in a `.keras` file or a repository, if there is one."""
    if not (isinstance(source, Repository) or source.suffix == ".keras"):
        return None
    try:
        return Classifier.load(str(source)).transform
    except ValueError:  # it may hold nothing but weights
        return None


def start_from_run(run, model):
    """The network that a run has trained, and its weights."""
    recipe = run.recipe
    if model not in (None, recipe.model):
        raise ValueError(
            f"`model` must be None or {recipe.model}, which {run.path} has "
            f"trained; got {model!r}."
        )
    names = ("model", "form", "residual", "image_size", "eval_image_size")
    start = {name: getattr(recipe, name) for name in (*names, "crop_pct")}
    start["weights"] = str(run.path.resolve())
    about = f"{recipe.model} as trained in {run.path}"
    return start, f"Start: {about}, {recipe.final_image_size} pixels."


def _fit_schedule(data, fields):
    """Batch, epochs and rates for a number of images, and lines about them."""
    images = data.num_examples("train")
    batch = fields.get("batch_size") or _batch_size(images)
    # 300 / sqrt(images): 10 times the images, a third of the epochs, and
    # three times the steps.
    epochs = fields.get("epochs") or _clip(300 / math.sqrt(images), 6, 40)
    head_epochs = fields.get("head_epochs", max(1, epochs // 4))
    head_epochs = min(head_epochs, epochs - 1)
    rest = epochs - head_epochs
    choices = {
        "batch_size": batch,
        "epochs": epochs,
        "head_epochs": head_epochs,
        "head_learning_rate": 0.05 * batch / 32 if head_epochs else 0.0,
        "learning_rate": 0.01 * batch / 32,
        "warmup_epochs": min(1.0, rest / 4),
        "early_stopping_patience": max(3, rest // 3),
        "freeze_batch_norm": batch < _LEAST_BATCH_FOR_STATISTICS,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
    }
    norm = (
        "batch norm keeps its statistics (small batches)"
        if fields.get("freeze_batch_norm", choices["freeze_batch_norm"])
        else "batch norm adapts"
    )
    shown = choices | fields
    rate, patience = shown["learning_rate"], shown["early_stopping_patience"]
    head = (
        f"Epochs 1 to {head_epochs}: the classifier alone, rate "
        f"{shown['head_learning_rate']:.3g}."
        if head_epochs
        else "The classifier is not trained alone first."
    )
    return choices, (
        f"Batches of {batch}, {images // batch} an epoch; {epochs} epochs for "
        f"{images} images.",
        head,
        f"Epochs {head_epochs + 1} to {epochs}: the whole network, rate "
        f"{rate:.3g} after a warm-up, along a cosine; {norm}.",
        f"Training ends after {patience} epochs without a better validation; "
        "the best epoch is kept.",
    )


def _batch_size(images):
    """The largest power of two up to 32 of which an epoch has eight, or 8."""
    power = 2 ** int(math.log2(max(1, images / 8)))
    return min(images, _clip(power, 8, _LARGEST_BATCH))


def _fit_augmentation(data):
    """Random changes to images, more of them for more epochs and images."""
    images = data.num_examples("train")
    choices = {
        "crop_padding": 0,
        "random_resized_crop_scale": 0.35,
        "flip": True,
        "trivial_augment": images >= 1000,
        "mixup": 0.2 if images >= 10_000 else 0.0,
    }
    names = ["crops of 35 to 100 % of the area", "mirror images"]
    if choices["trivial_augment"]:
        names.append("TrivialAugment (1,000 images or more)")
    if choices["mixup"]:
        names.append("mixup (10,000 images or more)")
    return choices, f"Augmentation: {', '.join(names)}."


def _fit_classes(data):
    """Class weights where classes differ in size, and a line about them."""
    counts = data.class_counts("train")
    small, large = min(counts, key=counts.get), max(counts, key=counts.get)
    ratio = counts[large] / max(1, counts[small])
    about = (
        f"Data: {len(counts)} classes, {sum(counts.values())} images to train "
        f"on, {data.num_examples(data.val_split)} to validate; "
        f"{counts[small]} ({small}) to {counts[large]} ({large}) a class, "
    )
    if ratio < IMBALANCE:
        return {}, about + "weighted alike."
    return {"class_weight": "balanced"}, about + (
        f"weighted by inverse frequency ({ratio:.1f} times, from "
        f"{IMBALANCE:.0f} on)."
    )


def _clip(value, low, high):
    return int(min(high, max(low, round(value))))
