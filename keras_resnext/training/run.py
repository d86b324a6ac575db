"""The folder of a training run: what `train` writes and others read."""

import dataclasses
import json
import os
import pathlib
import shutil
import typing
from typing import Any

import keras

from keras_resnext.classifier import Classifier
from keras_resnext.files import staged
from keras_resnext.training.recipe import Recipe

if typing.TYPE_CHECKING:
    from keras_resnext.training.datasets import ImageData


class Run:
    """A training run's folder.

    | file | content |
    |---|---|
    | `recipe.json` | the full `Recipe` |
    | `labels.txt` | class names, one a line, in the order of the outputs |
    | `data_dir.txt` | TFDS' folder, if it was not the default |
    | `split.json` | the validation images, of a folder without splits |
    | `history.jsonl` | metrics, one line per epoch |
    | `checkpoints/` | model, optimizer and step, to resume from |
    | `tensorboard/` | loss, accuracy and learning rate, for TensorBoard |
    | `bad_images.txt` | names of images that were left out, if any; those of |
    | | other workers are in `bad_images_worker1.txt` and so on |
    | `best.keras` | the model with the best validation accuracy |
    | `learning_curves.png` | a plot of the history |
    | `model.keras` | the trained model, once training is finished |
    | `model_epoch10.keras` | what it was before the run was extended |

    Both models are saved with their class names and transform, see
    `keras_resnext.classifier.Classifier`.

    Args:
        path: The folder; it need not exist yet.

    Example:

    >>> run = Run("runs/digits")
    >>> run.labels[:2], run.history[-1]["epoch"]
    (['0', '1'], 10)
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model_file = self.path / "model.keras"
        self.best_model_file = self.path / "best.keras"
        self.learning_curves = self.path / "learning_curves.png"
        self.tensorboard = self.path / "tensorboard"
        self.split_file = self.path / "split.json"
        self._data_dir_file = self.path / "data_dir.txt"
        self._recipe_file = self.path / "recipe.json"
        self._labels_file = self.path / "labels.txt"
        self._history_file = self.path / "history.jsonl"

    @property
    def recipe(self) -> Recipe:
        """The run's `Recipe`."""
        self._read(self._recipe_file)
        return Recipe.load(self._recipe_file)

    @property
    def labels(self) -> list[str]:
        """Class names, in the order of the model's outputs."""
        return self._read(self._labels_file).splitlines()

    @property
    def history(self) -> list[dict[str, Any]]:
        """Metrics of each finished epoch: a list of dicts."""
        if not self._history_file.exists():
            return []
        lines = self._history_file.read_text().splitlines()
        return [json.loads(line) for line in lines]

    @property
    def bad_images(self) -> list[str]:
        """Names of the images that were left out, by any worker."""
        files = sorted(self.path.glob("bad_images*.txt"))
        lines = (name for f in files for name in f.read_text().splitlines())
        return list(dict.fromkeys(lines))

    def load_model(self) -> keras.Model:
        """The trained `keras.Model`; `Classifier.load` has its labels too.

        Raises:
            ValueError: if training is not finished.
        """
        return Classifier.load(self.path).model

    @property
    def started(self) -> bool:
        """Whether the folder contains a run."""
        return self._recipe_file.exists()

    @property
    def finished(self) -> bool:
        """Whether training is finished."""
        return self.model_file.exists()

    @property
    def best_epoch(self) -> dict[str, Any]:
        """Metrics of the epoch with the best validation accuracy."""
        return max(
            self.history,
            key=lambda entry: (entry["val_accuracy"], -entry["val_loss"]),
        )

    def extended(
        self, epochs: int, *, restart_schedule: bool = False
    ) -> Recipe:
        """The recipe with which `train` goes on with this finished run.

        Args:
            epochs: Epochs in all.
            restart_schedule: See `Recipe.extended`. Defaults to `False`.

        Returns:
            A `Recipe`; that of the run if it already is extended so.

        Raises:
            ValueError: if the run is not finished, or has as many epochs.

        Example:

        >>> train(run.extended(20), run.path)
        """
        recipe = self.recipe
        if not self.finished:
            if recipe.extended_from and recipe.epochs == epochs:
                return recipe  # stopped while it was extended
            raise ValueError(
                f"`workdir` must be a finished run to be extended; {self.path} "
                "is not. Start the same training again to finish it."
            )
        return recipe.extended(
            epochs, len(self.history), restart_schedule=restart_schedule
        )

    def check(self, recipe: Recipe) -> None:
        """Refuse a folder that contains another run.

        Args:
            recipe: The `Recipe` to train here.

        Raises:
            ValueError: if the folder has another recipe, or a run's files and
                no recipe.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"`workdir` must be a folder; {self.path} is a file."
            )
        if not self._recipe_file.exists():
            for path in (self.checkpoints, self.model_file, self._history_file):
                if path.exists():
                    raise ValueError(
                        "`workdir` must be new or contain this run; "
                        f"{self.path} has {path.name} and no "
                        f"{self._recipe_file.name}."
                    )
            return
        saved = self.recipe
        if self._extends(saved, recipe):
            return
        different = [
            f"{field.name} {getattr(recipe, field.name)!r} "
            f"(there {getattr(saved, field.name)!r})"
            for field in dataclasses.fields(recipe)
            if getattr(recipe, field.name) != getattr(saved, field.name)
        ]
        if different:
            raise ValueError(
                "`workdir` must be new or contain this run; the recipe in "
                f"{self.path} differs: {', '.join(different)}."
            )

    def check_labels(self, labels: list[str]) -> None:
        """Refuse a data set with other classes.

        Raises:
            ValueError: if they differ in name or order.
        """
        if self._labels_file.exists() and labels != self.labels:
            raise ValueError(
                f"`dataset` must have the classes that {self.path} was "
                f"trained on, {self.labels}; it has {labels}."
            )

    def _extends(self, saved, recipe):
        """Whether a recipe is that of this finished run, extended."""
        done = len(self.history)
        return (
            self.finished
            and recipe.extended_from == done
            and recipe
            == saved.extended(
                recipe.epochs, done, restart_schedule=recipe.restart_schedule
            )
        )

    @property
    def data_dir(self) -> str | None:
        """Where TFDS had the run's data set; `None` for its own default.

        A folder that is gone is not named: the run may have been moved.
        """
        if not self._data_dir_file.exists():
            return None
        path = self._data_dir_file.read_text().strip()
        return path if "://" in path or os.path.isdir(path) else None

    def open_dataset(
        self,
        recipe: Recipe | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> "ImageData":
        """The data set of the run, split as it was when the run started.

        Args:
            recipe: The `Recipe` of a run that has not started. Defaults to
                `None`, the run's.
            data_dir: Where TFDS keeps its data sets. Defaults to `None`:
                where it was for this run, if that folder is still there, else
                TFDS' own default.

        Returns:
            An `ImageData`.

        Raises:
            ValueError: if there is no such data set.

        Example:

        >>> Run("runs/digits").open_dataset().val_split
        'test'
        """
        from keras_resnext.training.datasets import open_dataset

        recipe = recipe or self.recipe
        return open_dataset(
            recipe.dataset,
            data_dir or self.data_dir,
            split_file=self.split_file,
            val_fraction=recipe.val_fraction,
        )

    def start(
        self,
        recipe: Recipe,
        data: "ImageData",
        data_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write what the run is, unless it is there; go on with a finished one.

        Args:
            recipe: Its `Recipe`.
            data: Its `ImageData`.
            data_dir: Where TFDS keeps it. Defaults to `None`, TFDS' default.
        """
        if data_dir is not None:
            path = os.fspath(data_dir)
            path = path if "://" in path else os.path.abspath(path)
            with staged(self._data_dir_file, overwrite=True) as new:
                new.write_text(f"{path}\n")
        if self.finished:
            name = f"model_epoch{recipe.extended_from}.keras"
            self.model_file.rename(self.path / name)
        elif self._recipe_file.exists() and self._labels_file.exists():
            return
        data.write_split(self.split_file)
        recipe.save(self._recipe_file, overwrite=True)
        with staged(self._labels_file, overwrite=True) as new:
            new.write_text("\n".join(data.labels) + "\n")

    def finish_with_best(self) -> None:
        """Make the best epoch's model the result."""
        with staged(self.model_file, overwrite=True) as new:
            shutil.copyfile(self.best_model_file, new)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replace the history."""
        with staged(self._history_file, overwrite=True) as new:
            new.write_text("".join(json.dumps(e) + "\n" for e in history))

    def write_bad_images(self, names: list[str], worker: str = "") -> None:
        """Add names to the list of images that were left out.

        Args:
            names: Names of images; those already listed are not repeated.
            worker: Name of this worker, see `strategy.worker_name`. Defaults
                to `""`, the chief.
        """
        file = self.path / f"bad_images{worker and '_'}{worker}.txt"
        before = file.read_text().splitlines() if file.exists() else []
        names = dict.fromkeys([*before, *names])
        if len(names) == len(before):
            return
        with staged(file, overwrite=True) as new:
            new.write_text("".join(f"{name}\n" for name in names))

    def _read(self, path):
        """The text of a file that every run has."""
        if not path.exists():
            raise ValueError(
                f"`model` must be the folder of a training run; {self.path} "
                f"has no {path.name}."
            )
        return path.read_text()
