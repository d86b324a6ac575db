"""The folder of a training run: what `train` writes and others read."""

import dataclasses
import json
import os
import pathlib
import shutil
import typing
import zipfile
import zlib
from typing import Any

import keras

from keras_resnext.classifier import Classifier
from keras_resnext.extras import first_line
from keras_resnext.files import add_line
from keras_resnext.files import staged
from keras_resnext.training.fingerprint import Fingerprint
from keras_resnext.training.recipe import Recipe

if typing.TYPE_CHECKING:
    from keras_resnext.training.datasets import ImageData

# What is read of an epoch; it has more.
_METRICS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy")
# Of a whole `.keras` file.
_MODEL_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}


class Run:
    """A training run's folder.

    | file | content |
    |---|---|
    | `recipe.json` | the full `Recipe` |
    | `labels.json` | class names, in the order of the outputs |
    | `data.json` | number of images of each class, and a hash of their names |
    | | and sizes, see `Fingerprint` |
    | `data_dir.txt` | TFDS' folder, if it was not the default |
    | `split.json` | the validation images, of a folder without splits |
    | `history.jsonl` | metrics, one line per epoch |
    | `checkpoints/` | model, optimizer and step, to resume from |
    | `tensorboard/` | loss, accuracy and learning rate, for TensorBoard |
    | `bad_images.txt` | names of images that were left out, if any; those of |
    | | other workers are in `bad_images_worker1.txt` and so on; a name with |
    | | unprintable characters is written as JSON, in quotes |
    | `best.keras` | the model with the best validation accuracy |
    | `learning_curves.png` | a plot of the history |
    | `model.keras` | the trained model, once training is finished |
    | `model_epoch10.keras` | what it was before the run was extended |
    | `.keras_resnext.lock` | which process is training here, while it is |

    Runs of earlier versions have a `labels.txt` and no `data.json`.

    Both models are saved with their class names and transform, see
    `keras_resnext.classifier.Classifier`.

    Args:
        path: The folder; it need not exist yet.

    Example:

    >>> run = Run("runs/digits")
    >>> run.labels[:2], run.history[-1]["learning_rate"]
    (['0', '1'], 0.0)
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
        self._labels_file = self.path / "labels.json"
        self._old_labels_file = self.path / "labels.txt"
        self.data_file = self.path / "data.json"
        self._history_file = self.path / "history.jsonl"

    @property
    def recipe(self) -> Recipe:
        """The run's `Recipe`."""
        self._require(self._recipe_file)
        return Recipe.load(self._recipe_file)

    @property
    def labels(self) -> list[str]:
        """Class names, in the order of the model's outputs."""
        if not self._labels_file.exists() and self._old_labels_file.exists():
            return _lines(self._old_labels_file)
        self._require(self._labels_file)
        labels = _json(self._labels_file.read_bytes(), self._labels_file)
        if not isinstance(labels, list) or not all(
            isinstance(label, str) for label in labels
        ):
            raise ValueError(
                f"{self._labels_file} must be a list of class names; it is not."
            )
        return labels

    @property
    def history(self) -> list[dict[str, Any]]:
        """Metrics of each finished epoch: a list of dicts.

        Half a line at the end, of a process that was killed, is left out.
        """
        file = self._history_file
        if not file.exists():
            return []
        lines = file.read_bytes().splitlines(keepends=True)
        if lines and lines[-1][:1] == b"{" and lines[-1][-1:] not in b"}\r\n":
            del lines[-1]
        entries = [_json(line, file) for line in lines]
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict) or not all(
                isinstance(entry.get(name), (int, float)) for name in _METRICS
            ):
                raise ValueError(
                    f"{file} must have the metrics of an epoch on each line, "
                    f"{', '.join(_METRICS)}; line {number} does not."
                )
        return entries

    @property
    def bad_images(self) -> list[str]:
        """Names of the images that were left out, by any worker."""
        files = sorted(self.path.glob("bad_images*.txt"))
        names = (name for file in files for name in _read_names(file))
        return list(dict.fromkeys(names))

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
        """Whether training is finished, and its model there as a whole."""
        return _is_whole(self.model_file)

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

        >>> recipe = run.extended(20)  # then: train(recipe, run.path)
        >>> recipe.epochs
        20
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
        if self._labels_file.exists():
            same = labels == self.labels
        elif self._old_labels_file.exists():
            # Its names may contain line breaks too.
            same = _text(self._old_labels_file) == _joined(labels)
        else:
            return
        if not same:
            raise ValueError(
                f"`dataset` must have the classes that {self.path} was "
                f"trained on, {self.labels}; it has {labels}."
            )

    def check_data(self, data: "ImageData") -> None:
        """Refuse a data set that has changed since the run started.

        Args:
            data: The prepared `ImageData`.

        Raises:
            ValueError: if its images are others, in number, name or size.
        """
        if not (self.started and self.data_file.exists()):
            return
        before = Fingerprint.read(self.data_file)
        difference = before.difference(data.fingerprint)
        if difference:
            raise ValueError(
                f"`dataset` must be as it was when {self.path} started; "
                f"{data.name} has changed: {difference}. Restore the images, "
                "or start a new run in another `workdir`."
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
        for path in _read_names(self._data_dir_file):
            if "://" in path or os.path.isdir(path):
                return path
        return None

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
                _write_names(new, [path])
        if self._is_written and not self.finished:
            return
        data.write_split(self.split_file)
        data.fingerprint.write(self.data_file)
        with staged(self._labels_file, overwrite=True) as new:
            new.write_text(json.dumps(data.labels, indent=1))
        if self.finished:
            name = f"model_epoch{recipe.extended_from}.keras"
            self.model_file.rename(self.path / name)
        recipe.save(self._recipe_file, overwrite=True)  # the run has started

    @property
    def _is_written(self):
        """Whether all is there that `start` writes."""
        files = (self._recipe_file, self._labels_file, self.data_file)
        return all(file.exists() for file in files)

    def finish_with_best(self) -> None:
        """Make the best epoch's model the result."""
        if not _is_whole(self.best_model_file):
            raise ValueError(
                f"{self.best_model_file} must be the model of the best epoch; "
                "it is missing or damaged."
            )
        with staged(self.model_file, overwrite=True) as new:
            shutil.copyfile(self.best_model_file, new)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Replace the history."""
        with staged(self._history_file, overwrite=True) as new:
            new.write_text("".join(json.dumps(e) + "\n" for e in history))

    def add_to_history(self, entry: dict[str, Any]) -> None:
        """Add an epoch; to replace all takes longer the more there are."""
        add_line(self._history_file, json.dumps(entry))

    def write_bad_images(self, names: list[str], worker: str = "") -> None:
        """Add names to the list of images that were left out.

        Args:
            names: Names of images; those already listed are not repeated.
            worker: Name of this worker, see `strategy.worker_name`. Defaults
                to `""`, the chief.
        """
        file = self.path / f"bad_images{worker and '_'}{worker}.txt"
        before = _read_names(file) if file.exists() else []
        names = dict.fromkeys([*before, *names])
        if len(names) == len(before):
            return
        with staged(file, overwrite=True) as new:
            _write_names(new, names)

    def _require(self, path):
        """Refuse a folder without a file that every run has."""
        if not path.exists():
            raise ValueError(
                f"`model` must be the folder of a training run; {self.path} "
                f"has no {path.name}."
            )


def _text(path):
    """The text of a file; `read_text` would take a carriage return for more."""
    try:
        return path.read_bytes().decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8; {error}.") from error


def _lines(path):
    """Lines of a file, which end in line feeds and nothing else."""
    return _text(path).removesuffix("\n").split("\n")


def _joined(lines):
    return "\n".join(lines) + "\n"


def _json(text, path):
    """The value of a text that is read from a file."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} must be valid JSON; {first_line(error)}."
        ) from error


def _read_names(path):
    """What `_write_names` wrote."""
    return [
        _json(line, path) if line.startswith('"') else line
        for line in _lines(path)
        if line
    ]


def _write_names(path, names):
    """Write names, one a line; those with line breaks and the like as JSON."""
    lines = [
        name
        if name.isprintable() and not name.startswith('"')
        else json.dumps(name)
        for name in names
    ]
    path.write_bytes(_joined(lines).encode())


def _is_whole(path):
    """Whether a file is a model as Keras writes it, with all its bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return (
                set(archive.namelist()) >= _MODEL_MEMBERS
                and archive.testzip() is None
            )
    except (FileNotFoundError, NotADirectoryError):
        return False
    # Cut off, overwritten, or something else.
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError),
        *(NotImplementedError, RuntimeError, ValueError),
    ):
        return False
