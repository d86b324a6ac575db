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
    """Train every network, or read what was trained before.

    Args:
        folder: Where the runs are. Those that are finished are not trained
            again, so that a study that was stopped goes on.
        recipe: A `Recipe`; model, shortcuts and seed are set here.
        depth: Layers, 9n + 2. Defaults to 29, the paper's for CIFAR.
        seeds: Runs of each network. Defaults to 3.
        networks: Dicts of `cardinality` and `base_width`. Defaults to those
            of table 2.
        log: Called with a line for each run.

    Returns:
        A record for each run, with what its last epoch measured.
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
        # It is finished, and thirty runs' are a gigabyte.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        last = run.history[-1]
        records.append(
            {
                **network,
                "residual": residual,
                "seed": seed,
                "multiply_adds": _multiply_adds(this),
                "training_loss": last["loss"],
                "loss": last["held_out_loss"],
                "error": 100 * (1 - last["held_out_accuracy"]),
            }
        )
        keras.backend.clear_session()  # or thirty graphs stay
        log(
            f"{name}, {'with' if residual else 'without'} shortcuts, seed "
            f"{seed}: error {records[-1]['error']:.2f} %, loss "
            f"{last['held_out_loss']:.4f}"
        )
    return records


def _multiply_adds(recipe):
    from keras_resnext import count_complexity
    from keras_resnext.resnext import build

    model = build(
        recipe.model,
        residual=recipe.residual,
        classes=10,
        input_shape=(recipe.image_size, recipe.image_size, 3),
    )
    return count_complexity(model).multiply_adds


def series(records, residual, value):
    """One line of the picture.

    Returns:
        A dict from a network's name to the values of its runs.
    """
    found = {}
    for record in records:
        if record["residual"] == residual:
            name = "{cardinality}x{base_width}d".format(**record)
            found.setdefault(name, []).append(record[value])
    return found


def difference(ours, theirs):
    """Of two means, with its standard error (Welch)."""
    mean = statistics.mean(ours) - statistics.mean(theirs)
    variance = sum(
        statistics.variance(values) / len(values) for values in (ours, theirs)
    )
    return mean, math.sqrt(variance)


def verdict(records, held_out: int) -> list[str]:
    """What the numbers show, and what they cannot.

    Args:
        records: Of `run_study`, with two seeds or more.
        held_out: Number of held-out images.

    Returns:
        Sentences.
    """
    lines = []
    with_, without = (series(records, r, "loss") for r in RESIDUAL)
    first, *_, last = with_
    pairs = [
        (f"{last} against {first}", with_[last], with_[first]),
        (
            f"{last} without shortcuts against with",
            without[last],
            with_[last],
        ),
        (
            f"{first} without shortcuts against with",
            without[first],
            with_[first],
        ),
    ]
    for what, ours, theirs in pairs:
        mean, error = difference(ours, theirs)
        shown = "a difference" if abs(mean) > 3 * error else "nothing shown"
        lines.append(
            f"{what}: held-out loss {mean:+.4f}, standard error {error:.4f} "
            f"over {len(ours)} seeds: {shown}."
        )
    mistakes = statistics.mean(record["error"] for record in records) / 100
    deviation = math.sqrt(mistakes * (1 - mistakes) / held_out)
    lines.append(
        f"One of the {held_out} held-out digits is {100 / held_out:.2f} % of "
        f"error, and chance in which digits are held out alone moves an error "
        f"of {100 * mistakes:.1f} % by {100 * deviation:.1f} % (one standard "
        "deviation). The paper's differences between cardinalities, 0.1 to "
        "1.7 % of error on ImageNet, are out of reach of so small a set; what "
        "it can show is whether a network trains at all, as without "
        "shortcuts, and that all of these do at the same cost."
    )
    return lines


def print_study(records, held_out, console):
    """A table of means and deviations, then the verdict."""
    from rich.table import Table

    table = Table(
        "",
        "multiply-adds (M)",
        "error (%)",
        "loss",
        "training loss",
        "error, no shortcuts",
        "loss",
        "training loss",
        title="Last epoch: mean and standard deviation over seeds",
    )
    values = ("error", "loss", "training_loss")
    columns = [series(records, r, v) for r in RESIDUAL for v in values]
    cost = series(records, True, "multiply_adds")
    for name in cost:
        table.add_row(
            name,
            f"{cost[name][0] / 1e6:.1f}",
            *(
                f"{statistics.mean(c[name]):.3f} ± "
                f"{statistics.stdev(c[name]):.3f}"
                for c in columns
            ),
        )
    console.print(table)
    for line in verdict(records, held_out):
        console.print(line)


def draw_study(records, path):
    """Error and loss against cardinality, each run and the spread."""
    import matplotlib.pyplot as plt

    from benchmarks.report import STYLE

    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, value, label in zip(
        axes,
        ("error", "loss"),
        ("held-out error (%)", "held-out cross-entropy (nats)"),
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
