"""What the study's records show, and what they cannot show."""

import dataclasses
import math
import operator
import statistics
from collections.abc import Iterable

import numpy as np

from benchmarks.study import CONSTANT_COST
from benchmarks.study import MORE_SEEDS
from benchmarks.study import NETWORKS
from benchmarks.study import SEEDS
from benchmarks.study import TWICE_THE_COST
from benchmarks.study import right_images
from keras_resnext import paper

LEVEL = 0.05  # of all questions together
POWER = 0.8


# The networks of 50, 101 and 200 layers that ours stand for.
IN_THE_PAPER = {
    ("resnext11_1x16d_f64", True): ("resnet50", True),
    ("resnext11_2x10d_f64", True): ("resnext50_2x40d", True),
    ("resnext11_4x6d_f64", True): ("resnext50_4x24d", True),
    ("resnext11_8x3d_f64", True): ("resnext50_8x14d", True),
    ("resnext11_32x1d_f64", True): ("resnext50", True),
    ("resnext11_1x16d_f64", False): ("resnet50", False),
    ("resnext11_32x1d_f64", False): ("resnext50", False),
    ("resnext20_1x16d_f64", True): ("resnet200", True),
    ("resnext11_1x25d_f64", True): ("resnext101_1x100d", True),
    ("resnext11_2x16d_f64", True): ("resnext101_2x64d", True),
    ("resnext11_64x1d_f64", True): ("resnext101_64x4d", True),
}
_PAPERS_ERRORS = {
    (row.model, row.residual): row.top1
    for rows in paper.TABLES.values()
    for row in rows
}


def papers_error(network: tuple[str, bool]) -> float | None:
    """The paper's top-1 error on ImageNet of the network that one stands for.

    Args:
        network: Model, and whether it has shortcuts.

    Returns:
        The error in percent; `None` if the paper has no such network.

    Example:

    >>> papers_error(("resnext11_32x1d_f64", True))
    22.2
    """
    return _PAPERS_ERRORS.get(IN_THE_PAPER.get(network))


@dataclasses.dataclass(frozen=True)
class Question:
    """Whether one network errs less than another.

    Args:
        text: The question.
        one: Model, and whether it has shortcuts.
        other: The same of the network it is compared with.
    """

    text: str
    one: tuple[str, bool]
    other: tuple[str, bool]

    @property
    def papers_difference(self) -> float:
        """The paper's difference of top-1 errors on ImageNet, in points."""
        return papers_error(self.one) - papers_error(self.other)


_PLAIN, _PATHS = "resnext11_1x16d_f64", "resnext11_32x1d_f64"
QUESTIONS = (
    Question(
        "32 paths instead of one, at constant cost",
        (_PATHS, True),
        (_PLAIN, True),
    ),
    Question("no shortcuts, one path", (_PLAIN, False), (_PLAIN, True)),
    Question("no shortcuts, 32 paths", (_PATHS, False), (_PATHS, True)),
    Question(
        "at twice the cost, 64 paths instead of more layers",
        ("resnext11_64x1d_f64", True),
        ("resnext20_1x16d_f64", True),
    ),
    Question(
        "at twice the cost, 64 paths instead of a wider path",
        ("resnext11_64x1d_f64", True),
        ("resnext11_1x25d_f64", True),
    ),
)


def detectable(
    deviation: float, seeds: int, questions: int = len(QUESTIONS)
) -> float:
    """The difference that a paired t-test over seeds finds four times in five.

    Args:
        deviation: Standard deviation of the difference of one pair.
        seeds: Number of pairs.
        questions: Tests that share the level of 0.05. Defaults to all.

    Returns:
        The difference, in the unit of `deviation`.

    Example:

    >>> round(detectable(0.28, 3, 1), 2)
    0.91
    """
    from scipy.optimize import brentq
    from scipy.stats import nct
    from scipy.stats import t

    limit = t.isf(LEVEL / questions / 2, seeds - 1)

    def missing(effect):
        return nct.sf(limit, seeds - 1, effect) - POWER

    return brentq(missing, 0, 500) * deviation / math.sqrt(seeds)


def compare(question: Question, records: list[dict]) -> dict | None:
    """Answer a question from paired seeds, and from paired images.

    Args:
        question: A `Question`.
        records: Result of `run_study`.

    Returns:
        A dict: seeds, difference of errors in points, its interval over seeds,
        p of a paired t-test, p of McNemar's test in the median seed, whether
        both show a difference, and the ratio of multiply-adds. `None` with
        fewer than two seeds.
    """
    ones, others = (
        {r["seed"]: r for r in records if (r["model"], r["residual"]) == which}
        for which in (question.one, question.other)
    )
    seeds = sorted(ones.keys() & others.keys())
    if len(seeds) < 2:
        return None
    rights = [[right_images(runs[s]) for s in seeds] for runs in (ones, others)]
    cost = (runs[seeds[0]]["multiply_adds"] for runs in (ones, others))
    return paired(*rights, len(QUESTIONS)) | {"cost": operator.truediv(*cost)}


def paired(ones, others, questions: int) -> dict:
    """Compare two ways of classifying the same images, by seed and by image.

    Args:
        ones: Of each seed, bool `(images,)`: which images are right.
        others: The same of the other way, seed by seed.
        questions: Tests that share the level of 0.05.

    Returns:
        A dict: seeds, difference of errors in points, its interval over seeds,
        p of a paired t-test, p of McNemar's test in the median seed, and
        whether both show a difference.
    """
    from scipy.stats import binomtest
    from scipy.stats import t
    from scipy.stats import ttest_rel

    errors = [
        [100 * (1 - right.mean()) for right in rights]
        for rights in (ones, others)
    ]
    seeds = len(ones)
    differences = np.subtract(*errors)
    mean, deviation = differences.mean(), differences.std(ddof=1)
    half = t.isf(LEVEL / questions / 2, seeds - 1)
    half *= deviation / math.sqrt(seeds)
    by_image = []
    for one, other in zip(ones, others, strict=True):
        better, worse = (one & ~other).sum(), (other & ~one).sum()
        by_image.append(
            binomtest(int(better), int(better + worse)).pvalue
            if better + worse
            else 1.0
        )
    # Without a spread there is no test; two seeds seldom agree to the image.
    by_seed = float(ttest_rel(*errors).pvalue) if deviation > 1e-9 else 1.0
    mcnemar = statistics.median(by_image)
    level = LEVEL / questions
    return {
        "seeds": seeds,
        "difference": float(mean),
        "interval": (float(mean - half), float(mean + half)),
        "p_seeds": by_seed,
        "p_images": mcnemar,
        "shown": by_seed < level and mcnemar < level,
    }


def answers(records: list[dict]) -> list[str]:
    """What the records say to each question.

    Args:
        records: Result of `run_study`.

    Returns:
        A sentence or two for each of `QUESTIONS`.
    """
    lines = []
    for question in QUESTIONS:
        answer = compare(question, records)
        if answer is None:
            lines.append(f"{question.text}: not run yet.")
            continue
        low, high = answer["interval"]
        verdict = "a difference" if answer["shown"] else "not shown"
        lines.append(
            f"{question.text}: error {answer['difference']:+z.2f} points, "
            f"{low:+z.2f} to {high:+z.2f} over {answer['seeds']} paired seeds "
            f"({p_text(answer['p_seeds'])}), McNemar's "
            f"{p_text(answer['p_images'])} in the median seed, "
            f"{answer['cost']:.2f} times the multiply-adds: "
            f"{verdict}. In the paper, on ImageNet: "
            f"{question.papers_difference:+.1f}."
        )
    return lines


def caveat(records: list[dict]) -> str:
    """What the study cannot show, with the costs that records have.

    Args:
        records: Result of `run_study`.

    Returns:
        Some sentences; empty unless every network was run.
    """
    rows = groups(records)
    if rows.keys() != set(NETWORKS):
        return ""
    adds, parameters = (
        {network: rows[network][0][value] for network in NETWORKS}
        for value in ("multiply_adds", "params")
    )
    constant = [f"resnext11_{paths}_f64" for paths in CONSTANT_COST]

    def spread(residual):
        costs = [adds[name, residual] for name in constant]
        return f"{100 * (max(costs) / min(costs) - 1):.0f} %"

    def saved(costs):
        shares = [1 - costs[n, False] / costs[n, True] for n in constant]
        return f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"

    ratios = [adds[n, True] / adds[_PLAIN, True] for n in TWICE_THE_COST]
    return (
        "With one block a stage, every shortcut is a projection. Without them, "
        f"{saved(adds)} of the multiply-adds and {saved(parameters)} of the "
        "parameters are gone, so that the study does not say what shortcuts "
        "are worth at equal cost, nor what identity shortcuts are. The costs "
        f"called constant differ by up to {spread(True)} with shortcuts and "
        f"{spread(False)} without; those called twice the cost are "
        f"{min(ratios):.1f} to {max(ratios):.1f} times that of 1x16d. Nothing "
        f"was tuned, and {rows[NETWORKS[0]][0]['recipe']['epochs']} epochs do "
        "not train these networks to convergence."
    )


def power(numbers: Iterable[int] = (SEEDS, MORE_SEEDS)) -> str:
    """What numbers of seeds can show, all questions together at 5 %.

    Args:
        numbers: Numbers of paired seeds. Defaults to those planned.

    Returns:
        A sentence for each.
    """
    return " ".join(
        f"{seeds} paired seeds whose errors deviate by 0.2 points each show a "
        f"difference of {detectable(0.2 * 2**0.5, seeds):.2f} points four "
        "times in five."
        for seeds in numbers
    )


def p_text(value):
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def groups(records: list[dict]) -> dict[tuple[str, bool], list[dict]]:
    """The records of each network, in the order of `NETWORKS`.

    Args:
        records: Result of `run_study`.

    Returns:
        From a model, and whether it has shortcuts, to its records; networks
        without any are left out.
    """
    rows = {network: [] for network in NETWORKS}
    for record in records:
        network = record["model"], record["residual"]
        rows.setdefault(network, []).append(record)
    return {network: some for network, some in rows.items() if some}


def planned_seeds() -> dict[tuple[str, bool], int]:
    """The number of runs of each network: more where a question is asked."""
    asked = {network for q in QUESTIONS for network in (q.one, q.other)}
    return {n: MORE_SEEDS if n in asked else SEEDS for n in NETWORKS}


def page(records: list[dict]) -> str:
    """All of it in Markdown: the networks, the figure and the answers.

    Args:
        records: Result of `run_study`.

    Returns:
        The text of `results/study.md`, beside which is `study.svg`.
    """
    recipe = records[0]["recipe"]
    devices = ", ".join(dict.fromkeys(r["device"] for r in records))
    lines = [
        "# The paper's tables in small, on Fashion-MNIST",
        "",
        f"{len(records)} of {sum(planned_seeds().values())} planned runs of "
        f"{recipe['epochs']} epochs, on {devices} (Keras on "
        f"{records[0]['backend']}); means and standard deviations over seeds. "
        "Written by `python -m benchmarks study` from `study.jsonl`.",
        "",
        "![Errors of all runs](study.svg)",
        "",
        "| network | multiply-adds (M) | parameters (k) | seeds | test error "
        "(%) | test loss | training loss | the paper's counterpart on "
        "ImageNet, top-1 error (%) |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for network, rows in groups(records).items():
        cells = [
            _title(network),
            f"{rows[0]['multiply_adds'] / 1e6:.1f}",
            f"{rows[0]['params'] / 1e3:.0f}",
            str(len(rows)),
            *(
                _with_deviation([row[value] for row in rows], digits)
                for value, digits in (
                    ("error", 2),
                    ("loss", 4),
                    ("training_loss", 4),
                )
            ),
            _papers_cell(network),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Differences are tested at 5 % for all questions together, and shown "
        "if both tests say so: a paired t-test over seeds, and McNemar's over "
        f"test images. {power(_numbers_of_seeds(records))}",
        "",
        *(f"- {answer}" for answer in answers(records)),
        "",
        caveat(records),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _numbers_of_seeds(records):
    """The numbers, above one, of seeds that networks have."""
    return sorted({len(rows) for rows in groups(records).values()} - {1})


def _title(network):
    model, residual = network
    return model + ("" if residual else ", no shortcuts")


def _papers_cell(network):
    if network not in IN_THE_PAPER:
        return ""
    return f"{papers_error(network):.1f} ({_title(IN_THE_PAPER[network])})"


def _with_deviation(values, digits):
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def draw_study(records: list[dict], path) -> None:
    """Draw the errors: each run, and mean and deviation of each network.

    Args:
        records: Result of `run_study`.
        path: The picture to write.
    """
    import matplotlib.pyplot as plt

    from benchmarks.report import STYLE

    plt.rcParams.update(STYLE)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.5), layout="constrained", sharey=True
    )
    rows_of = groups(records)
    for residual, color in ((True, "#c2571a"), (False, "#4a6fa5")):
        names = [
            (f"resnext11_{paths}_f64", residual) for paths in CONSTANT_COST
        ]
        label = f"with{'' if residual else 'out'} shortcuts"
        _draw_line(left, names, rows_of, color, label)
    left.set_xticks(range(len(CONSTANT_COST)), CONSTANT_COST)
    left.set(
        xlabel="cardinality x base width, 11 layers, constant cost",
        ylabel="test error (%)",
    )
    if left.get_legend_handles_labels()[0]:
        left.legend()
    # By cost, the two starting points first.
    costly = sorted(
        (
            (rows[0]["multiply_adds"], network)
            for network, rows in rows_of.items()
            if network[1]
            and (
                network[0] not in {f"resnext11_{p}_f64" for p in CONSTANT_COST}
                or network[0] in (_PLAIN, _PATHS)
            )
        ),
    )
    names = [network for _, network in costly]
    _draw_line(right, names, rows_of, "#c2571a", None, line="")
    right.set_xticks(
        range(len(names)),
        [
            f"{model.removeprefix('resnext').removesuffix('_f64')}\n"
            f"{cost / 1e6:.0f} M"
            for cost, (model, _) in costly
        ],
        fontsize="small",
    )
    right.set(xlabel="layers_cardinality x base width, and multiply-adds")
    for axis in (left, right):
        axis.grid(alpha=0.2)
    seeds = len({record["seed"] for record in records})
    figure.suptitle(
        "Fashion-MNIST, 10,000 test images: each run, and mean and standard "
        f"deviation of up to {seeds} seeds"
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_line(axis, names, rows_of, color, label, line="-"):
    """Means with error bars, and a cross for each run."""
    points = [
        (place, [row["error"] for row in rows_of[name]])
        for place, name in enumerate(names)
        if name in rows_of
    ]
    if not points:
        return
    axis.errorbar(
        [place for place, _ in points],
        [statistics.mean(errors) for _, errors in points],
        [statistics.stdev(e) if len(e) > 1 else 0 for _, e in points],
        fmt="o" + line,
        color=color,
        capsize=4,
        label=label,
    )
    for place, errors in points:
        axis.plot([place] * len(errors), errors, "x", color=color, alpha=0.5)
