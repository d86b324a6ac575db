"""`keras-resnext finetune`: published weights on a data set of your own."""

from pathlib import Path
from typing import Annotated

import typer

from keras_resnext.cli.console import BadImageOption
from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import DeterministicOption
from keras_resnext.cli.console import SaveEveryOption
from keras_resnext.cli.console import StrategyOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.fields import with_recipe_fields
from keras_resnext.cli.train import run_training
from keras_resnext.training.recipe import parse_field


@with_recipe_fields
def finetune(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Folder <class>/<image> or <split>/<class>/<image>, or a TFDS "
            "name; with --qat, the folder of a finished run."
        ),
    ],
    workdir: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; training resumes if it exists. With --qat it "
            "defaults to that of the finished run with -qat at the end."
        ),
    ] = None,
    qat: Annotated[
        bool,
        typer.Option(
            "--qat",
            help="Train the network of a finished run on the run's own data "
            "to round as its int8 file will (quantisation-aware training).",
        ),
    ] = False,
    weights: Annotated[
        str,
        typer.Option(
            help="Weights to start from: a tag (see `list --weights`), a file, "
            "the folder of a run, or a repository, hf://user/name."
        ),
    ] = "imagenet",
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a model, see `list`. Defaults to the one that "
            "--weights are of, with a tag to resnext50."
        ),
    ] = None,
    save_recipe: Annotated[
        Path | None,
        typer.Option(
            help="Write the recipe to this .json file, to edit and to use with "
            "`train --recipe`, and do not train."
        ),
    ] = None,
    strategy: StrategyOption = "auto",
    save_every_steps: SaveEveryOption = 0,
    on_bad_image: BadImageOption = "error",
    deterministic: DeterministicOption = False,
    data_dir: DataDirOption = None,
    **fields: str,
):
    """Train published weights on a data set of your own, or resume it.

    Batch, epochs, rates, augmentation and class weights adapt to the data;
    options replace what was chosen. With --qat, `keras-resnext finetune
    runs/x --qat` prepares the network of runs/x for an int8 file.
    """
    if qat:
        _check_alone(weights, model)
        source = Path(dataset).resolve()
        workdir = workdir or source.with_name(f"{source.name}-qat")
    elif workdir is None:
        raise ValueError("`workdir` must be given, unless there is --qat.")
    fields = {name: parse_field(name, text) for name, text in fields.items()}
    replicas = start_tensorflow(strategy)
    from keras_resnext.training import Run
    from keras_resnext.training import plan_finetuning
    from keras_resnext.training import plan_qat

    if qat:
        plan = plan_qat(dataset, workdir, data_dir=data_dir, **fields)
        data_dir = data_dir or Run(dataset).data_dir
    else:
        plan = plan_finetuning(
            dataset,
            workdir,
            weights=weights,
            model=model,
            data_dir=data_dir,
            **fields,
        )
    for line in plan.reasons:
        console.print(line, highlight=False)
    if save_recipe is not None:
        plan.recipe.save(save_recipe)
        console.print(f"Wrote {save_recipe}.")
        return
    run_training(
        plan.recipe,
        workdir,
        strategy=replicas,
        data_dir=data_dir,
        save_every_steps=save_every_steps,
        on_bad_image=on_bad_image,
        deterministic=deterministic,
    )


def _check_alone(weights, model):
    """Refuse what --qat takes from the run."""
    for name, value, default in (
        ("weights", weights, "imagenet"),
        ("model", model, None),
    ):
        if value != default:
            raise ValueError(
                f"`{name}` must not be given with --qat, which goes on from a "
                f"finished run; got {value!r}."
            )
