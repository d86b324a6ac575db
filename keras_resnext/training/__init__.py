"""Training with `tf.distribute`: recipes, data sets, resumable runs."""

import importlib
import typing

from keras_resnext.training.presets import RECIPES as RECIPES
from keras_resnext.training.recipe import Recipe as Recipe

if typing.TYPE_CHECKING:
    from keras_resnext.training.evaluation import Evaluation as Evaluation
    from keras_resnext.training.evaluation import evaluate as evaluate
    from keras_resnext.training.finetuning import FinetunePlan as FinetunePlan
    from keras_resnext.training.finetuning import finetune as finetune
    from keras_resnext.training.finetuning import (
        plan_finetuning as plan_finetuning,
    )
    from keras_resnext.training.interrupt import (
        TrainingStoppedError as TrainingStoppedError,
    )
    from keras_resnext.training.options import TrainOptions as TrainOptions
    from keras_resnext.training.qat import plan_qat as plan_qat
    from keras_resnext.training.run import Run as Run
    from keras_resnext.training.trainer import train as train

# Recipes need no TensorFlow, which takes seconds to import.
_HOME = {
    "Evaluation": "evaluation",
    "FinetunePlan": "finetuning",
    "Run": "run",
    "TrainOptions": "options",
    "TrainingStoppedError": "interrupt",
    "evaluate": "evaluation",
    "finetune": "finetuning",
    "plan_finetuning": "finetuning",
    "plan_qat": "qat",
    "train": "trainer",
}

__all__ = ["RECIPES", "Recipe", *_HOME]


# Type checkers would take it that every name exists.
if not typing.TYPE_CHECKING:

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}"
            )
        from keras_resnext.extras import require_tensorflow

        require_tensorflow("Training")
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
        return getattr(module, name)
