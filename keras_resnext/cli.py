"""The command line: it parses and prints; the work is done elsewhere.

Nothing heavy is imported before a command needs it, so that `--help` answers
at once.
"""

import contextlib
import enum
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn
from rich.table import Table

app = typer.Typer(
    help="ResNeXt for Keras 3: build, train, evaluate, predict and export.",
    epilog="Errors are one line; with KERAS_RESNEXT_TRACEBACK=1 in the "
    "environment they come with a traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)


class Format(enum.StrEnum):
    """What `export` can write; also the names in its table."""

    savedmodel = "savedmodel"
    tflite = "tflite"
    onnx = "onnx"


_FILE_NAMES = {
    Format.savedmodel: "saved_model",
    Format.tflite: "model.tflite",
    Format.onnx: "model.onnx",
}
_GRID_IMAGES = 40

ModelArgument = Annotated[
    Path, typer.Argument(help="Folder of a training run, or a .keras file.")
]
ModelOption = Annotated[
    Path,
    typer.Option("--model", help="Folder of a training run, or a .keras file."),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Where TensorFlow Datasets keeps its data sets."),
]


def main():
    """Run the command line; a failure is one line and exit status 1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if "KERAS_RESNEXT_TRACEBACK" in os.environ:
            raise
        message = " ".join(str(error).split())
        Console(stderr=True).print(
            f"[bold red]Error:[/] {escape(message)}", soft_wrap=True
        )
        sys.exit(1)


@app.command("list")
def list_models():
    """List the models that have a name of their own."""
    _start_tensorflow()
    from keras_resnext.resnext import list_models

    for name in list_models():
        console.print(name)
    console.print(
        "and resnext<depth>_<cardinality>x<base_width>d, such as "
        "resnext50_2x40d or resnext29_8x64d"
    )


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="Name of a model, see `list`.")],
    form: Annotated[str, typer.Option(help="grouped or branches.")] = "grouped",
):
    """Print a model's layers and parameters."""
    _start_tensorflow()
    from keras_resnext.resnext import build

    build(model, form=form).summary()


@app.command()
def train(
    workdir: Annotated[
        Path, typer.Option(help="Folder of the run; one that exists goes on.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="Other fields of the recipe, such as epochs=30.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A TFDS name, such as digits or cifar10, or a folder "
            "<split>/<class>/<image>.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of a model, see `list`.")
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, one or mirrored.")
    ] = "auto",
    data_dir: DataDirOption = None,
):
    """Train a model, or go on where training stopped.

    Without options the recipe is a small ResNeXt on handwritten digits.
    """
    _start_tensorflow()
    from keras_resnext.training import Recipe
    from keras_resnext.training import train

    recipe = Recipe().override(
        [
            *([f"dataset={dataset}"] if dataset else []),
            *([f"model={model}"] if model else []),
            *(overrides or []),
        ]
    )
    console.print(recipe)
    with _training_progress() as (on_step, on_epoch):
        run = train(
            recipe,
            workdir,
            strategy=strategy,
            data_dir=data_dir,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    console.print(
        f"{run.path}: {len(run.history)} epochs done, held-out accuracy "
        f"{run.history[-1]['held_out_accuracy']:.4f}. Wrote "
        f"{run.model_file.name} and {run.learning_curves.name}."
    )


@app.command()
def evaluate(
    model: ModelArgument,
    dataset: Annotated[
        str | None,
        typer.Option(help="Defaults to the one the run was trained on."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Defaults to the one that is not trained on."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Where to draw predictions, mistakes first. Defaults to "
            "predictions.png in the run's folder."
        ),
    ] = None,
    data_dir: DataDirOption = None,
):
    """Classify every image of a split and count."""
    _start_tensorflow()
    from keras_resnext.training import evaluate

    network, run = _load(model)
    dataset = _dataset_of(run, dataset)
    result = evaluate(
        network, dataset, split=split, batch_size=batch_size, data_dir=data_dir
    )
    console.print(
        f"{dataset}, split {result.split}: all {result.examples} images seen, "
        f"{round(result.accuracy * result.examples)} right. "
        f"Accuracy {result.accuracy:.4f}, loss {result.loss:.4f}."
    )
    if picture is None and run is not None:
        picture = run.path / "predictions.png"
    if picture is not None:
        _draw_predictions(network, dataset, data_dir, result, picture)
        console.print(f"Wrote {picture}.")


@app.command()
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="JPEG, PNG, GIF or BMP files.")
    ],
    model: ModelOption,
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 5,
):
    """Name the most probable classes of images."""
    _start_tensorflow()
    from keras_resnext.preprocessing import image_size
    from keras_resnext.preprocessing import preprocess_input
    from keras_resnext.preprocessing import read_image

    network, run = _load(model)
    labels = run.labels if run else None
    size = image_size(network)
    pixels = [read_image(path, size) for path in images]
    for path, image in zip(images, pixels, strict=True):
        scores = network.predict_on_batch(preprocess_input(image[None]))[0]
        table = Table("class", "probability", title=str(path))
        for i in scores.argsort()[::-1][:top]:
            table.add_row(labels[i] if labels else str(i), f"{scores[i]:.4f}")
        console.print(table)


@app.command()
def export(
    model: ModelArgument,
    formats: Annotated[
        str, typer.Option("--format", help="Some of them, with commas.")
    ] = ",".join(Format),
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set to compare on. Without one: the run's; for a "
            ".keras file, images of noise."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder. Defaults to export/ beside the model."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    data_dir: DataDirOption = None,
):
    """Write a model in other formats, and prove each file in its own runtime.

    Every file is loaded back and compared with Keras on every held-out image
    before it is put in place.
    """
    chosen = [_check_format(name) for name in formats.split(",")]
    _start_tensorflow()
    from keras_resnext import export as exporters
    from keras_resnext.files import check_free

    network, run = _load(model)
    if output is None:
        output = (model if run else model.parent) / "export"
    paths = {name: output / _FILE_NAMES[name] for name in chosen}
    for path in paths.values():
        check_free(path, overwrite=overwrite)
    images = classes = None
    if data or run:
        images, classes = _held_out_pixels(
            network, _dataset_of(run, data), data_dir
        )
    write = {
        Format.savedmodel: exporters.to_saved_model,
        Format.tflite: exporters.to_tflite,
        Format.onnx: exporters.to_onnx,
    }
    artifacts = []
    for name, path in paths.items():
        with console.status(f"Writing and checking {path}"):
            artifacts.append(
                write[name](
                    network,
                    path,
                    labels=run.labels if run else None,
                    images=images,
                    overwrite=overwrite,
                )
            )
    console.print(_comparison(network, artifacts, images, classes))
    for artifact in artifacts:
        console.print(f"Wrote {artifact.path}.")


def _comparison(network, artifacts, images, classes):
    """The table of formats beside Keras, on the same images."""
    import numpy as np

    from keras_resnext.export import artifact as measures

    if images is None:
        images = measures.noise(network)
    keras_run = measures.keras_runner(network, "imagenet")
    rows = [("keras", None, keras_run(images), keras_run, None)] + [
        (a.format, a.size, a.scores, a.open(), a) for a in artifacts
    ]
    table = Table(
        "format",
        "size (MB)",
        "logit difference",
        "top-1 agreement",
        "accuracy",
        "latency (ms)",
        title=f"{len(images)} images, each in the format's own runtime; "
        f"latency: median, batch 1, {os.cpu_count()} threads",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, size, scores, run, proof in rows:
        accuracy = (
            "-"
            if classes is None
            else f"{np.mean(scores.argmax(-1) == classes):.4f}"
        )
        table.add_row(
            name,
            "-" if size is None else f"{size / 1e6:.2f}",
            "-" if proof is None else f"{proof.max_logit_difference:.1e}",
            "-" if proof is None else f"{proof.top1_agreement:.2%}",
            accuracy,
            f"{measures.latency(run, images):.2f}",
        )
    return table


def _held_out_pixels(network, dataset, data_dir):
    import numpy as np

    from keras_resnext.preprocessing import image_size
    from keras_resnext.training.data import open_dataset

    size = image_size(network)
    data = open_dataset(dataset, data_dir)
    data.prepare()
    pixels, classes = zip(
        *data.images(data.held_out_split, size).as_numpy_iterator(), strict=True
    )
    return np.stack(pixels), np.stack(classes)


def _draw_predictions(network, dataset, data_dir, result, picture):
    """All mistakes, as far as they fit, then images classified right."""
    import numpy as np

    from keras_resnext.files import staged
    from keras_resnext.preprocessing import image_size
    from keras_resnext.training.data import open_dataset
    from keras_resnext.training.plots import prediction_grid

    data = open_dataset(dataset, data_dir)
    wrong = result.labels != result.predictions
    shown = np.argsort(~wrong, kind="stable")[:_GRID_IMAGES]
    wanted = {int(i): place for place, i in enumerate(shown)}
    pixels = [None] * len(shown)
    images = data.images(result.split, image_size(network))
    for i, (image, _) in enumerate(images.as_numpy_iterator()):
        if i in wanted:
            pixels[wanted[i]] = image
    with staged(picture, overwrite=True) as new:
        prediction_grid(
            np.stack(pixels),
            result.labels[shown],
            result.predictions[shown],
            data.labels,
            new,
            title=f"{dataset}, {result.split}: {wrong.sum()} of "
            f"{result.examples} wrong (red)",
        )


def _load(path):
    """A model and the `Run` it came from, `None` for a file."""
    import keras

    from keras_resnext.training.workdir import Run

    if path.is_dir():
        run = Run(path)
        return run.load_model(), run
    if path.suffix == ".keras" and path.is_file():
        return keras.saving.load_model(path), None
    raise ValueError(
        "`model` must be the folder of a training run or a .keras file; got "
        f"{path}."
    )


def _dataset_of(run, dataset):
    if dataset is None and run is None:
        raise ValueError(
            "`dataset` must be given for a model that is not a run's folder; "
            "got none."
        )
    return dataset or run.recipe.dataset


def _check_format(name):
    if name not in list(Format):
        raise ValueError(
            f"`format` must be some of {', '.join(Format)}; got {name!r}."
        )
    return Format(name)


@contextlib.contextmanager
def _training_progress():
    """A bar over the whole run, and a line above it for each epoch."""
    with Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=10),
        TextColumn(
            "loss {task.fields[loss]:.3f} accuracy {task.fields[accuracy]:.3f} "
            "{task.fields[speed]:.0f} images/s, left"
        ),
        TimeRemainingColumn(compact=True),
        console=console,
    ) as bar:
        task = None

        def on_step(progress):
            nonlocal task
            fields = {
                "epoch": progress.epoch,
                "loss": progress.loss,
                "accuracy": progress.accuracy,
                "speed": progress.images_per_second,
            }
            if task is None:
                # A resumed run starts its clock where it goes on.
                task = bar.add_task(
                    "", total=progress.steps, completed=progress.step, **fields
                )
            else:
                bar.update(task, completed=progress.step, **fields)

        def on_epoch(entry):
            bar.print(
                f"epoch {entry['epoch']:3d}: loss {entry['loss']:.4f}, "
                f"accuracy {entry['accuracy']:.4f}; held out "
                f"{entry['held_out_loss']:.4f}, "
                f"{entry['held_out_accuracy']:.4f}"
            )

        yield on_step, on_epoch


def _start_tensorflow():
    """Import TensorFlow without its greeting.

    Its libraries write to standard error before any log level counts. What
    they write is kept, and shown if the import fails.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        import tensorflow as tf

        return
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as greeting:
        os.dup2(greeting.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_logical_devices()
        except BaseException:
            greeting.seek(0)
            os.write(standard_error, greeting.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
