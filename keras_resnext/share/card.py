"""The model card: what a model is, how to open it, how good it is."""

import math
import re
from typing import TYPE_CHECKING
from typing import Any

from keras_resnext import __version__
from keras_resnext.complexity import count_complexity
from keras_resnext.extras import require
from keras_resnext.weights.registry import NON_COMMERCIAL

if TYPE_CHECKING:
    from keras_resnext.classifier import Classifier
    from keras_resnext.training import Evaluation

_PAPER = "https://arxiv.org/abs/1611.05431"
_MOST_LABELS = 20

_TEMPLATE = """---
{card_data}
---

# {title}

{summary}

{description}

## Open it

{usage}

## Its input

{transform}

## Evaluation

{evaluation}

## Files

{files}

## Licence and source

{license_text}

The network is described in [Xie et al., arXiv 1611.05431]({paper}).
Written by keras_resnext {version}.
"""


def check_evaluation(
    evaluation: "Evaluation", classifier: "Classifier"
) -> None:
    """Refuse an evaluation with other classes, or another transform.

    Args:
        evaluation: The `Evaluation`.
        classifier: The `Classifier` it must be of.

    Raises:
        ValueError: if the numbers of classes, class names or transforms
            differ, it has no images, or its loss is not finite. That its
            predictions are the classifier's is not checked.
    """
    if not hasattr(evaluation, "top5_accuracy"):
        raise ValueError(
            "`evaluation` must be an Evaluation, as "
            f"keras_resnext.training.evaluate returns it; got {evaluation!r}."
        )
    classes = classifier.model.output_shape[-1]
    theirs = list(evaluation.class_names)
    ours = classifier.labels
    if len(theirs) != classes or ours not in (None, theirs):
        raise ValueError(
            "`evaluation` must be of the classifier; its classes are "
            f"{theirs[:5]}, the classifier's {ours and ours[:5]} ({classes})."
        )
    if evaluation.transform not in (None, classifier.transform):
        raise ValueError(
            "`evaluation` must be with the classifier's transform, "
            f"{classifier.transform}; got {evaluation.transform}."
        )
    if not evaluation.examples or not math.isfinite(evaluation.loss):
        raise ValueError(
            "`evaluation` must have images and a finite loss; got "
            f"{evaluation.examples} and {evaluation.loss}."
        )


def write_card(
    classifier: "Classifier",
    repository: str,
    *,
    opens_in_timm: bool,
    evaluation: "Evaluation | None",
    license: str | None,
    description: str,
    report: dict[str, Any],
    files: list[tuple[str, int]],
) -> str:
    """Write a model card, with its numbers in the `model-index` form.

    Args:
        classifier: The `Classifier`.
        repository: Owner and name.
        opens_in_timm: Whether timm has such a network.
        evaluation: Its `Evaluation`, or `None`.
        license: SPDX identifier, or `None`.
        description: Paragraphs of the author's, in Markdown.
        report: `report.json` of exported files; empty without.
        files: Names and sizes in bytes of the repository's other files.

    Returns:
        The text of `README.md`.
    """
    require("huggingface_hub", extra="weights", purpose="A model card")
    from huggingface_hub import ModelCardData

    name = repository.rpartition("/")[2]
    data = ModelCardData(
        model_name=name,
        license=license,
        library_name="timm" if opens_in_timm else "keras",
        pipeline_tag="image-classification",
        tags=["image-classification", "keras", "keras_resnext", "resnext"]
        + ["timm"] * opens_in_timm,
        metrics=["accuracy"] if evaluation else None,
        eval_results=_results(evaluation),
    )
    return _TEMPLATE.format(
        card_data=data.to_yaml(),
        title=name,
        summary=_summary(classifier),
        description=description.strip(),
        usage=_usage(repository, opens_in_timm),
        transform=_transform(
            classifier.require_transform(),
            report,
            classifier.model.layers[1].compute_dtype,
        ),
        evaluation=_evaluation(evaluation),
        files=_files(files, report),
        license_text=_license(license, classifier.record),
        paper=_PAPER,
        version=__version__,
    )


def _dataset(evaluation):
    """A data set's name; of a folder, which may be private, the last part."""
    if not evaluation or not evaluation.data:
        return "not named"
    return re.split(r"[/\\]", str(evaluation.data.name).rstrip("/\\"))[-1]


def _cell(text):
    """Text for a table: one line, without the sign between columns."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _code(text):
    """Text as code, whatever it has in it."""
    text = " ".join(text.split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _results(evaluation):
    """The numbers in the form that the Hub shows."""
    from huggingface_hub import EvalResult

    if not evaluation:
        return None
    dataset = _dataset(evaluation)
    numbers = {
        ("accuracy", "Top-1 accuracy"): evaluation.accuracy,
        ("accuracy", "Top-5 accuracy"): evaluation.top5_accuracy,
        ("loss", "Cross-entropy (nats)"): evaluation.loss,
    }
    if len(evaluation.class_names) <= 5:
        del numbers["accuracy", "Top-5 accuracy"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=evaluation.split,
            metric_type=kind,
            metric_name=title,
            metric_value=float(value),
        )
        for (kind, title), value in numbers.items()
    ]


def _summary(classifier):
    model = classifier.model
    cost = count_complexity(model)
    size = classifier.require_transform().image_size
    classes = model.output_shape[-1]
    lines = [
        f"`{model.name}`, an image classifier of the ResNeXt family for "
        f"{size}x{size} pixels and {classes} classes: {cost.params:,} "
        f"parameters, {cost.multiply_adds / 1e6:,.0f} million multiply-adds "
        "an image."
    ]
    labels = classifier.labels
    if labels:
        shown = ", ".join(map(_code, labels[:_MOST_LABELS]))
        more = ", ..." if len(labels) > _MOST_LABELS else ""
        lines.append(f"Classes: {shown}{more}.")
    return "\n\n".join(lines)


def _usage(repository, opens_in_timm):
    lines = [
        "With keras_resnext and its extra `weights`, from a photograph to "
        "class names:",
        "```python\nimport keras_resnext\n\n"
        "classifier = keras_resnext.Classifier.load(\n"
        f'    "hf://{repository}"\n)\n'
        'print(classifier.predict("photo.jpg")[0].top(3))\n```',
        "With Keras and huggingface_hub alone. Images must be prepared as "
        "described below, and CPUs take longer than with keras_resnext:",
        "```python\nimport keras\n\n"
        f'model = keras.saving.load_model("hf://{repository}")\n```',
    ]
    if opens_in_timm:
        lines += [
            "With timm, on PyTorch:",
            "```python\nimport timm\n\n"
            f'model = timm.create_model("hf-hub:{repository}", '
            "pretrained=True)\n"
            "config = timm.data.resolve_model_data_config(model)\n"
            "transform = timm.data.create_transform(**config)\n```",
        ]
    return "\n\n".join(lines)


def _transform(transform, report, precision):
    text = (
        f"RGB. The shorter side is resized to {transform.resize_size} pixels "
        f"({transform.interpolation}, antialiased), the centre of "
        f"{transform.image_size}x{transform.image_size} cropped, and pixels "
        f"in [0, 1] normalised with mean {list(transform.mean)} and standard "
        f"deviation {list(transform.std)}, as `config.json` says too."
    )
    if precision != "float32":
        text += (
            f" Layers compute in {precision}; readers that compute in float32 "
            "get slightly different probabilities."
        )
    if report:
        text += (
            " The exported files below take pixels in [0, 255] and normalise "
            "them inside."
        )
    return text


def _evaluation(evaluation):
    if not evaluation:
        return "No evaluation was given."
    rows = [
        "| data set | split | images | top-1 accuracy | 95 % interval "
        "| top-5 accuracy | cross-entropy (nats) |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    low, high = _interval(evaluation.accuracy, evaluation.examples)
    top5 = f"{evaluation.top5_accuracy:.4f}"
    if len(evaluation.class_names) <= 5:
        top5 = "-"
    rows.append(
        f"| {_cell(_dataset(evaluation))} | {_cell(evaluation.split)} "
        f"| {evaluation.examples:,} | {evaluation.accuracy:.4f} "
        f"| {low:.4f} to {high:.4f} | {top5} | {evaluation.loss:.4f} |"
    )
    text = "\n".join(rows) + (
        "\n\nEvery image of the split that could be decoded was classified "
        "once, by `keras_resnext.training.evaluate`; the interval is Wilson's."
    )
    if evaluation.bad_images:
        text += f" {len(evaluation.bad_images)} could not be decoded."
    return text


def _interval(share, count):
    """Wilson's 95 % interval of a share (Wilson, 1927, JASA 22, 209-212)."""
    z = 1.959963984540054
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(
        share * (1 - share) / count + z * z / (4 * count * count)
    )
    scale = 1 + z * z / count
    return (middle - half) / scale, (middle + half) / scale


def _files(files, report):
    about = {
        "config.json": "network, transform and class names",
        "metadata.json": "Keras' version",
        "model.weights.h5": "weights for Keras",
        "model.safetensors": "weights in torchvision's names",
        "report.json": "how the exported files were verified",
        "report.png": "the same, drawn",
    }
    exported = {entry["file"]: entry for entry in report.get("files", ())}
    rows = ["| file | MB | |", "|---|--:|---|"]
    for name, size in files:
        text = about.get(name) or _exported(exported[name])
        rows.append(f"| `{name}` | {size / 1e6:.2f} | {text} |")
    return "\n".join(rows)


def _exported(entry):
    """How an exported file was verified, in a few words."""
    agreement = entry["top1_agreement"]
    parts = [
        f"top-1 agreement with Keras {agreement:.2%}",
        f"largest difference of logits {entry['max_logit_difference']:.1e}",
    ]
    if entry["accuracy"] is not None:
        parts.append(f"accuracy {entry['accuracy']:.4f}")
    name = " ".join(filter(None, (entry["format"], entry["quantize"])))
    return f"{name}: {', '.join(parts)}"


def _license(license, record):
    origin = ""
    if record:
        origin = f" They are {record.name}, published by {record.origin}."
    if license is None:
        return "No licence was given; ask the author before using the weights."
    text = f"Licence of the weights: {license}."
    if license == NON_COMMERCIAL:
        text += " It excludes commercial use."
    return text + origin
