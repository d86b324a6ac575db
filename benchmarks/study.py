"""The paper's tables in small: narrow networks on Fashion-MNIST.

Cardinality against width at constant cost (paper, table 3), with and without
shortcuts (section 5.1), and depth, width and cardinality at about twice the
cost (table 4). Each network is trained with several seeds; a record is kept
as each run ends, so that the study goes on over days.
"""

import base64
import dataclasses
import json
import pathlib
import shutil
import time

import numpy as np

from benchmarks import machine

RECORDS = pathlib.Path(__file__).parent / "results" / "study.jsonl"
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
    "epochs": 5,
    "learning_rate": 0.1,
    "warmup_epochs": 1.0,
    "weight_decay": 5e-4,
    "label_smoothing": 0.0,
    "crop_padding": 2,
    "flip": True,
}


def run_study(
    records: pathlib.Path,
    runs: pathlib.Path,
    *,
    fields=FIELDS,
    seeds: dict[tuple[str, bool], int],
    minutes: float = float("inf"),
    log=print,
) -> list[dict]:
    """Train every network with every seed, unless its record is there.

    Args:
        records: JSON lines, one a finished run; each is added as it ends.
        runs: Folder of the run under way, which goes on if it was stopped.
        fields: Fields of the `Recipe`; model, shortcuts and seed are set here.
        seeds: From a model, and whether it has shortcuts, to its number of
            runs.
        minutes: No run starts after as many minutes.
        log: Called with a line for each run.

    Returns:
        The records that there are.
    """
    from keras_resnext.training import Recipe  # before Keras, for oneDNN

    import keras  # isort: skip

    start = time.monotonic()
    done = read_records(records)
    known = {(r["model"], r["residual"], r["seed"]) for r in done}
    _check_recipe(Recipe(**fields), done, records)
    # All networks with one seed before the next, so that what is there can
    # be compared.
    for seed in range(max(seeds.values())):
        for (model, residual), runs_of_network in seeds.items():
            if seed >= runs_of_network or (model, residual, seed) in known:
                continue
            if time.monotonic() - start > 60 * minutes:
                return done
            recipe = Recipe(**fields, model=model, residual=residual, seed=seed)
            folder = runs / f"{model}{'' if residual else '_plain'}_{seed}"
            done.append(_run(recipe, folder))
            lines = "".join(json.dumps(record) + "\n" for record in done)
            beside = records.with_suffix(".partial")
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(lines)
            beside.replace(records)
            shutil.rmtree(folder)
            keras.backend.clear_session()  # or all graphs stay in memory
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


def _check_recipe(recipe, done, path):
    """Refuse records of another recipe: they would not be comparable."""
    wanted = json.loads(json.dumps(_fixed_fields(recipe)))
    for record in done:
        if record["recipe"] != wanted:
            different = [
                name
                for name in wanted
                if record["recipe"].get(name) != wanted[name]
            ]
            raise ValueError(
                f"`records` must be of this recipe; {path} has others, in "
                f"{', '.join(different)}. Move it away to start again."
            )


def _fixed_fields(recipe):
    """The fields that all runs of a study have in common."""
    return {
        name: value
        for name, value in dataclasses.asdict(recipe).items()
        if name not in ("model", "residual", "seed")
    }


def describe(record: dict) -> str:
    """A record as a line of text."""
    plain = "" if record["residual"] else ", no shortcuts"
    return (
        f"{record['model']}{plain}, seed {record['seed']}: error "
        f"{record['error']:.2f} %, loss {record['loss']:.4f}, "
        f"{record['images_per_second']:.0f} images/s"
    )


def _run(recipe, folder):
    """Train a network; its record, with which test images it got right."""
    from keras_resnext import Classifier
    from keras_resnext import count_complexity
    from keras_resnext.training import evaluate
    from keras_resnext.training import train

    run = train(recipe, folder, keep=1)
    classifier = Classifier.load(run.path)
    result = evaluate(classifier, run.open_dataset())
    right = result.labels == result.predictions
    cost = count_complexity(classifier.model)
    about = machine.describe()
    return {
        "model": recipe.model,
        "residual": recipe.residual,
        "seed": recipe.seed,
        "multiply_adds": cost.multiply_adds,
        "params": cost.params,
        "error": 100 * (1 - result.accuracy),
        "loss": result.loss,
        "training_loss": run.history[-1]["loss"],
        "right": base64.b64encode(np.packbits(right)).decode(),
        "images": len(right),
        "images_per_second": run.history[-1]["images_per_second"],
        "input_wait": run.history[-1]["input_wait"],
        "date": about["date"],
        "instructions": about["instructions"],
        "versions": {
            name: about["versions"][name] for name in ("tensorflow", "keras")
        },
        "recipe": _fixed_fields(recipe),
    }


def right_images(record: dict) -> np.ndarray:
    """Which test images a network got right, bool `(images,)`."""
    packed = np.frombuffer(base64.b64decode(record["right"]), "uint8")
    return np.unpackbits(packed, count=record["images"]).astype(bool)
