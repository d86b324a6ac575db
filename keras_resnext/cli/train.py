"""`keras-resnext train`: train what a recipe says, or resume a run."""

from pathlib import Path
from typing import Annotated

import typer

from keras_resnext.cli.console import BadImageOption
from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.console import training_progress
from keras_resnext.extras import suggest


def train(
    workdir: Annotated[
        Path,
        typer.Option(help="Run directory; training resumes if it exists."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="Other fields of the recipe, such as epochs=30.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe, see `list --recipes`.")
    ] = "digits",
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
    weights: Annotated[
        str | None,
        typer.Option(help="Initial weights: a tag, or a file."),
    ] = None,
    freeze_until: Annotated[
        str | None,
        typer.Option(
            help="Freeze everything up to and including this stage, e.g. conv3."
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, one, mirrored, multiworker or tpu.")
    ] = "auto",
    steps_per_execution: Annotated[
        int,
        typer.Option(
            min=0,
            help="Training steps per compiled call. Defaults to 1 on CPUs, 10 "
            "on GPUs and TPUs.",
        ),
    ] = 0,
    save_every_steps: Annotated[
        int,
        typer.Option(
            min=0, help="Steps between checkpoints. Defaults to one epoch."
        ),
    ] = 0,
    keep: Annotated[
        int, typer.Option(min=1, help="Number of checkpoints to keep.")
    ] = 2,
    on_bad_image: BadImageOption = "error",
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Reproduce every bit; may be slower."
        ),
    ] = False,
    data_dir: DataDirOption = None,
):
    """Train a model, or resume where training stopped.

    Without options, a small ResNeXt is trained on handwritten digits.
    """
    from keras_resnext.training import RECIPES

    if recipe not in RECIPES:
        raise ValueError(
            f"`recipe` must be one of {', '.join(RECIPES)}; got {recipe!r}."
            f"{suggest(recipe, RECIPES)}"
        )
    options = {
        "dataset": dataset,
        "model": model,
        "weights": weights,
        "freeze_until": freeze_until,
    }
    assignments = [
        f"{name}={value}" for name, value in options.items() if value
    ]
    plan = RECIPES[recipe].override([*assignments, *(overrides or [])])
    # Workers connect before anything else uses TensorFlow.
    replicas = start_tensorflow(strategy)
    from keras_resnext.training import train

    console.print(plan)
    with training_progress() as (on_step, on_epoch):
        run = train(
            plan,
            workdir,
            strategy=replicas,
            data_dir=data_dir,
            steps_per_execution=steps_per_execution,
            save_every_steps=save_every_steps,
            keep=keep,
            on_bad_image=on_bad_image,
            deterministic=deterministic,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    _print_result(run, plan.epochs)


def _print_result(run, epochs):
    """Where the model is, and how good."""
    accuracy = [entry["val_accuracy"] for entry in run.history[-1:]]
    console.print(
        f"{run.path}: {epochs} epochs done"
        + "".join(f", val_accuracy {a:.4f}" for a in accuracy)
        + f". Its {run.model_file.name} is ready."
    )
    if run.bad_images:
        console.print(
            f"{len(run.bad_images)} images could not be decoded and were left "
            f"out; see {run.path / 'bad_images*.txt'}."
        )
