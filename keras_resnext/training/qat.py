"""Quantisation-aware fine-tuning: a recipe that goes on from a run."""

import dataclasses
import os
from typing import Any

from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.finetuning import FinetunePlan
from keras_resnext.training.finetuning import check_fields
from keras_resnext.training.finetuning import start_from_run
from keras_resnext.training.run import Run

# Of the run's own: Wu et al., arXiv 2004.09602, section 5.
EPOCHS = 0.1
RATE = 0.01
# What belongs to training from scratch or in parts, and what rounding rules
# out.
_PLAIN = {
    "schedule": "cosine",
    "warmup_epochs": 0.0,
    "milestones": (),
    "head_epochs": 0,
    "head_learning_rate": 0.0,
    "early_stopping_patience": 0,
    "extended_from": 0,
    "restart_schedule": False,
    "ema_decay": 0.0,
    "drop_path_rate": 0.0,
    "freeze_until": "",
    "precision": "float32",
    "sync_batch_norm": False,
}


def plan_qat(
    source: str | os.PathLike[str],
    workdir: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    **fields: Any,
) -> FinetunePlan:
    """Choose a recipe that trains a run's network to round as int8 files do.

    The data set, its split and the augmentation are the run's. Training takes
    a tenth of its epochs, two at least, at a hundredth of its learning rate,
    along a cosine. A run in `workdir` keeps the recipe that it has.

    Args:
        source: Folder of a finished run, trained in floating point.
        workdir: Folder of the new run; nothing is written.
        data_dir: Where TFDS keeps its data sets. Defaults to `None`: where it
            was for `source`.
        **fields: Fields of the `Recipe`; the others adapt to them.

    Returns:
        A `FinetunePlan`, for `train`.

    Raises:
        ValueError: if `source` is no such folder, its data set has changed
            since, a field cannot be used, or `workdir` contains another run.

    Example:

    >>> plan = plan_qat("runs/x", "runs/x-qat")
    >>> plan.recipe.weight_bits, plan.recipe.epochs
    (8, 2)

    and then `train(plan.recipe, "runs/x-qat")`.

    Reference:
        Wu et al., arXiv 2004.09602, section 5.
    """
    check_fields(fields)
    before, run = Run(source), Run(workdir)
    if not (before.started and before.finished):
        raise ValueError(
            "`source` must be the folder of a finished run; got "
            f"{os.fspath(source)!r}."
        )
    if before.recipe.weight_bits:
        raise ValueError(
            "`source` must be a run in floating point; "
            f"{before.path} is one of quantisation-aware training."
        )
    if before.path.resolve() == run.path.resolve():
        raise ValueError(
            f"`workdir` must be another folder than `source`, {before.path}."
        )
    if fields.get("weight_bits") == 0:
        raise ValueError("`weight_bits` must be from 2 to 8; got 0.")
    start, about = start_from_run(before, None)
    if run.started:
        if not run.recipe.weight_bits:
            raise ValueError(
                "`workdir` must be new or a run of quantisation-aware "
                f"training; {run.path} was trained in floating point."
            )
        given = {"weights": start["weights"], **fields}
        recipe = dataclasses.replace(run.recipe, **given)
        run.check(recipe)
        return FinetunePlan(recipe, (f"Resuming {run.path} with its recipe.",))
    _check_data(before, data_dir)
    recipe = before.recipe
    epochs = fields.get("epochs") or max(2, round(EPOCHS * recipe.epochs))
    recipe = dataclasses.replace(
        recipe,
        **{
            **start,
            "form": "grouped",
            "weight_bits": 8,
            "epochs": epochs,
            "learning_rate": RATE * recipe.learning_rate,
            **_PLAIN,
            **fields,
        },
    )
    return FinetunePlan(
        recipe,
        (
            about,
            f"Rounded as in int8 files: weights to {recipe.weight_bits} bits "
            "by channel, activations to 8 bits by tensor.",
            f"{epochs} epochs, rate {recipe.peak_lr:.3g} along a "
            f"{recipe.schedule} schedule; {before.path} had "
            f"{before.recipe.epochs} at {before.recipe.peak_lr:.3g}.",
            "Batch-norm statistics are frozen after half of the steps, ranges "
            "of activations after three quarters.",
        ),
    )


def _check_data(before, data_dir):
    """Refuse data that has changed, or that would be split in another way."""
    data = before.open_dataset(data_dir=data_dir)
    data.prepare()
    before.check_data(data)
    anew = open_dataset(
        before.recipe.dataset,
        data_dir or before.data_dir,
        val_fraction=before.recipe.val_fraction,
    )
    anew.prepare()
    difference = data.fingerprint.difference(anew.fingerprint)
    if difference:
        raise ValueError(
            f"`source` must have the validation split that {data.name} gets by "
            f"itself, because training makes it anew; {difference}."
        )
