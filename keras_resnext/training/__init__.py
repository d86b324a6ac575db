"""Training: recipes, data, and a `tf.distribute` loop that resumes."""

import importlib
import typing

from keras_resnext.training.recipe import RECIPES as RECIPES
from keras_resnext.training.recipe import Recipe as Recipe

if typing.TYPE_CHECKING:
    from keras_resnext.training.loop import TrainingStoppedError
    from keras_resnext.training.loop import evaluate
    from keras_resnext.training.loop import train

__all__ = ["RECIPES", "Recipe", "TrainingStoppedError", "evaluate", "train"]


def __getattr__(name):
    # Recipes are read without TensorFlow, which takes seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keras_resnext.extras import require_tensorflow

    require_tensorflow("Training")
    return getattr(importlib.import_module(f"{__name__}.loop"), name)
