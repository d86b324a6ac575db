"""Training recipes with `keras_resnext.training`."""

import pathlib
import shutil

from keras_resnext.training import Recipe


class Learner:
    """Trains recipes as `keras-resnext train` does.

    Args:
        runs: Folder of the run under way, which goes on if it was stopped.

    Example:

    >>> Learner("runs/study")(Recipe())["accuracy"]
    """

    backend = "tensorflow"

    def __init__(self, runs: pathlib.Path):
        self._runs = pathlib.Path(runs)

    def prepare(self, recipes) -> None:
        """Nothing: networks are built as they are trained."""

    def __call__(self, recipe: Recipe, weights=None) -> dict:
        """Train a recipe; see `benchmarks.on_jax.Learner`."""
        import keras

        from keras_resnext import Classifier
        from keras_resnext import count_complexity
        from keras_resnext import export_weights
        from keras_resnext.training import evaluate
        from keras_resnext.training import train

        plain = "" if recipe.residual else "_plain"
        folder = self._runs / f"{recipe.model}{plain}_{recipe.seed}"
        run = train(recipe, folder, keep=1)
        classifier = Classifier.load(run.path)
        result = evaluate(classifier, run.open_dataset())
        cost = count_complexity(classifier.model)
        if weights:
            export_weights(classifier.model, weights)
        history = run.history
        shutil.rmtree(folder)
        keras.backend.clear_session()  # or all graphs stay in memory
        return {
            "right": result.labels == result.predictions,
            "accuracy": result.accuracy,
            "loss": result.loss,
            "training_loss": history[-1]["loss"],
            "curve": [entry["val_accuracy"] for entry in history],
            "images_per_second": history[-1]["images_per_second"],
            "params": cost.params,
            "multiply_adds": cost.multiply_adds,
        }
