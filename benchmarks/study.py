"""The paper's comparisons in small: cardinality and shortcuts, on digits.

Networks of the same complexity but another cardinality (paper, table 2), with
and without shortcuts (section 5.1), are trained on scikit-learn's handwritten
digits with several seeds each.
"""

import dataclasses
import itertools
import math
import pathlib
import shutil
import statistics

from benchmarks.growth import AXES

RESIDUAL = (True, False)


def run_study(
    folder: pathlib.Path,
    *,
    recipe,
    depth: int = 29,
    seeds: int = 3,
    networks=AXES["cardinality"],
    log=print,
) -> list[dict]:
    """Train every network, or read the results of finished runs.

    Args:
        folder: Folder of the runs. Finished ones are not trained again, so
            that a study can be resumed.
        recipe: A `Recipe`; model, shortcuts and seed are set here.
        depth: Layers, 9n + 2. Defaults to 29, the paper's for CIFAR.
        seeds: Runs of each network. Defaults to 3.
        networks: Dicts of `cardinality` and `base_width`. Defaults to those
            of table 2.
        log: Called with a line for each run.

    Returns:
        A record for each run, with the metrics of its last epoch.
    """
    import keras

    from keras_resnext.training import train

    records = []
    for network, residual, seed in itertools.product(
        networks, RESIDUAL, range(seeds)
    ):
        name = "{cardinality}x{base_width}d".format(**network)
        this = dataclasses.replace(
            recipe,
            model=f"resnext{depth}_{name}",
            residual=residual,
            seed=seed,
        )
        plain = "" if residual else "_plain"
        run = train(this, folder / f"{this.model}{plain}_{seed}", keep=1)
        # No longer needed; those of thirty runs are a gigabyte.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        last = run.history[-1]
        records.append(
            {
                **network,
                "residual": residual,
                "seed": seed,
                "multiply_adds": _multiply_adds(this),
                "training_loss": last["loss"],
                "loss": last["val_loss"],
                "error": 100 * (1 - last["val_accuracy"]),
            }
        )
        keras.backend.clear_session()  # or thirty graphs stay in memory
        log(
            f"{name}, {'with' if residual else 'without'} shortcuts, seed "
            f"{seed}: error {records[-1]['error']:.2f} %, loss "
            f"{last['val_loss']:.4f}"
        )
    return records


def _multiply_adds(recipe):
    from keras_resnext import count_complexity
    from keras_resnext.variants import build

    model = build(
        recipe.model,
        residual=recipe.residual,
        classes=10,
        input_shape=(recipe.image_size, recipe.image_size, 3),
    )
    return count_complexity(model).multiply_adds


def series(records, residual, value):
    """The values of each network's runs, by its name."""
    line = {}
    for record in records:
        if record["residual"] == residual:
            name = "{cardinality}x{base_width}d".format(**record)
            line.setdefault(name, []).append(record[value])
    return line


def verdict(records, images: int) -> list[str]:
    """What the numbers show, and what they cannot show.

    Args:
        records: Result of `run_study`, with two seeds or more.
        images: Number of test images.

    Returns:
        Sentences.
    """
    with_, without = (series(records, r, "loss") for r in RESIDUAL)
    first, *_, last = with_
    pairs = {
        f"{last} against {first}": (with_[last], with_[first]),
        **{
            f"{name} without shortcuts against with": (
                without[name],
                with_[name],
            )
            for name in (first, last)
        },
    }
    lines = []
    for what, (ours, theirs) in pairs.items():
        difference = statistics.mean(ours) - statistics.mean(theirs)
        chance = chance_of(ours, theirs)
        # Three questions are asked of the same runs (Bonferroni).
        shown = "a difference" if chance < 0.05 / len(pairs) else "not shown"
        lines.append(
            f"{what}: test loss {difference:+.4f} over {len(ours)} seeds, "
            f"p = {chance:.3f} (Welch): {shown}."
        )
    mistakes = statistics.mean(record["error"] for record in records) / 100
    deviation = 100 * math.sqrt(mistakes * (1 - mistakes) / images)
    lines.append(
        f"The spread is over seeds. One of the {images} test digits is "
        f"{100 / images:.2f} % of error, and another choice of test digits "
        f"would change an error of {100 * mistakes:.1f} % by {deviation:.1f} % "
        "(one standard deviation). The paper's cardinalities differ by 0.1 to "
        "1.7 % on 50,000 images of ImageNet, at most six of these digits: a "
        "study of this size can neither confirm nor refute that. It shows "
        "that the networks train, at what cost, and larger effects."
    )
    return lines


def chance_of(ours, theirs):
    """The p-value of a difference of means (Welch's t-test)."""
    from scipy.stats import ttest_ind

    return float(ttest_ind(ours, theirs, equal_var=False).pvalue)


def print_study(records, images, console):
    """Print means and standard deviations, then the verdict."""
    from rich.table import Table

    table = Table(
        "",
        "multiply-adds (M)",
        "test error (%)",
        "test loss",
        "training loss",
        title="Last epoch: mean and standard deviation over seeds",
    )
    for residual in RESIDUAL:
        cost = series(records, residual, "multiply_adds")
        columns = [
            series(records, residual, value)
            for value in ("error", "loss", "training_loss")
        ]
        for name in cost:
            table.add_row(
                name + ("" if residual else ", no shortcuts"),
                f"{cost[name][0] / 1e6:.1f}",
                *(
                    f"{statistics.mean(c[name]):.3f} ± "
                    f"{statistics.stdev(c[name]):.3f}"
                    for c in columns
                ),
            )
    console.print(table)
    for line in verdict(records, images):
        console.print(line)


def draw_study(records, path):
    """Draw error and loss against cardinality: each run and the spread."""
    import matplotlib.pyplot as plt

    from benchmarks.report import STYLE

    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, value, label in zip(
        axes,
        ("error", "loss"),
        ("test error (%)", "test cross-entropy (nats)"),
        strict=True,
    ):
        for residual, colour in zip(
            RESIDUAL, ("#c2571a", "#4a6fa5"), strict=True
        ):
            line = series(records, residual, value)
            shift = -0.08 if residual else 0.08
            places = [i + shift for i in range(len(line))]
            axis.errorbar(
                places,
                [statistics.mean(values) for values in line.values()],
                [statistics.stdev(values) for values in line.values()],
                fmt="o-",
                color=colour,
                capsize=4,
                label=f"with{'' if residual else 'out'} shortcuts",
            )
            for place, values in zip(places, line.values(), strict=True):
                axis.plot(
                    [place] * len(values), values, "x", color=colour, alpha=0.5
                )
        axis.set_xticks(range(len(line)), list(line))
        axis.set(
            xlabel="cardinality x base width, at constant complexity",
            ylabel=label,
        )
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.2)
        axis.legend()
    seeds = len({record["seed"] for record in records})
    figure.suptitle(
        f"Digits, last epoch: mean and standard deviation of {seeds} seeds, "
        "and each run"
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
