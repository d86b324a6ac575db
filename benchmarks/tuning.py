"""How the recipe `fashion_mnist` is chosen.

Candidates are trained on 54,000 of the training images and compared on the
other 6,000; no test image is looked at. Each group of candidates differs from
the best of the group before in one field, and the best value stays. Of these
groups the first was run, and one candidate of the second
(`results/fashion_tuning.jsonl`).
"""

import dataclasses
import pathlib
import statistics
import time

from benchmarks.study import check_backend
from benchmarks.study import describe
from benchmarks.study import make_record
from benchmarks.study import plain_fields
from benchmarks.study import read_records
from benchmarks.study import write_records
from keras_resnext.training import RECIPES
from keras_resnext.training import Recipe

START = Recipe(
    dataset="fashion_mnist",
    val_fraction=0.1,
    model="resnext29_8x4d_f64",
    image_size=28,
    batch_size=128,
    epochs=20,
    learning_rate=0.1,
    warmup_epochs=1.0,
    weight_decay=5e-4,
    label_smoothing=0.1,
    crop_padding=2,
    flip=True,
    random_erasing=0.25,
)
# Networks have at most 500,000 parameters: 2 MB in float32.
GROUPS = (
    ("random_erasing", (0.0, 0.25, 0.5)),
    (
        "model",
        (
            "resnext29_8x4d_f64",
            "resnext38_8x4d_f64",
            "resnext20_16x4d_f64",
            "resnext20_8x5d_f80",
        ),
    ),
    ("weight_decay", (5e-4, 1e-3, 2e-3)),
    ("learning_rate", (0.05, 0.1, 0.2)),
    ("crop_padding", (2, 3)),
    ("epochs", (20, 40, 80)),
)
SEEDS = 2
FINAL_SEEDS = 3


def run_tuning(
    path: pathlib.Path,
    learner,
    *,
    start: Recipe = START,
    groups=GROUPS,
    seeds: int = SEEDS,
    minutes: float = float("inf"),
    log=print,
) -> list[dict]:
    """Train the candidates whose records are not there.

    Args:
        path: JSON lines, one a finished run.
        learner: `on_tensorflow.Learner` or `on_jax.Learner`.
        start: The recipe to begin with; it must hold out training images.
        groups: Fields with their candidates.
        seeds: Runs of each candidate.
        minutes: No run starts after as many minutes.
        log: Called with a line for each run.

    Returns:
        The records that there are.

    Raises:
        ValueError: if `start` holds no images out, or the records there are
            of another backend.
    """
    if not start.val_fraction:
        raise ValueError("`start` must have a `val_fraction` above 0; got 0.")
    begun, best = time.monotonic(), start
    records = read_records(path)
    check_backend(records, learner, path)
    for field, values in groups:
        candidates = [dataclasses.replace(best, **{field: x}) for x in values]
        learner.prepare(candidates)
        errors = []
        for i, candidate in enumerate(candidates):
            for seed in range(seeds):
                recipe = dataclasses.replace(candidate, seed=seed)
                if _find(records, recipe):
                    continue
                if time.monotonic() - begun > 60 * minutes:
                    return records
                records.append(make_record(recipe, learner))
                write_records(path, records)
                log(describe(records[-1], f"{field} {values[i]}"))
            errors.append(_mean_error(records, candidate, seeds))
        best = candidates[errors.index(min(errors))]
    return records


def run_final(
    path: pathlib.Path,
    learner,
    weights: pathlib.Path,
    *,
    recipe: Recipe = RECIPES["fashion_mnist"],
    seeds: int = FINAL_SEEDS,
    log=print,
) -> list[dict]:
    """Train the chosen recipe on all training images, and test it.

    Args:
        path: JSON lines, one a finished run.
        learner: `on_tensorflow.Learner` or `on_jax.Learner`.
        weights: Folder for the weights of each seed.
        recipe: A `Recipe`.
        seeds: Number of runs.
        log: Called with a line for each run.

    Returns:
        The records that there are.

    Raises:
        ValueError: if the records there are of another backend.
    """
    weights.mkdir(parents=True, exist_ok=True)
    records = read_records(path)
    check_backend(records, learner, path)
    for seed in range(seeds):
        recipe = dataclasses.replace(recipe, seed=seed)
        record = _find(records, recipe)
        if not record:
            file = weights / f"fashion_mnist_{seed}.safetensors"
            record = make_record(recipe, learner, file)
            records.append(record)
            write_records(path, records)
        log(describe(record))
    return records


def value_of(record: dict, field: str):
    """A field's value in the recipe of a record.

    Args:
        record: Result of `make_record`.
        field: A field of `Recipe`.

    Returns:
        The value as JSON keeps it.
    """
    return record["model"] if field == "model" else record["recipe"][field]


def _find(records, recipe):
    """The record of a recipe, or `None`."""
    wanted = plain_fields(recipe)
    for record in records:
        trained = record["recipe"] | {
            name: record[name] for name in ("model", "residual", "seed")
        }
        if trained == wanted:
            return record
    return None


def _mean_error(records, candidate, seeds):
    return statistics.mean(
        _find(records, dataclasses.replace(candidate, seed=seed))["error"]
        for seed in range(seeds)
    )


def print_tuning(records: list[dict], console) -> None:
    """Print the mean error of each candidate.

    Args:
        records: Result of `run_tuning`.
        console: A `rich.console.Console`.
    """
    from rich.table import Table

    table = Table(
        "recipe",
        "parameters (k)",
        "seeds",
        "held-out error (%)",
        title="6,000 held-out training images of Fashion-MNIST",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    fields = [field for field, _ in GROUPS]
    candidates = {}
    for record in records:
        key = tuple(value_of(record, field) for field in fields)
        candidates.setdefault(key, []).append(record)
    for key, rows in candidates.items():
        errors = [row["error"] for row in rows]
        spread = f" ± {statistics.stdev(errors):.2f}" if errors[1:] else ""
        table.add_row(
            ", ".join(f"{n} {x}" for n, x in zip(fields, key, strict=True)),
            f"{rows[0]['params'] / 1e3:.0f}",
            str(len(rows)),
            f"{statistics.mean(errors):.2f}{spread}",
        )
    console.print(table)
