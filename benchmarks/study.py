"""The paper's tables in small: narrow networks on Fashion-MNIST.

Cardinality against width at constant cost (paper, table 3), with and without
shortcuts (section 5.1), and depth, width and cardinality at about twice the
cost (table 4). Each network is trained with several seeds; a record is kept
as each run ends, so that the study goes on over days.
"""

import base64
import dataclasses
import importlib.metadata
import json
import pathlib
import time

import numpy as np

from benchmarks import machine
from keras_resnext.files import staged
from keras_resnext.training import Recipe

# 11 layers; the first stage has 64 channels, a quarter of the paper's.
CONSTANT_COST = ("1x16d", "2x10d", "4x6d", "8x3d", "32x1d")
TWICE_THE_COST = (
    "resnext20_1x16d_f64",  # deeper
    "resnext20_32x1d_f64",
    "resnext11_1x25d_f64",  # wider
    "resnext11_2x16d_f64",  # more paths
    "resnext11_64x1d_f64",
)
# Model, and whether it has shortcuts.
NETWORKS = (
    *((f"resnext11_{paths}_f64", True) for paths in CONSTANT_COST),
    *((f"resnext11_{paths}_f64", False) for paths in CONSTANT_COST),
    *((model, True) for model in TWICE_THE_COST),
)
# Networks that a question of `benchmarks.verdict` is about have more seeds.
SEEDS, MORE_SEEDS = 3, 6
# No label smoothing, which raises the loss by itself. Nothing was tuned: the
# rate and the decay are those of the paper's CIFAR networks.
FIELDS = {
    "dataset": "fashion_mnist",
    "image_size": 28,
    "batch_size": 128,
    "epochs": 10,
    "learning_rate": 0.1,
    "warmup_epochs": 1.0,
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
    "crop_padding": 2,
    "flip": True,
}


def run_study(
    records: pathlib.Path,
    learner,
    *,
    fields=FIELDS,
    seeds: dict[tuple[str, bool], int],
    minutes: float = float("inf"),
    log=print,
) -> list[dict]:
    """Train every network with every seed, unless its record is there.

    Args:
        records: JSON lines, one a finished run; each is added as it ends.
        learner: `on_tensorflow.Learner` or `on_jax.Learner`.
        fields: Fields of the `Recipe`; model, shortcuts and seed are set here.
        seeds: From a model, and whether it has shortcuts, to its number of
            runs.
        minutes: No run starts after as many minutes.
        log: Called with a line for each run.

    Returns:
        The records that there are.

    Raises:
        ValueError: if the records there are of another recipe or backend.
    """
    done = read_records(records)
    check_backend(done, learner, records)
    known = {(r["model"], r["residual"], r["seed"]) for r in done}
    _check_recipe(Recipe(**fields), done, records)
    # All networks with one seed before the next, so that what is there can
    # be compared.
    left = [
        Recipe(**fields, model=model, residual=residual, seed=seed)
        for seed in range(max(seeds.values()))
        for (model, residual), runs_of_network in seeds.items()
        if seed < runs_of_network and (model, residual, seed) not in known
    ]
    start = time.monotonic()
    learner.prepare(left)
    for recipe in left:
        if time.monotonic() - start > 60 * minutes:
            break
        done.append(make_record(recipe, learner))
        write_records(records, done)
        log(describe(done[-1]))
    return done


def read_records(path: pathlib.Path) -> list[dict]:
    """The records of finished runs.

    Raises:
        ValueError: if a line is no JSON; it names the file.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} must have a JSON record a line: {error}"
        ) from error


def write_records(path: pathlib.Path, records: list[dict]) -> None:
    """Replace a file of records, whole or not at all.

    Args:
        path: File to write, a record a line.
        records: Dicts that JSON can hold.
    """
    with staged(path, overwrite=True) as new:
        new.write_text("".join(json.dumps(x) + "\n" for x in records))


def check_backend(records: list[dict], learner, path: pathlib.Path) -> None:
    """Refuse records of another backend: they would not be comparable.

    Args:
        records: Result of `read_records`.
        learner: `on_tensorflow.Learner` or `on_jax.Learner`.
        path: The records' file.

    Raises:
        ValueError: if a record is of another backend than the learner's.
    """
    for record in records:
        if record["backend"] != learner.backend:
            raise ValueError(
                f"{path} must have runs of Keras on {learner.backend}; its are "
                f"of {record['backend']}. Choose another folder (--folder), or "
                f"set KERAS_BACKEND={record['backend']}."
            )


def _check_recipe(recipe, done, path):
    """Refuse records of another recipe: they would not be comparable."""
    wanted = _fixed_fields(recipe)
    for record in done:
        different = [
            name
            for name in wanted
            if record["recipe"].get(name) != wanted[name]
        ]
        if different:
            raise ValueError(
                f"`records` must be of this recipe; {path} has others, in "
                f"{', '.join(different)}. Choose another folder (--folder)."
            )


def plain_fields(recipe: Recipe) -> dict:
    """A recipe's fields as JSON keeps them.

    Args:
        recipe: A `Recipe`.

    Returns:
        The fields by name; tuples have become lists.
    """
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def _fixed_fields(recipe):
    """The fields that all runs of a study have in common."""
    return {
        name: value
        for name, value in plain_fields(recipe).items()
        if name not in ("model", "residual", "seed")
    }


def describe(record: dict, what: str = "") -> str:
    """A record as a line of text.

    Args:
        record: Result of `make_record`.
        what: What is special about this run. Defaults to its network.

    Returns:
        The line.
    """
    plain = "" if record["residual"] else ", no shortcuts"
    return (
        f"{what or record['model'] + plain}, seed {record['seed']}: error "
        f"{record['error']:.2f} %, loss {record['loss']:.4f}, "
        f"{record['images_per_second']:.0f} images/s"
    )


def make_record(recipe: Recipe, learner, weights=None) -> dict:
    """Train a network; its record, with which images it got right.

    Args:
        recipe: A `Recipe`.
        learner: `on_tensorflow.Learner` or `on_jax.Learner`.
        weights: File for the trained weights. Defaults to `None`.

    Returns:
        A dict that JSON can hold.
    """
    outcome = learner(recipe, weights)
    right = outcome.pop("right")
    about = machine.describe()
    return {
        "model": recipe.model,
        "residual": recipe.residual,
        "seed": recipe.seed,
        "error": 100 * (1 - outcome.pop("accuracy")),
        **outcome,
        "right": base64.b64encode(np.packbits(right)).decode(),
        "images": len(right),
        "date": about["date"],
        "backend": learner.backend,
        "device": about["cpu"] if learner.backend != "jax" else _accelerator(),
        "instructions": about["instructions"],
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras", learner.backend)
        },
        "recipe": _fixed_fields(recipe),
    }


def _accelerator():
    import jax

    return jax.devices()[0].device_kind


def right_images(record: dict) -> np.ndarray:
    """Which test images a network got right, bool `(images,)`."""
    packed = np.frombuffer(base64.b64decode(record["right"]), "uint8")
    return np.unpackbits(packed, count=record["images"]).astype(bool)
