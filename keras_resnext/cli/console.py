"""What the commands share: output, tables, progress, common arguments."""

import contextlib
import logging
import time
import unicodedata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from keras_resnext.extras import require_tensorflow
from keras_resnext.quiet import hidden_stderr

SECONDS_BETWEEN_LINES = 60  # of progress, in a file


# Line breaks, tabs, and the joiners of letters and of emoji.
_KEPT = "\n\t\u200c\u200d"


def printable(text):
    """Text without what a terminal would obey, or could not show.

    Names of files, classes and data sets are strangers'. Control characters,
    those that turn the direction of writing, and bytes that are not UTF-8
    become their escapes; line breaks, tabs, wide spaces and joiners stay.
    """
    return "".join(
        c
        if c.isprintable() or c in _KEPT or unicodedata.category(c) == "Zs"
        else ascii(c)[1:-1]
        for c in text
    )


class _Console(Console):
    """A console that prints strings as they are."""

    def render_str(self, text, **options):
        return super().render_str(printable(text), **options)


# Neither markup nor names of emoji mean anything in the name of a file.
_PLAIN = {"soft_wrap": True, "markup": False, "emoji": False}
console = _Console(**_PLAIN)
errors = _Console(stderr=True, **_PLAIN)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a training run, a .keras file, a model's name, or a "
        "repository of the Hugging Face Hub (hf://user/name).",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="TAG|FILE",
        help="With a model's name: published weights, see `list --weights`, "
        "or a file of weights. Defaults to imagenet.",
    ),
]
PreprocessingOption = Annotated[
    str,
    typer.Option(
        help="How pixels are normalised before the model: imagenet, none if "
        "it takes them as they are, or auto for what file and model say.",
    ),
]
BadImageOption = Annotated[
    str,
    typer.Option(help="error, or skip to leave out undecodable images."),
]
WorkdirOption = Annotated[
    Path,
    typer.Option(help="Run directory; training resumes if it exists."),
]
StrategyOption = Annotated[
    str, typer.Option(help="auto, one, mirrored, multiworker or tpu.")
]
SaveEveryOption = Annotated[
    int,
    typer.Option(
        min=0, help="Steps between checkpoints. Defaults to one epoch."
    ),
]
DeterministicOption = Annotated[
    bool,
    typer.Option("--deterministic", help="Reproduce every bit; may be slower."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Directory of TensorFlow Datasets' data sets."),
]


def read_preprocessing(text):
    """The option's value as Python has it."""
    return None if text == "none" else text


def print_error(error, label="Error: "):
    """Print an error as one line on standard error."""
    message = printable(" ".join(str(error).split()))
    errors.print(Text.assemble((label, "bold red"), message))


class _WarningLines(logging.Handler):
    def emit(self, record):
        message = printable(record.getMessage())
        errors.print(Text.assemble(("Warning: ", "yellow"), message))


@contextlib.contextmanager
def warnings_as_lines():
    """Print what this package logs as lines, not in a log's format."""
    log = logging.getLogger("keras_resnext")
    handler = _WarningLines(logging.WARNING)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


def table(first, *others, title=None):
    """A table whose columns after the first are right-aligned numbers."""
    result = Table(first, *others, title=title)
    for column in result.columns[1:]:
        column.justify = "right"
    return result


def progress_bar(unit):
    """A progress bar on standard error that disappears when it is done."""
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(compact=True),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


@contextlib.contextmanager
def training_progress():
    """A bar over the whole run, and a line for each epoch and for resuming.

    Where the output is no terminal, a line a minute stands for the bar.
    """
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=10),
        TextColumn("{task.description}, left"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
    )
    task, last_line = None, time.monotonic()

    def on_step(progress):
        nonlocal task, last_line
        text = (
            f"loss {progress.loss:.3f} accuracy {progress.accuracy:.3f} "
            f"{progress.images_per_second:.0f} images/s"
        )
        if task is None and progress.resumed_after:
            console.print(
                f"Resumed after step {progress.resumed_after} of "
                f"{progress.steps}.",
                highlight=False,
            )
        now = time.monotonic()
        if not console.is_terminal and now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            console.print(
                f"epoch {progress.epoch:3d}, step {progress.step} of "
                f"{progress.steps}: {text}",
                highlight=False,
            )
        if task is None:
            # A resumed run starts its clock where it resumes.
            task = bar.add_task(
                text,
                total=progress.steps,
                completed=progress.step,
                epoch=progress.epoch,
            )
            bar.start()  # not before: it ends with a line of its own
        else:
            bar.update(
                task,
                completed=progress.step,
                description=text,
                epoch=progress.epoch,
            )

    def on_epoch(entry):
        nonlocal last_line
        last_line = time.monotonic()
        bar.print(epoch_line(entry))

    try:
        yield on_step, on_epoch
    finally:
        if task is not None:
            bar.stop()


def epoch_line(entry):
    """One epoch of a run's history as a line of text."""
    wait = entry["input_wait"]
    return (
        f"epoch {entry['epoch']:3d}: loss {entry['loss']:.4f}, accuracy "
        f"{entry['accuracy']:.4f}; val_loss {entry['val_loss']:.4f}, "
        f"val_accuracy {entry['val_accuracy']:.4f}; "
        f"{entry['images_per_second']:.0f} images/s"
        + ("" if wait is None else f", {wait:.1%} waiting for input")
    )


def open_data(model, dataset, data_dir):
    """The data set asked for, or the one that a run was trained on."""
    from keras_resnext.training import Run
    from keras_resnext.training.datasets import open_dataset

    run = Run(model) if Path(model).is_dir() else None
    if run and dataset in (None, run.recipe.dataset):
        return run.open_dataset(data_dir=data_dir)
    if dataset is not None:
        return open_dataset(dataset, data_dir)
    raise ValueError(
        f"`dataset` must be given, because {model} is not the folder of a run."
    )


def print_bad_images(names):
    """Name the images that were left out, if any."""
    if names:
        console.print(
            f"{len(names)} more could not be decoded and were left out: "
            f"{', '.join(names)}."
        )


def start_tensorflow(strategy=None):
    """Import TensorFlow without its greeting, and make a strategy.

    Its libraries write to standard error before any log level counts. Their
    output is kept, and shown if the import fails. On Keras' other backends
    there is nothing to start, and no strategy.
    """
    with hidden_stderr():
        import keras

        if keras.backend.backend() != "tensorflow":
            if strategy is not None:
                require_tensorflow("Training")
            return None

        import tensorflow as tf

        if strategy is None:
            tf.config.list_logical_devices()
            return None
        from keras_resnext.training.strategy import make_strategy

        return make_strategy(strategy)
