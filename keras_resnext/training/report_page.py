"""The page of an evaluation's report: one HTML file that needs no other."""

import base64
import pathlib
from html import escape

from PIL import Image

from keras_resnext.training import report_pictures as pictures

_STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --page: #ffffff;
  --soft: #f1f4f8; --line: #d4dae3; --muted: #5a6474; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee;
  --page: #14181f; --soft: #1f2530; --line: #384150; --muted: #a3adbb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; line-height: 1.5;
  font-family: system-ui, sans-serif; color: var(--text);
  background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
p.note { color: var(--muted); }
dl { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
dl div { background: var(--soft); border-radius: .5rem; padding: .75rem; }
dt { color: var(--muted); }
dd { margin: 0; font-size: 1.4rem; }
dd small { display: block; font-size: .8rem; color: var(--muted); }
figure { margin: 1rem 0; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; background: #fff;
  border-radius: .5rem; }
.scroll { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { padding: .25rem .6rem; text-align: right;
  border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--soft);
  overflow-wrap: normal; }
th.name { text-align: left; min-width: 8rem; font-weight: normal; }
thead th.name { font-weight: bold; }
summary { cursor: pointer; padding: .4rem 0; }
"""


def page(numbers: dict, folder: pathlib.Path) -> str:
    """Write a report as HTML.

    Args:
        numbers: The content of `report.json`.
        folder: Where the pictures are; those that exist are embedded.

    Returns:
        The page. It loads nothing, and what it quotes, such as names of
        classes, is escaped.
    """
    sections = (
        _summary(numbers),
        _confusion(numbers, folder),
        _pairs(numbers, folder),
        _calibration(numbers["calibration"], folder),
        _classes(numbers),
    )
    title = escape(numbers["title"])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n{''.join(sections)}"
        f'<p class="note">keras_resnext {numbers["version"]}. All numbers are '
        "in report.json.</p>\n</body>\n</html>\n"
    )


def _summary(numbers):
    """What was evaluated, and the numbers that matter most."""
    calibration = numbers["calibration"]
    values = {
        "Accuracy": _share(numbers["accuracy"]),
        "Top-5 accuracy": _share(numbers["top5_accuracy"]),
        "Loss": (f"{numbers['loss']:.4f}", "cross-entropy, nats"),
        "Macro F1": (
            _number(numbers["macro"]["f1"]),
            "mean over classes, whatever their size",
        ),
        "Calibration error": (
            f"{calibration['ece']:.4f}",
            f"ECE, {calibration['bins']} bins of equal width",
        ),
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{value[0]}<small>{value[1]}</small></dd>"
        "</div>\n"
        for name, value in values.items()
        if value
    )
    of = f" of {escape(numbers['dataset'])}" if numbers["dataset"] else ""
    bad = len(numbers["bad_images"])
    return (
        f"<p>Split {escape(numbers['split'])}{of}: {numbers['images']} images "
        f"of {len(numbers['classes'])} classes."
        + (f" {bad} more could not be decoded and were left out." * bool(bad))
        + f"</p>\n<dl>\n{items}</dl>\n"
    )


def _confusion(numbers, folder):
    """The confusion matrix, and the part of it that can be read."""
    count = len(numbers["classes"])
    named = count <= pictures.MOST_NAMED
    return (
        "<h2>Confusion matrix</h2>\n<p>Rows are true classes, columns "
        "predicted ones. Colours show fractions of the true class: right "
        "predictions blue, mistakes red"
        + ("; numbers are images." if named else ".")
        + "</p>\n"
        + _picture(
            folder / pictures.CONFUSION,
            f"Confusion matrix of {count} classes. Accuracy "
            f"{numbers['accuracy']['value']:.2%}.",
        )
        + _picture(
            folder / pictures.MOST_CONFUSED,
            "The part of the confusion matrix with the classes of the most "
            "common mistakes, with names and numbers of images. Mistakes for "
            "other classes are not in it.",
            visible=True,
        )
    )


def _pairs(numbers, folder):
    """The most common mistakes, with pictures."""
    pairs = numbers["confused_pairs"]
    if not pairs:
        return "<h2>Most confused pairs</h2>\n<p>There are no mistakes.</p>\n"
    names = [entry["name"] for entry in numbers["classes"]]
    rows = [
        (
            names[pair["true"]],
            names[pair["predicted"]],
            str(pair["images"]),
            f"{pair['share']:.1%}",
        )
        for pair in pairs
    ]
    files = "".join(
        f"<li>{escape(names[pair['true']])}, taken for "
        f"{escape(names[pair['predicted']])}: "
        + ", ".join(escape(image["name"]) for image in pair["examples"])
        + "</li>\n"
        for pair in pairs
    )
    return (
        "<h2>Most confused pairs</h2>\n"
        + _table(
            "The most common mistakes",
            ("True class", "Predicted class", "Images", "Of the true class"),
            rows,
            names=2,
        )
        + _picture(
            folder / pictures.PAIRS,
            "Images of these mistakes, a row for each pair, those of the "
            "highest confidence first; above each image its confidence.",
            visible=True,
        )
        + f"<details><summary>Files of these images</summary>\n<ul>\n{files}"
        "</ul></details>\n"
    )


def _calibration(calibration, folder):
    """The reliability diagram and the temperature."""
    count, ece = calibration["bins"], calibration["ece"]
    rows = [
        (
            f"{i / count:.3f} to {(i + 1) / count:.3f}",
            str(entry["images"]),
            _number(entry["confidence"]),
            _number(entry["accuracy"]),
        )
        for i, entry in enumerate(calibration["reliability"])
    ]
    heads = ("Confidence", "Images", "Mean confidence", "Accuracy")
    return (
        "<h2>Calibration</h2>\n<p>The mean confidence is "
        f"{calibration['mean_confidence']:.2%}. The expected calibration error "
        "(ECE) is the mean difference of accuracy and confidence over "
        f"{count} bins of equal width, weighted by their images.</p>\n"
        f"<p>{_temperature(calibration)}</p>\n"
        + _picture(
            folder / pictures.RELIABILITY,
            f"Reliability diagram: accuracy against confidence in {count} "
            f"bins. Expected calibration error {ece:.4f}.",
        )
        + f"<details><summary>The {count} bins</summary>\n"
        f"{_table('As predicted', heads, rows)}</details>\n"
    )


def _temperature(calibration):
    """What a temperature does for the calibration."""
    if not calibration["temperature"]:
        return (
            "No temperature between 0.05 and 20 minimises the loss of these "
            "images, as happens when every image is classified right."
        )
    loss, ece = (
        f"{calibration[key]:.4f} to {calibration[f'{key}_at_temperature']:.4f}"
        for key in ("loss", "ece")
    )
    return (
        "Dividing the logits by the temperature "
        f"{calibration['temperature']:.3f} minimises the loss of these images: "
        f"the loss goes from {loss}, the ECE from {ece}. The temperature was "
        "fitted on the same images, so expect somewhat less on others. No "
        "predicted class changes."
    )


def _classes(numbers):
    """All classes, the worst first."""
    undefined = float("inf")  # after all others
    classes = sorted(
        numbers["classes"],
        key=lambda entry: undefined if entry["f1"] is None else entry["f1"],
    )
    rows = [
        (
            entry["name"],
            str(entry["class"]),
            *(_number(entry[key]) for key in ("f1", "precision", "recall")),
            *(str(entry[key]) for key in ("images", "predicted", "right")),
        )
        for entry in classes
    ]
    scores = ("F1", "Precision", "Recall")
    heads = ("Class", "Number", *scores, "Images", "Predicted", "Right")
    table = _table("Classes, those of the lowest F1 first", heads, rows)
    shown = " open" if len(rows) <= pictures.MOST_NAMED else ""
    return (
        f"<h2>Classes</h2>\n<details{shown}><summary>All {len(rows)} classes"
        f"</summary>\n{table}</details>\n"
    )


def _table(caption, heads, rows, names=1):
    """A table whose first `names` columns are text, the others numbers."""

    def row(cells, scope):
        text = "".join(
            f'<th scope="{scope}" class="name">{escape(cell)}</th>'
            for cell in cells[:names]
        )
        tag = "td" if scope == "row" else 'th scope="col"'
        text += "".join(
            f"<{tag}>{escape(cell)}</{tag[:2]}>" for cell in cells[names:]
        )
        return f"<tr>{text}</tr>\n"

    return (
        '<div class="scroll" tabindex="0"><table>\n'
        f"<caption>{caption}</caption>\n<thead>\n{row(heads, 'col')}</thead>\n"
        f"<tbody>\n{''.join(row(cells, 'row') for cells in rows)}</tbody>\n"
        "</table></div>\n"
    )


def _picture(path, text, visible=False):
    """A picture within the page, if it was drawn, described by `text`."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    caption = f"<figcaption>{text}</figcaption>" if visible else ""
    with Image.open(path) as picture:
        width, height = (round(n * 96 / pictures.DPI) for n in picture.size)
    # Narrow screens scroll: smaller, the text could not be read.
    return (
        f'<figure tabindex="0"><img alt="{escape(text)}" width="{width}" '
        f'height="{height}" style="min-width: min({width}px, 32rem)" '
        f'src="data:image/png;base64,{data}">{caption}</figure>\n'
    )


def _share(share):
    """A fraction of the images and its interval; `None` if it is `None`."""
    if share is None:
        return None
    low, high = share["interval"]
    return (
        f"{share['value']:.2%}",
        f"{share['right']} images; {share['level']:.0%} interval (Wilson) "
        f"{low:.2%} to {high:.2%}",
    )


def _number(value):
    """A number between 0 and 1, or a dash."""
    return "–" if value is None else f"{value:.4f}"  # noqa: RUF001
