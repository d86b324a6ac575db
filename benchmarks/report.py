"""Tables and pictures from what was measured."""

import json
import pathlib

from benchmarks import machine

FOLDER = pathlib.Path(__file__).parent / "results"
README = pathlib.Path(__file__).parents[1] / "README.md"
MARKS = ("<!-- benchmarks: begin -->", "<!-- benchmarks: end -->")
OURS = ("keras_resnext folded", "keras_resnext constant")
LOOP = ("keras_resnext grouped",)
STOCK = ("stock Keras",)
TORCH = ("PyTorch", "PyTorch channels_last")
# What is claimed: task, batch, dtype, ours, theirs (the faster counts; eager
# PyTorch, in either layout), and how many times as fast ours is at least, by
# class of CPU.
CLAIMS = (
    ("inference", 1, "float32", OURS, TORCH, {"avx2": 1.3, "avx512": 1.3}),
    ("inference", 8, "float32", OURS, TORCH, {"avx2": 1.3, "avx512": 1.2}),
    ("inference", 1, "float32", OURS, STOCK, {"avx2": 2, "avx512": 2}),
    ("inference", 8, "float32", OURS, STOCK, {"avx2": 2, "avx512": 2}),
    ("inference", 1, "bfloat16", OURS, TORCH, {"avx512": 1.1}),
    ("inference", 8, "bfloat16", OURS, TORCH, {"avx512": 1.1}),
    ("training", 8, "float32", LOOP, TORCH, {"avx2": 1.0, "avx512": 1.15}),
    ("training", 8, "bfloat16", LOOP, TORCH, {"avx512": 1.2}),
    ("training", 2, "float32", LOOP, STOCK, {"avx2": 25, "avx512": 25}),
    (
        *("training", 8, "float32"),
        ("keras_resnext fit",),
        LOOP,
        {"avx2": 1 / 1.05, "avx512": 1 / 1.05},
    ),
    (
        *("inference", 1, "float32"),
        ("LiteRT",),
        ("OpenVINO",),
        {"avx2": 1 / 1.15, "avx512": 1 / 1.15},
    ),
    (
        *("inference", 1, "float32"),
        ("keras_resnext after keras",),
        ("keras_resnext constant",),
        {"avx2": 1 / 1.03, "avx512": 1 / 1.03},
    ),
)
CLASSES = {"avx2": "AVX2", "avx512": "AVX-512"}


def name_of(group):
    """A stored group's name, as `benchmarks.compare.Group` has it."""
    return f"{group['task']}, batch {group['batch']}, {group['dtype']}"


def class_folder(about, folder=None):
    """Where results of this class of CPU are kept, or `folder` if given."""
    return folder or FOLDER / machine.cpu_class(about["instructions"])


def stored_results():
    """The newest comparison of each class of CPU that has one, by class.

    Of two of the same day, the one of `--all`.
    """
    stored = {}
    for name in CLASSES:
        found = [
            json.loads(path.read_text())
            for file in ("comparison.json", "headline.json")
            if (path := FOLDER / name / file).exists()
        ]
        if found:
            stored[name] = max(found, key=lambda x: x["about"]["date"])
    return stored


def group_of(results, task, batch, dtype):
    """The subjects of one group, those that failed left out."""
    for group in results["groups"]:
        if (group["task"], group["batch"], group["dtype"]) == (
            task,
            batch,
            dtype,
        ):
            return {
                name: values
                for name, values in group["subjects"].items()
                if "error" not in values
            }
    return {}


def claims(results):
    """Each claim with the ratio that was measured, and whether it holds."""
    about = results["about"]
    for task, batch, dtype, ours, theirs, floors in CLAIMS:
        subjects = group_of(results, task, batch, dtype)
        floor = floors.get(machine.cpu_class(about["instructions"]))
        ours, theirs = (
            [name for name in names if name in subjects]
            for names in (ours, theirs)
        )
        if not (ours and theirs and floor):
            continue
        ours, theirs = (_fastest(subjects, x) for x in (ours, theirs))
        ratio = subjects[theirs]["median"] / subjects[ours]["median"]
        yield {
            "work": f"{task}, batch {batch}, {dtype}",
            "ours": ours,
            "theirs": theirs,
            "ratio": ratio,
            "floor": floor,
            "holds": ratio >= floor,
        }


def _fastest(subjects, names):
    """Of the names that were measured, the one with the shortest median."""
    return min(
        (name for name in names if name in subjects),
        key=lambda name: subjects[name]["median"],
    )


def share_of_limit(about, group, median):
    """What part of the machine's matrix rate a time in milliseconds uses.

    A training step counts three times the forward pass: the gradients of
    inputs and of weights are as much work each. `None` where the rate was not
    measured.
    """
    rate = about.get("gflops", {}).get(group["dtype"])
    if not rate:
        return None
    passes = 3 if group["task"] == "training" else 1
    operations = 2 * about["multiply_adds"] * group["batch"] * passes
    return operations / (1e6 * rate) / median


def print_results(results, console):
    """Every group as a table, then the claims."""
    from rich.table import Table

    about = results["about"]
    console.print(
        f"{about['cpu']}, {about['threads']} threads, {about['date']}, "
        + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    )
    console.print(f"Instruction sets: {', '.join(about['instructions'])}")
    for dtype, rate in about.get("gflops", {}).items():
        console.print(f"Matrix rate in {dtype}: {rate:.0f} GFLOP/s")
    if results["imports"]:
        console.print(
            "Seconds to import, in a new Python: "
            + ", ".join(f"{k} {v:.3f}" for k, v in results["imports"].items())
        )
    for group in results["groups"]:
        fastest = min(
            values["median"]
            for name, values in group["subjects"].items()
            if name.startswith("keras_resnext") and "error" not in values
        )
        table = Table(
            "",
            "median (ms)",
            "quartiles",
            "/ our fastest",
            "of the limit",
            "memory, peak (MB)",
            "above imports",
            "first result (s)",
            "difference",
            title=name_of(group),
        )
        for name, values in group["subjects"].items():
            if "error" in values:
                table.add_row(name, "failed", values["error"])
                continue
            share = share_of_limit(about, group, values["median"])
            table.add_row(
                name,
                f"{values['median']:.1f}",
                " - ".join(f"{q:.1f}" for q in values.get("quartiles", ())),
                f"{values['median'] / fastest:.2f}",
                f"{share:.0%}" if share else "?",
                f"{values['peak'] / 1e6:.0f}",
                f"{(values['peak'] - values['imported']) / 1e6:.0f}",
                ", ".join(f"{s:.1f}" for s in values["first_result_s"]),
                f"{values['difference']:.1e}",
            )
        console.print(table)
    table = Table(
        "work", "ours", "theirs", "times as fast", "at least", "holds"
    )
    for claim in claims(results):
        table.add_row(
            claim["work"],
            claim["ours"],
            claim["theirs"],
            f"{claim['ratio']:.2f}",
            f"{claim['floor']:.2f}",
            "yes" if claim["holds"] else "NO",
        )
    console.print(table)


COLUMNS = (
    ("inference", 1, "float32"),
    ("inference", 8, "float32"),
    ("inference", 1, "bfloat16"),
    ("inference", 8, "bfloat16"),
    ("training", 8, "float32"),
    ("training", 8, "bfloat16"),
    ("training", 2, "float32"),
)


def readme_table(stored):
    """Both classes of CPU side by side, in Markdown.

    Args:
        stored: Results by class, see `stored_results`.
    """
    head = ["work"]
    for name in stored:
        head += [f"{CLASSES[name]}: ours, ms", "best framework, ms", "ratio"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    for task, batch, dtype in COLUMNS:
        cells = []
        for results in stored.values():
            cells += _compared(group_of(results, task, batch, dtype))
        if any(cells):
            work = f"{task}, batch {batch}, {dtype}"
            lines.append(f"| {work} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n\nResNeXt-50 (32x4d), medians.\n"
    for name, results in stored.items():
        about = results["about"]
        versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
        text += (
            f"{CLASSES[name]}: {about['size']} pixels on {about['threads']} "
            f"cores of an {about['cpu']}, {about['date']}; {versions}.\n"
        )
    return text


def _compared(subjects):
    """Our fastest, the fastest other framework, and the ratio, as cells."""
    ours = [name for name in (*OURS, *LOOP) if name in subjects]
    theirs = [
        name
        for name in subjects
        if name.startswith((*STOCK, "zero", "PyTorch"))
    ]
    if not (ours and theirs):
        return [""] * 3
    best, peer = _fastest(subjects, ours), _fastest(subjects, theirs)
    best, other = (subjects[name]["median"] for name in (best, peer))
    return [f"{best:,.0f}", f"{other:,.0f} ({peer})", f"{other / best:.2f}"]


def times_table(results):
    """Medians of each group beside those of other software, in Markdown.

    Args:
        results: One class of CPU's, see `stored_results`.

    Returns:
        A row for each group, and a column for each software; of several
        subjects, the fastest counts.
    """
    columns = {
        "ours": (*OURS, *LOOP),
        "stock Keras": STOCK,
        "PyTorch": (*TORCH, "PyTorch compiled"),
        **{name: (name,) for name in ("ONNX Runtime", "LiteRT", "OpenVINO")},
    }
    lines = [
        f"| {' | '.join(('milliseconds', *columns))} |",
        "|---|" + "--:|" * len(columns),
    ]
    for work in COLUMNS:
        subjects = group_of(results, *work)
        cells = []
        for names in columns.values():
            measured = [name for name in names if name in subjects]
            best = _fastest(subjects, measured) if measured else None
            cells.append(f"{subjects[best]['median']:,.0f}" if best else "")
        if any(cells):
            task, batch, dtype = work
            name = f"{task}, batch {batch}, {dtype}"
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_readme(stored, path=README):
    """Put the table between the marks."""
    text = path.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    path.write_text(
        f"{before}{MARKS[0]}\n{readme_table(stored)}{MARKS[1]}{after}"
    )


# Letters as text, so that they can be searched; the same file each time.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "keras_resnext"}


def draw_comparison(results, path):
    """A panel of bars for each group, with the quartiles."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    groups = results["groups"]
    most = max(len(group["subjects"]) for group in groups)
    columns = 2
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 0.27 * most * rows), layout="constrained"
    )
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for axis, group in zip(axes.flat, groups, strict=False):
        bars = {
            name: values
            for name, values in group["subjects"].items()
            if "error" not in values
        }
        names = list(bars)[::-1]
        medians = [bars[name]["median"] for name in names]
        spread = [
            bars[n].get("quartiles", [bars[n]["median"]] * 2) for n in names
        ]
        axis.barh(
            names,
            medians,
            xerr=[
                [m - low for m, (low, _) in zip(medians, spread, strict=True)],
                [
                    high - m
                    for m, (_, high) in zip(medians, spread, strict=True)
                ],
            ],
            color=[
                "#c2571a" if name.startswith("keras_resnext") else "#9aa5b1"
                for name in names
            ],
            error_kw={"lw": 1, "ecolor": "#333333"},
        )
        for y, median in enumerate(medians):
            axis.annotate(
                f" {median:,.0f}",
                (spread[y][1], y),
                va="center",
                fontsize=8,
            )
        axis.set_title(f"{name_of(group)} (ms)", fontsize=10)
        axis.margins(x=0.12)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_growth(points, path):
    """Time and memory of inference and training against multiply-adds."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for column, task in zip(axes.T, ("inference", "training"), strict=True):
        for axis, (value, label) in zip(
            column,
            (("ms", "time (ms)"), ("mb", "peak memory (MB)")),
            strict=True,
        ):
            for name in dict.fromkeys(point["axis"] for point in points):
                line = [
                    (
                        p["multiply_adds"] / 1e9,
                        p["median"] if value == "ms" else p["peak"] / 1e6,
                    )
                    for p in points
                    if (p["task"], p["axis"]) == (task, name)
                ]
                style = "s" if name == "cardinality" else "o-"
                axis.plot(*zip(*line, strict=True), style, label=name, ms=4)
            axis.set(title=task, ylabel=label)
            # Memory begins with what the libraries take, time does not.
            if value == "ms":
                axis.set_yscale("log", base=2)
            else:
                axis.set_ylim(bottom=0)
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:,.0f}")
            axis.set_xlabel("multiply-adds of the forward pass (G)")
            axis.grid(alpha=0.2)
    axes[0, 0].legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
