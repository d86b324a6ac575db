"""Fine-tuning against training from scratch, on emoji of two vendors.

A network learns Google's drawings (Noto, Apache 2.0) by subcategory. Then
Twitter's drawings (Twemoji, CC-BY 4.0) are to be told apart by category, from
10, 50 or 200 of them a class: with `finetune` from that network, and from
scratch with the same settings, twice the epochs and the rate of the digits.
Emoji that the test has are in neither training set, whoever drew them.
"""

import dataclasses
import json
import pathlib
import shutil
import statistics
import subprocess
import tarfile

import numpy as np
from PIL import Image

PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
}
SIZES = (10, 50, 200)  # training images a class
MOST = max(SIZES)
IMAGE_SIZE = 16
MODEL = "resnext11_8x4d"
# Those with more than 200 emoji; the last is two small ones together.
_CLASSES = {
    "Flags": "flags",
    "Objects": "objects",
    "People & Body": "people",
    "Symbols": "symbols",
    "Travel & Places": "travel",
    "Animals & Nature": "nature",
    "Food & Drink": "nature",
}
_MOST_TESTED = 60  # images a class
IMBALANCED = {"flags": 90, "people": 60, "objects": 40, "symbols": 12}


def prepare(folder: pathlib.Path) -> None:
    """Fetch both packages from npm's registry and sort their images.

    Args:
        folder: Folder to write `google/<subcategory>/` and
            `twitter/<split>/<class>/` to, unless they are there.
    """
    if (folder / "twitter" / "test").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["npm", "pack", "--silent", *PACKAGES.values()],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    for vendor, package in PACKAGES.items():
        archive = folder / f"{package.replace('@', '-')}.tgz"
        with tarfile.open(archive) as members:
            members.extractall(folder / "npm" / vendor, filter="data")
    emoji = json.loads(
        (folder / "npm" / "google" / "package" / "emoji.json").read_text()
    )
    tested = _choose_tested(emoji)
    for entry in emoji:
        if entry["category"] == "Component":
            continue
        name, place = entry["image"], _CLASSES.get(entry["category"])
        if name in tested:
            _copy(folder, "twitter", name, f"test/{place}")
            continue
        if place:
            _copy(folder, "twitter", name, f"train/{place}")
        _copy(folder, "google", name, entry["subcategory"])
        for variation in entry.get("skin_variations", {}).values():
            skin = variation["image"]
            _copy(folder, "google", skin, entry["subcategory"])
    shutil.rmtree(folder / "npm")


def _choose_tested(emoji):
    """Files of the emoji to test on: what 200 a class leave, 60 at most."""
    by_class = {}
    for entry in emoji:
        if entry["category"] in _CLASSES:
            name = _CLASSES[entry["category"]]
            by_class.setdefault(name, []).append(entry["image"])
    rng = np.random.default_rng(0)
    tested = set()
    for names in by_class.values():
        count = min(len(names) - MOST, _MOST_TESTED)
        tested |= set(rng.permutation(sorted(names))[:count].tolist())
    return tested


def _copy(folder, vendor, name, place):
    """One image on white, as a PNG without transparency."""
    source = folder / "npm" / vendor / "package" / "img" / vendor / "64" / name
    if not source.exists():
        return
    target = folder / vendor / place / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        Image.alpha_composite(white, picture).convert("RGB").save(target)


def sample(
    folder: pathlib.Path, counts: int | dict[str, int], seed: int
) -> pathlib.Path:
    """A data set of some of Twitter's images, drawn anew for each seed.

    Args:
        folder: What `prepare` wrote.
        counts: Training images a class; or of some classes, by name, which
            are then the only ones.
        seed: Seed of the choice.

    Returns:
        A folder with the splits train and test.
    """
    source = folder / "twitter"
    if isinstance(counts, int):
        counts = dict.fromkeys(sorted(set(_CLASSES.values())), counts)
    numbers = "_".join(map(str, dict.fromkeys(counts.values())))
    target = folder / f"twitter_{numbers}_{seed}"
    if target.exists():
        return target
    rng = np.random.default_rng(seed)
    beside = folder / f"{target.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    for label, count in counts.items():
        shutil.copytree(source / "test" / label, beside / "test" / label)
        place = beside / "train" / label
        place.mkdir(parents=True)
        names = sorted(p.name for p in (source / "train" / label).iterdir())
        for name in rng.permutation(names)[:count]:
            shutil.copy(source / "train" / label / name, place / name)
    beside.rename(target)
    return target


def run_transfer(
    folder: pathlib.Path, runs: pathlib.Path, *, seeds: int = 3, log=print
) -> list[dict]:
    """Train everything, or read the results of finished runs.

    Args:
        folder: What `prepare` wrote.
        runs: Folder of the runs.
        seeds: Runs of each kind.
        log: Called with a line for each run.

    Returns:
        A record for each run.
    """
    from keras_resnext.training import plan_finetuning  # before Keras
    from keras_resnext.training import train

    import keras  # isort: skip

    source = _train_source(folder, runs)
    log(f"Google, by subcategory: {source.history[-1]['loss']:.3f}")
    records = []
    for seed in range(seeds):
        for count in SIZES:
            data = sample(folder, count, seed)
            # Without early stopping: its choice would be by the test images.
            plan = plan_finetuning(
                data,
                runs / "none",
                weights=source.path,
                seed=seed,
                early_stopping_patience=0,
            ).recipe
            scratch = dataclasses.replace(
                plan,
                weights="",
                head_epochs=0,
                head_learning_rate=0.0,
                freeze_batch_norm=False,
                epochs=2 * plan.epochs,
                learning_rate=0.05 * plan.batch_size / 32,
                warmup_epochs=0.4 * plan.epochs,
            )
            for kind, recipe in (("finetuned", plan), ("scratch", scratch)):
                run = train(recipe, runs / f"{kind}_{count}_{seed}", keep=1)
                shutil.rmtree(run.checkpoints, ignore_errors=True)
                accuracy = run.history[-1]["val_accuracy"]
                records.append(
                    {
                        "kind": kind,
                        "images": count,
                        "seed": seed,
                        "epochs": recipe.epochs,
                        "accuracy": accuracy,
                    }
                )
                keras.backend.clear_session()
                log(f"{count} a class, seed {seed}, {kind}: {accuracy:.4f}")
    return records


def _train_source(folder, runs):
    """The network that learns Google's emoji, unless it is there."""
    from keras_resnext.training import Recipe
    from keras_resnext.training import train

    return train(
        Recipe(
            dataset=str(folder / "google"),
            model=MODEL,
            image_size=IMAGE_SIZE,
            epochs=15,
            crop_padding=1,
            flip=True,
        ),
        runs / "google",
    )


def run_imbalance(
    folder: pathlib.Path, runs: pathlib.Path, *, seeds: int = 3, log=print
) -> list[dict]:
    """Fine-tune on classes of 90 to 12 images, weighted and not.

    Args:
        folder: What `prepare` wrote.
        runs: Folder of the runs; the first one is that of `run_transfer`.
        seeds: Runs of each kind.
        log: Called with a line for each run.

    Returns:
        A record for each run: accuracy, and recall of each class.
    """
    from keras_resnext.classifier import Classifier  # before Keras
    from keras_resnext.training import evaluate
    from keras_resnext.training import finetune

    import keras  # isort: skip

    source = _train_source(folder, runs)
    records = []
    for seed in range(seeds):
        data = sample(folder, IMBALANCED, seed)
        for class_weight in ("balanced", "none"):
            run = finetune(
                data,
                runs / f"imbalance_{class_weight}_{seed}",
                weights=source.path,
                seed=seed,
                class_weight=class_weight,
                early_stopping_patience=0,
            )
            shutil.rmtree(run.checkpoints, ignore_errors=True)
            result = evaluate(Classifier.load(run.path), data)
            right = result.labels == result.predictions
            recall = {
                label: float(right[result.labels == i].mean())
                for i, label in enumerate(result.class_names)
            }
            records.append(
                {
                    "class_weight": class_weight,
                    "seed": seed,
                    "accuracy": result.accuracy,
                    "recall": recall,
                }
            )
            keras.backend.clear_session()
            log(f"{class_weight}, seed {seed}: {result.accuracy:.4f}, {recall}")
    return records


def draw_transfer(records: list[dict], tested: int, path: pathlib.Path) -> None:
    """Accuracy by the number of images, each run and the means.

    Args:
        records: Result of `run_transfer`.
        tested: Number of test images.
        path: SVG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind, label, color in (
        ("finetuned", "fine-tuned from Google's emoji", "C0"),
        ("scratch", "from scratch, twice the epochs", "C1"),
    ):
        points = [
            (r["images"], 100 * r["accuracy"])
            for r in records
            if r["kind"] == kind
        ]
        axes.plot(*zip(*points, strict=True), "o", color=color, alpha=0.4)
        means = [
            statistics.mean(y for x, y in points if x == size) for size in SIZES
        ]
        axes.plot(SIZES, means, "-", color=color, label=label)
    axes.set(
        xscale="log",
        xticks=SIZES,
        xticklabels=SIZES,
        xlabel="Training images a class",
        ylabel=f"Accuracy on {tested} test images (%)",
        title=f"Twitter's emoji in six classes, {MODEL}, {IMAGE_SIZE} pixels",
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
