"""Tables and pictures from what was measured."""

import pathlib

FOLDER = pathlib.Path(__file__).parent / "results"
README = pathlib.Path(__file__).parents[1] / "README.md"
MARKS = ("<!-- benchmarks: begin -->", "<!-- benchmarks: end -->")
OURS = ("keras_resnext folded", "keras_resnext constant")
TORCH = ("PyTorch", "PyTorch channels_last")
# What is claimed: task, batch, dtype, ours, theirs (the faster counts; eager
# PyTorch, in either layout), and how many times as fast ours is at least.
CLAIMS = (
    ("inference", 1, "float32", OURS, ("stock Keras",), 2.0),
    ("inference", 8, "float32", OURS, ("stock Keras",), 2.0),
    ("inference", 1, "float32", OURS, TORCH, 1.15),
    ("inference", 8, "float32", OURS, TORCH, 1.15),
    ("inference", 1, "bfloat16", OURS, TORCH, 1.1),
    ("inference", 8, "bfloat16", OURS, TORCH, 1.1),
    (
        "training",
        2,
        "float32",
        ("keras_resnext grouped",),
        ("stock Keras",),
        25,
    ),
    ("training", 8, "float32", ("keras_resnext grouped",), TORCH, 1.05),
    ("training", 8, "bfloat16", ("keras_resnext grouped",), TORCH, 1.2),
    ("inference", 1, "float32", ("LiteRT",), ("OpenVINO",), 1 / 1.15),
)


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
    for task, batch, dtype, ours, theirs, floor in CLAIMS:
        subjects = group_of(results, task, batch, dtype)
        ours, theirs = (
            [name for name in names if name in subjects]
            for names in (ours, theirs)
        )
        if not (ours and theirs):
            continue
        ours, theirs = (
            min(names, key=lambda name: subjects[name]["median"])
            for names in (ours, theirs)
        )
        ratio = subjects[theirs]["median"] / subjects[ours]["median"]
        yield {
            "work": f"{task}, batch {batch}, {dtype}",
            "ours": ours,
            "theirs": theirs,
            "ratio": ratio,
            "floor": floor,
            "holds": ratio >= floor,
        }


def print_results(results, console):
    """Every group as a table, then the claims."""
    from rich.table import Table

    about = results["about"]
    console.print(
        f"{about['cpu']}, {about['threads']} threads, {about['date']}, "
        + ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    )
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
            "memory, peak (MB)",
            "above imports",
            "first result (s)",
            "difference",
            title=f"{group['task']}, batch {group['batch']}, {group['dtype']}",
        )
        for name, values in group["subjects"].items():
            if "error" in values:
                table.add_row(name, "failed", values["error"])
                continue
            table.add_row(
                name,
                f"{values['median']:.1f}",
                " - ".join(f"{q:.1f}" for q in values.get("quartiles", ())),
                f"{values['median'] / fastest:.2f}",
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


def readme_table(results):
    """Milliseconds by subject and task, in Markdown."""
    groups = [group_of(results, *column) for column in COLUMNS]
    names = list(dict.fromkeys(name for group in groups for name in group))
    lines = [
        "| milliseconds | "
        + " | ".join(
            f"{'train' if task == 'training' else 'infer'} {batch}"
            + (" bf16" if dtype == "bfloat16" else "")
            for task, batch, dtype in COLUMNS
        )
        + " |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    for name in names:
        cells = []
        for group in groups:
            if name not in group:
                cells.append("")
                continue
            best = min(values["median"] for values in group.values())
            cell = f"{group[name]['median']:,.0f}"
            bold = group[name]["median"] == best
            cells.append(f"**{cell}**" if bold else cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    about = results["about"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return (
        "\n".join(lines)
        + "\n\n"
        + f"ResNeXt-50 (32x4d) at {about['size']} pixels: medians on "
        f"{about['threads']} cores of an {about['cpu']}, {about['date']}, "
        f"`make bench`; {versions}.\n"
    )


def write_readme(results, path=README):
    """Put the table between the marks."""
    text = path.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    path.write_text(
        f"{before}{MARKS[0]}\n{readme_table(results)}{MARKS[1]}{after}"
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
        axis.set_title(
            f"{group['task']}, batch {group['batch']}, {group['dtype']} (ms)",
            fontsize=10,
        )
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
