"""`keras-resnext train`: train what a recipe says, or resume a run."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from keras_resnext.cli.console import BadImageOption
from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import DeterministicOption
from keras_resnext.cli.console import SaveEveryOption
from keras_resnext.cli.console import StrategyOption
from keras_resnext.cli.console import WorkdirOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.console import training_progress
from keras_resnext.cli.fields import with_recipe_fields
from keras_resnext.extras import suggest


@with_recipe_fields
def train(
    workdir: WorkdirOption,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="Fields of the recipe, as epochs=30 or --epochs 30.",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Name of a recipe, see `list --recipes`, or a .json file of "
            "one, such as a run's."
        ),
    ] = "digits",
    extend_to: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train a finished run to this number of epochs, with its own "
            "recipe. The learning rate goes on as if that had been planned.",
        ),
    ] = None,
    restart_schedule: Annotated[
        bool,
        typer.Option(
            "--restart-schedule",
            help="With --extend-to: start the learning rate's schedule again.",
        ),
    ] = False,
    strategy: StrategyOption = "auto",
    steps_per_execution: Annotated[
        int,
        typer.Option(
            min=0,
            help="Training steps per compiled call. Defaults to 1 on CPUs, 10 "
            "on GPUs and TPUs.",
        ),
    ] = 0,
    save_every_steps: SaveEveryOption = 0,
    keep: Annotated[
        int, typer.Option(min=1, help="Number of checkpoints to keep.")
    ] = 2,
    on_bad_image: BadImageOption = "error",
    deterministic: DeterministicOption = False,
    data_dir: DataDirOption = None,
    **fields: str,
):
    """Train a model, or resume where training stopped.

    Without options, a small ResNeXt is trained on handwritten digits.
    """
    assignments = [f"{name}={value}" for name, value in fields.items()]
    assignments += overrides or []
    if extend_to is None:
        if restart_schedule:
            raise ValueError("`restart_schedule` needs --extend-to.")
        plan = _find_recipe(recipe).override(assignments)
    elif assignments or recipe != "digits":
        raise ValueError(
            "`extend_to` takes the recipe of the run as it is; got "
            f"{', '.join(assignments) or recipe}."
        )
    # Workers connect before anything else uses TensorFlow.
    replicas = start_tensorflow(strategy)
    if extend_to is not None:
        plan = _extended(workdir, extend_to, restart_schedule)
    else:
        plan = _fit_image_size(plan, recipe, assignments, workdir, data_dir)
    run_training(
        plan,
        workdir,
        on_start=lambda data: _print_start(plan, data),
        strategy=replicas,
        data_dir=data_dir,
        steps_per_execution=steps_per_execution,
        save_every_steps=save_every_steps,
        keep=keep,
        on_bad_image=on_bad_image,
        deterministic=deterministic,
    )


def run_training(plan, workdir, **options):
    """Train with a progress bar, and say what came of it."""
    from keras_resnext.training import train

    with training_progress() as (on_step, on_epoch):
        run = train(
            plan, workdir, on_step=on_step, on_epoch=on_epoch, **options
        )
    _print_result(run)


def _find_recipe(recipe):
    """A recipe by its name or file."""
    from keras_resnext.training import RECIPES
    from keras_resnext.training import Recipe

    if recipe.endswith(".json"):
        return Recipe.load(recipe)
    if recipe not in RECIPES:
        raise ValueError(
            f"`recipe` must be one of {', '.join(RECIPES)}, or a .json file; "
            f"got {recipe!r}.{suggest(recipe, RECIPES)}"
        )
    return RECIPES[recipe]


def _fit_image_size(plan, recipe, assignments, workdir, data_dir):
    """The recipe for the images of another data set than the recipe's own."""
    from keras_resnext.resnext import DEFAULT_SIZE
    from keras_resnext.training import Run
    from keras_resnext.training.datasets import open_dataset
    from keras_resnext.variants import default_image_size

    assigned = {assignment.partition("=")[0] for assignment in assignments}
    if (
        assigned & {"image_size", "eval_image_size"}
        or recipe.endswith(".json")
        or plan.dataset == _find_recipe(recipe).dataset
        or Path(plan.dataset).is_dir()
        # Networks for photographs take small images enlarged.
        or default_image_size(plan.model) != DEFAULT_SIZE["cifar"]
    ):
        return plan
    data_dir = data_dir or Run(workdir).data_dir
    size = open_dataset(plan.dataset, data_dir).image_size
    if size in (None, plan.image_size):
        return plan
    console.print(
        f"The images of {plan.dataset} have {size} pixels a side: image_size "
        f"is {size} instead of the recipe's {plan.image_size}.",
        highlight=False,
    )
    return dataclasses.replace(plan, image_size=size, eval_image_size=0)


def _extended(workdir, epochs, restart_schedule):
    """The recipe of a run that is to train for more epochs."""
    from keras_resnext.training import Run

    run = Run(workdir)
    plan = run.extended(epochs, restart_schedule=restart_schedule)
    schedule = (
        "starts again" if plan.restart_schedule else "is restated for them"
    )
    console.print(
        f"{run.path}: from {plan.extended_from} to {epochs} epochs; the "
        f"schedule of the learning rate {schedule}."
    )
    return plan


def _print_start(plan, data):
    """The recipe, and what is odd about the data."""
    console.print(plan)
    for line in data.check():
        console.print(line, highlight=False)


def _print_result(run):
    """Where the model is, and how good."""
    epochs = len(run.history)
    if not epochs:
        raise ValueError(
            f"{run.path} must have the metrics of its epochs in history.jsonl; "
            f"they are missing. Its {run.model_file.name} is ready."
        )
    entry = run.history[-1]
    line = f"{run.path}: {epochs} epoch{'s' * (epochs > 1)} done"
    if run.recipe.early_stopping_patience:
        entry = run.best_epoch
        line += f", the best is {entry['epoch']}"
    console.print(
        f"{line}, val_accuracy {entry['val_accuracy']:.4f}. Its "
        f"{run.model_file.name} is ready."
    )
    if run.bad_images:
        console.print(
            f"{len(run.bad_images)} images could not be decoded and were left "
            f"out; see {run.path / 'bad_images*.txt'}."
        )
