"""`keras-resnext predict`: the most probable classes of images."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from keras_resnext.cli.console import ModelArgument
from keras_resnext.cli.console import PreprocessingOption
from keras_resnext.cli.console import WeightsOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import print_error
from keras_resnext.cli.console import printable
from keras_resnext.cli.console import progress_bar
from keras_resnext.cli.console import read_preprocessing
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.console import table


def predict(
    model: ModelArgument,
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Image files, folders of image files, and - for an image on "
            "standard input."
        ),
    ],
    weights: WeightsOption = None,
    preprocessing: PreprocessingOption = "auto",
    top: Annotated[int, typer.Option(min=1, help="Classes to print.")] = 5,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images that the model sees at once.")
    ] = 32,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most pixels that an image may have; one with more is not "
            "read. Defaults to 178956970, Pillow's limit.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead.")
    ] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV instead. Names that a spreadsheet would take for "
            "a formula begin with an apostrophe.",
        ),
    ] = False,
):
    """Print the most probable classes of images.

    An image that cannot be read is named, the others are classified, and the
    exit status is 1.
    """
    if as_json and as_csv:
        raise ValueError("`predict` takes --json or --csv; got both.")
    start_tensorflow()
    from keras_resnext.classifier import Classifier
    from keras_resnext.classifier import list_images
    from keras_resnext.images import MAX_PIXELS

    sources = [
        source
        for place in images
        for source in (
            list_images(place)
            if place.is_dir()
            else [_standard_input() if str(place) == "-" else place]
        )
    ]
    if not sources:
        raise ValueError(
            "`images` must be image files or folders with some; got "
            f"{', '.join(map(str, images))}."
        )
    classifier = Classifier.load(
        model, weights, preprocessing=read_preprocessing(preprocessing)
    )
    predictions = []
    with progress_bar("images") as bar:
        for prediction in bar.track(
            classifier.iter_predictions(
                sources,
                batch_size,
                on_bad_image="skip",
                max_pixels=max_pixels or MAX_PIXELS,
            ),
            total=len(sources),
        ):
            predictions.append(prediction)
            if prediction.error:
                print_error(prediction.error)
    if as_json:
        print(json.dumps([_record(p, top) for p in predictions], indent=1))
    elif as_csv:
        _print_csv(predictions, top)
    else:
        _print_table(predictions, top, classifier.input_description)
    if any(prediction.error for prediction in predictions):
        raise typer.Exit(1)


def _standard_input():
    """The image on standard input, as a file called -."""
    file = io.BytesIO(sys.stdin.buffer.read())
    file.name = "-"
    return file


def _record(prediction, top):
    """One image as JSON has it."""
    if prediction.error:
        return {"image": prediction.name, "error": prediction.error}
    classes = [
        {"label": label, "probability": round(probability, 6)}
        for label, probability in prediction.top(top)
    ]
    return {"image": prediction.name, "classes": classes}


def _print_csv(predictions, top):
    """A row for each image and class."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "probability", "error"])
    for prediction in predictions:
        name = _cell(prediction.name)
        if prediction.error:
            writer.writerow([name, "", "", "", _cell(prediction.error)])
            continue
        for rank, (label, probability) in enumerate(prediction.top(top), 1):
            writer.writerow(
                [name, rank, _cell(label), f"{probability:.6f}", ""]
            )


def _cell(text):
    """Text that no spreadsheet takes for a formula: with an apostrophe."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _print_table(predictions, top, taken):
    """Classes below each other, images in sections; what the model took."""
    rows = table("image", "class", "probability")
    rows.columns[1].justify = "left"
    for prediction in predictions:
        if prediction.error:
            continue
        name = prediction.name
        for label, probability in prediction.top(top):
            rows.add_row(name, label, f"{probability:.4f}")
            name = ""
        rows.add_section()
    if rows.row_count:
        console.print(rows)
        console.print(f"Input: {taken}.")
