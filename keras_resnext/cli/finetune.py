"""`keras-resnext finetune`: published weights on a data set of your own."""

from pathlib import Path
from typing import Annotated

import typer

from keras_resnext.cli.console import BadImageOption
from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import SaveEveryOption
from keras_resnext.cli.console import StrategyOption
from keras_resnext.cli.console import WorkdirOption
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
            "name."
        ),
    ],
    workdir: WorkdirOption,
    weights: Annotated[
        str,
        typer.Option(
            help="Weights to start from: a tag (see `list --weights`), a file, "
            "or the folder of a run."
        ),
    ] = "imagenet",
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a model, see `list`. Defaults to that of the run in "
            "--weights, else resnext50."
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
    data_dir: DataDirOption = None,
    **fields: str,
):
    """Train published weights on a data set of your own, or resume that.

    Batch, epochs, rates, augmentation and class weights adapt to the data;
    options replace what was chosen.
    """
    fields = {name: parse_field(name, text) for name, text in fields.items()}
    replicas = start_tensorflow(strategy)
    from keras_resnext.training import plan_finetuning

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
    )
