"""The picture of an export report."""

from keras_resnext.export.verify import Limits

# Columns of the table, and their shares of its width.
_COLUMNS = {
    "verdict": 0.08,
    "largest difference (limit)": 0.21,
    "mean difference": 0.11,
    "correlation (limit)": 0.15,
    "centred correlation (limit)": 0.17,
    "top-1 agreement (limit)": 0.15,
    "accuracy (Keras)": 0.13,
}


def draw_report(report, path) -> None:
    """Draw the files' cost and difference from Keras, above a table.

    Args:
        report: A `Report`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    passed = [file for file in report.files if file.passed]
    rows = len(report.files)
    bars, cells = 0.8 + 0.3 * max(1, len(passed)), 0.6 + 0.25 * rows
    figure = Figure(figsize=(13, bars + cells), layout="constrained")
    figure.suptitle(
        f"{report.model}: {report.images} images, {report.threads} threads",
        parse_math=False,
    )
    upper, lower = figure.subfigures(2, height_ratios=[bars, cells])
    _draw_bars(upper, passed)
    _draw_table(lower, report)
    figure.savefig(path, dpi=120)


def _draw_bars(figure, files):
    """Sizes, latencies, memory and differences of the files that passed."""
    panels = {
        "size (MB)": [file.bytes / 1e6 for file in files],
        "latency, batch 1 (ms)": [file.latency_ms for file in files],
        "peak memory (MB)": [file.peak_bytes / 1e6 for file in files],
        "mean difference of logits": [
            file.agreement.mean_logit_difference for file in files
        ],
    }
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.barh([file.name for file in files], values, color="#4a6fa5")
        for y, value in enumerate(values):
            axis.annotate(f" {value:,.3g}", (value, y), va="center", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()  # the first on top, as in the table


def _draw_table(figure, report):
    """All files with what was measured and its limits."""
    axis = figure.subplots()
    axis.axis("off")
    table = axis.table(
        [_cells(file, report.keras_accuracy) for file in report.files],
        rowLabels=[file.name for file in report.files],
        colLabels=list(_COLUMNS),
        colWidths=list(_COLUMNS.values()),
        colColours=["#e8edf4"] * len(_COLUMNS),
        cellLoc="center",
        bbox=[0.1, 0, 0.9, 1],
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)


def _cells(file, keras_accuracy):
    """The table's row of a file, in the order of `_COLUMNS`."""

    def measured(name, form, note=""):
        value = getattr(file.agreement, name, None)
        return _shown(value, form, note)

    def at_least(name, form):
        limit = getattr(file.limits, name, None)
        unset = limit in (None, getattr(Limits, name))
        return "" if unset else f"≥ {limit:{form}}"

    difference = getattr(file.limits, "logit_difference", float("inf"))
    most = f"≤ {difference:g} of the largest" if difference < 1e9 else ""
    keras = "" if keras_accuracy is None else f"{keras_accuracy:.4f}"
    return [
        "passed" if file.passed else "FAILED",
        measured("max_logit_difference", ".2g", most),
        measured("mean_logit_difference", ".2g"),
        measured("correlation", ".6f", at_least("correlation", "g")),
        measured(
            "centred_correlation", ".6f", at_least("centred_correlation", "g")
        ),
        measured("top1_agreement", ".2%", at_least("top1_agreement", ".2%")),
        _shown(file.accuracy, ".4f", keras),
    ]


def _shown(value, form, note):
    """A number with a note in brackets, or a dash."""
    if value is None:
        return "-"
    return f"{value:{form}}" + (f" ({note})" if note else "")
