"""The configuration of a training run, without TensorFlow."""

import contextlib
import dataclasses
import inspect
import json
import math
import os
import pathlib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from keras_resnext.extras import first_line
from keras_resnext.extras import suggest
from keras_resnext.files import staged

if typing.TYPE_CHECKING:
    from keras_resnext.transforms import EvalTransform

_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    "interpolation": ("bilinear", "bicubic"),
    "class_weight": ("none", "balanced"),
}
_ABOVE_ZERO = (
    *("image_size", "batch_size", "gradient_accumulation_steps", "epochs"),
    *("learning_rate", "gamma", "crop_pct", "head_lr_factor"),
)
_NOT_BELOW_ZERO = (
    *("weight_decay", "global_clipnorm", "crop_padding", "mixup", "cutmix"),
    *("color_jitter", "lighting", "eval_image_size", "seed"),
    *("lr_base_size", "head_epochs", "head_learning_rate"),
    *("early_stopping_patience", "extended_from", "weight_bits"),
)
# What each field is about, as the command line's help groups them.
GROUPS = {
    "Data and network": (
        *("dataset", "val_fraction", "model", "form", "residual"),
        *(
            "drop_path_rate",
            "image_size",
            "eval_image_size",
            "crop_pct",
            "seed",
        ),
    ),
    "Schedule": (
        *("epochs", "batch_size", "gradient_accumulation_steps"),
        *("learning_rate", "lr_base_size", "schedule", "warmup_epochs"),
        *("milestones", "gamma", "early_stopping_patience"),
        *("extended_from", "restart_schedule"),
    ),
    "Optimizer and loss": (
        *("optimizer", "momentum", "nesterov", "weight_decay", "decay_all"),
        *("global_clipnorm", "ema_decay", "label_smoothing", "class_weight"),
        *("precision", "sync_batch_norm"),
    ),
    "Fine-tuning": (
        *("weights", "head_epochs", "head_learning_rate", "head_lr_factor"),
        *("freeze_until", "freeze_batch_norm", "weight_bits"),
    ),
    "Augmentation": (
        *("crop_padding", "random_resized_crop_scale", "interpolation", "flip"),
        *("color_jitter", "lighting", "trivial_augment", "random_erasing"),
        *("mixup", "cutmix"),
    ),
}
_BELOW_ONE = (
    *("momentum", "label_smoothing", "ema_decay", "drop_path_rate"),
    "val_fraction",
)
_FRACTIONS = ("random_erasing", "random_resized_crop_scale", "crop_pct")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The full configuration of a run, saved with it as `recipe.json`.

    The defaults train a small CIFAR-style ResNeXt on handwritten digits in
    one to two minutes on two CPU cores. `RECIPES` has others, by name, and
    `plan_finetuning` makes one for a folder of photographs.

    Args:
        dataset: Name of a TFDS builder (`"digits"`, `"cifar10"`), or path of a
            folder `<class>/<image>` or `<split>/<class>/<image>`.
        val_fraction: Part of a TFDS data set's training split that is kept
            out of training and is the validation split, as for choosing a
            recipe; 0 to validate on the data set's own validation or test
            split.
        model: Name of a network, see `keras_resnext.variants.build`.
        form: Form of the blocks, `"grouped"`, `"concatenated"` or
            `"branches"`.
        residual: Whether blocks have shortcuts.
        drop_path_rate: Probability that the last block is skipped in training
            (stochastic depth), rising linearly from 0 at the first one; 0 for
            none. See `ResNeXt`.
        image_size: Side of the training images, in pixels.
        batch_size: Images per step, over all replicas.
        gradient_accumulation_steps: Number of parts into which each replica
            splits its batch to save memory. The gradient is that of the whole
            batch; batch norm sees one part at a time.
        epochs: Passes over the training split, those of `head_epochs` among
            them.
        optimizer: `"sgd"` or `"adamw"`.
        learning_rate: Learning rate after the warm-up, for all layers but
            those that `head_lr_factor` and `freeze_until` name.
        lr_base_size: Batch size that `learning_rate` is meant for: with
            another `batch_size` it is scaled in proportion (Goyal et al.,
            arXiv 1706.02677); 0 to use it as it is.
        schedule: After the warm-up, `"cosine"` decays to zero along a cosine;
            `"step"` multiplies by `gamma` at each of `milestones`.
        warmup_epochs: Epochs over which the rate rises linearly from zero.
        milestones: Epochs after which the rate drops.
        gamma: Factor by which it drops.
        momentum: Momentum of SGD; beta 1 of AdamW.
        nesterov: Whether SGD's momentum is Nesterov's.
        weight_decay: With SGD, L2 weight decay, added to the gradient as in
            the paper's code and PyTorch; with AdamW, decoupled weight decay,
            times the learning rate.
        decay_all: Whether biases and batch norm decay too, as in the paper.
        global_clipnorm: Maximum global norm of the gradients, summed over
            replicas; 0 for no clipping.
        ema_decay: Decay per step of the moving average of the weights and the
            batch-norm statistics, which starts after the warm-up and is what
            is evaluated and saved; 0 for none.
        label_smoothing: Probability spread evenly over all classes.
        class_weight: `"balanced"` to weight each image's loss by the inverse
            frequency of its class, with a mean of 1 over the training split;
            `"none"` to weight all alike.
        early_stopping_patience: Epochs without a better validation accuracy
            (or, at the same accuracy, loss) after which training ends, and
            the best epoch's weights are the result; 0 to train to the end and
            keep the last ones.
        precision: `"float32"`, `"mixed_bfloat16"`, or `"mixed_float16"` with
            loss scaling.
        sync_batch_norm: Whether batch norm uses the statistics of all
            replicas.
        crop_padding: Black pixels around a training image before a random
            crop back to `image_size`; 0 for none.
        random_resized_crop_scale: Smallest area of a random crop (aspect
            ratio 3:4 to 4:3), as a fraction of the image's, before it is
            resized to `image_size`; 0 for the largest centred square instead.
        interpolation: Interpolation of that resize, `"bilinear"` or
            `"bicubic"`.
        flip: Whether half of the training images are flipped horizontally.
        color_jitter: Largest relative change of brightness, contrast and
            saturation.
        lighting: Standard deviation of PCA lighting noise (AlexNet's).
        trivial_augment: Whether each image gets one random operation of
            random strength (TrivialAugmentWide, arXiv 2103.10158).
        random_erasing: Probability that a rectangle of an image is erased
            (arXiv 1708.04896).
        mixup: Alpha of mixup (arXiv 1710.09412); 0 for none.
        cutmix: Alpha of CutMix (arXiv 1905.04899); 0 for none. With both, each
            batch gets one of them.
        eval_image_size: Side of the images in evaluation and of the trained
            model's input, in pixels; 0 for `image_size`.
        crop_pct: Side of the evaluated square as a fraction of the image's
            shorter side; 0.875 is a crop of 224 pixels out of 256.
        weights: Initial weights: a file, the folder of a run, a repository
            (`"hf://user/name"`), a tag of `list_weights`, or `"imagenet"`;
            empty for random ones.
        head_epochs: First epochs, in which only the classifier is trained, and
            batch norm uses its moving statistics; 0 for none.
        head_learning_rate: Learning rate at the beginning of these epochs; it
            decays to zero along a cosine.
        freeze_batch_norm: Whether batch norms keep their weights and use their
            moving statistics in all epochs, as small batches need.
        freeze_until: Freeze everything up to and including this stage, such
            as `"conv3"`; empty to train everything.
        head_lr_factor: Factor of the learning rate for the classifier.
        weight_bits: Bits of the weights in quantisation-aware training, see
            `quantization_aware`: 8 for an int8 file, 2 to 7 to experiment; 0
            to train in floating point. Batch-norm statistics are frozen after
            half of all steps, the ranges of activations after three quarters;
            both stay frozen in a run that is extended.
        seed: Seed of initial weights, order and augmentation.
        extended_from: Epoch after which a finished run was extended, see
            `extended`; 0 for a run that was not.
        restart_schedule: Whether the learning rate's schedule started again
            there.

    Raises:
        ValueError: if a field has a value that cannot work.

    Example:

    >>> Recipe(learning_rate=0.1, lr_base_size=256, batch_size=128).peak_lr
    0.05

    Reference:
        arXiv 1611.05431, section 5.3: CIFAR images are padded by 4 pixels,
        cropped and flipped.
    """

    dataset: str = "digits"
    val_fraction: float = 0.0
    model: str = "resnext11_8x4d"
    form: str = "grouped"
    residual: bool = True
    drop_path_rate: float = 0.0
    image_size: int = 16
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    epochs: int = 10
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    lr_base_size: int = 0
    schedule: str = "cosine"
    warmup_epochs: float = 2.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = False
    global_clipnorm: float = 0.0
    ema_decay: float = 0.0
    label_smoothing: float = 0.1
    class_weight: str = "none"
    early_stopping_patience: int = 0
    precision: str = "float32"
    sync_batch_norm: bool = False
    crop_padding: int = 2
    random_resized_crop_scale: float = 0.0
    interpolation: str = "bilinear"
    flip: bool = False
    color_jitter: float = 0.0
    lighting: float = 0.0
    trivial_augment: bool = False
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    eval_image_size: int = 0
    crop_pct: float = 1.0
    weights: str = ""
    head_epochs: int = 0
    head_learning_rate: float = 0.0
    freeze_batch_norm: bool = False
    freeze_until: str = ""
    head_lr_factor: float = 1.0
    weight_bits: int = 0
    seed: int = 0
    extended_from: int = 0
    restart_schedule: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._check_type(field)
        self._require("dataset", bool(self.dataset), "a name or a folder")
        self._require("seed", self.seed < 2**32, "less than 2**32")
        for names, holds, expected in (
            (_ABOVE_ZERO, lambda x: x > 0, "above 0"),
            (_NOT_BELOW_ZERO, lambda x: x >= 0, "0 or above"),
            (_BELOW_ONE, lambda x: 0 <= x < 1, "in [0, 1)"),
            (_FRACTIONS, lambda x: 0 <= x <= 1, "in [0, 1]"),
        ):
            for name in names:
                self._require(name, holds(getattr(self, name)), expected)
        for name, choices in _CHOICES.items():
            expected = f"one of {', '.join(choices)}"
            self._require(name, getattr(self, name) in choices, expected)
        self._require(
            "drop_path_rate",
            self.residual or not self.drop_path_rate,
            "0 without shortcuts (`residual=False`)",
        )
        self._check_schedule()
        self._check_quantization()
        self._require(
            "gradient_accumulation_steps",
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"a divisor of `batch_size`, {self.batch_size}",
        )

    def _check_schedule(self):
        """Refuse phases that do not fit into the epochs."""
        self._require(
            "head_epochs",
            self.head_epochs < self.epochs,
            f"less than `epochs`, {self.epochs}",
        )
        self._require(
            "head_learning_rate",
            bool(self.head_epochs) == (self.head_learning_rate > 0),
            "above 0 with `head_epochs`, else 0",
        )
        self._require(
            "extended_from",
            self.extended_from < self.epochs,
            f"less than `epochs`, {self.epochs}",
        )
        epochs = self.epochs - self.schedule_start
        self._require(
            "warmup_epochs",
            0 <= self.warmup_epochs < epochs,
            f"at least 0 and less than the schedule's {epochs} epochs",
        )
        # An extension need not reach them all again.
        end = self.epochs if self.restart_schedule else epochs
        self._require(
            "milestones",
            (self.schedule == "step") == bool(self.milestones)
            and list(self.milestones) == sorted(set(self.milestones))
            and all(0 < e < end for e in self.milestones),
            "increasing, less than the schedule's epochs, with `schedule` "
            "step, else empty",
        )

    def _check_quantization(self):
        """Refuse what does not go with quantisation-aware training."""
        bits = self.weight_bits
        self._require("weight_bits", bits == 0 or 2 <= bits <= 8, "0 or 2 to 8")
        if not bits:
            return
        for name, value in (
            ("form", "grouped"),
            ("precision", "float32"),
            ("drop_path_rate", 0),
            ("sync_batch_norm", False),
        ):
            self._require(
                name,
                getattr(self, name) == value,
                f"{value} with `weight_bits` above 0",
            )

    def _check_type(self, field):
        """Refuse values of another type; ints become floats, lists tuples."""
        value = getattr(self, field.name)
        if field.type is float and type(value) is int:
            with contextlib.suppress(OverflowError):  # or it is refused below
                value = float(value)
        elif type(field.type) is types.GenericAlias:
            value = tuple(value) if type(value) is list else value
        object.__setattr__(self, field.name, value)
        if type(field.type) is types.GenericAlias:
            holds = type(value) is tuple and all(type(v) is int for v in value)
        else:
            holds = type(value) is field.type
        name = getattr(field.type, "__name__", str(field.type))
        self._require(field.name, holds, f"of type {name}")
        if field.type is float:
            self._require(field.name, math.isfinite(value), "finite")

    def _require(self, name, holds, expected):
        """Raise a ValueError that names the field unless `holds`."""
        if not holds:
            raise ValueError(
                f"`{name}` must be {expected}; got {getattr(self, name)!r}."
            )

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up."""
        if not self.lr_base_size:
            return self.learning_rate
        return self.learning_rate * self.batch_size / self.lr_base_size

    @property
    def schedule_start(self) -> int:
        """Epochs before the schedule of `learning_rate` starts."""
        restart = self.extended_from if self.restart_schedule else 0
        return max(self.head_epochs, restart)

    @property
    def final_image_size(self) -> int:
        """Side of the trained model's input, in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def eval_transform(self) -> "EvalTransform":
        """The transform of images for the trained model."""
        # Here, because it imports NumPy, and the command line's help does not.
        from keras_resnext.transforms import EvalTransform

        return EvalTransform.from_crop_pct(self.final_image_size, self.crop_pct)

    def extended(
        self, epochs: int, done: int, *, restart_schedule: bool = False
    ) -> "Recipe":
        """The recipe of a finished run that is to train for more epochs.

        Args:
            epochs: Epochs in all.
            done: Epochs that the run has.
            restart_schedule: Whether the learning rate starts again with its
                warm-up and decays over the new epochs. Defaults to `False`:
                it goes on as if the run had been planned for `epochs`.

        Returns:
            A `Recipe` for `train` and the same folder.

        Raises:
            ValueError: if `epochs` is not more than `done`.

        Example:

        >>> Recipe(epochs=10).extended(20, done=10).epochs
        20
        """
        if epochs <= done:
            raise ValueError(
                f"`epochs` must be more than the {done} that the run has; got "
                f"{epochs}."
            )
        return dataclasses.replace(
            self,
            epochs=epochs,
            extended_from=done,
            restart_schedule=restart_schedule,
        )

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False
    ) -> None:
        """Write the recipe as a JSON file, to edit and to train with.

        Args:
            path: File to write.
            overwrite: Whether to replace an existing file. Defaults to
                `False`.

        Raises:
            FileExistsError: if `path` exists and `overwrite` is false.

        Example:

        >>> recipe.save("mine.json")  # keras-resnext train --recipe mine.json
        """
        with staged(path, overwrite=overwrite) as new:
            new.write_text(json.dumps(dataclasses.asdict(self), indent=2))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Read a recipe that `save` or a run wrote.

        Args:
            path: A JSON file; fields that it does not have are the defaults.

        Returns:
            A `Recipe`.

        Raises:
            ValueError: if the file is not a recipe.

        Example:

        >>> Recipe.load("runs/digits/recipe.json").dataset
        'digits'
        """
        try:
            fields = json.loads(pathlib.Path(path).read_bytes())
            unknown = sorted({*fields} - _kinds().keys())
            if unknown:
                raise ValueError(f"it has {', '.join(map(repr, unknown))}")
            return cls(**fields)
        except (OSError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must be a recipe; {first_line(error)}."
            ) from error

    def override(self, assignments: Iterable[str]) -> "Recipe":
        """A copy with fields set from strings, as on the command line.

        Args:
            assignments: Iterable of `"field=value"`; the items of a tuple are
                separated by commas.

        Returns:
            A new `Recipe`.

        Raises:
            ValueError: if a field is unknown or its value is of another type.

        Example:

        >>> Recipe().override(["epochs=30", "flip=true"]).epochs
        30
        """
        kinds = _kinds()
        changes = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals or name not in kinds:
                raise ValueError(
                    f"A recipe field must be set as field=value, with a field "
                    f"of {', '.join(kinds)}; got {assignment!r}."
                    f"{suggest(name, kinds)}"
                )
            changes[name] = parse_field(name, text)
        return dataclasses.replace(self, **changes)


def _kinds():
    """Type of each field."""
    return typing.get_type_hints(Recipe)


def parse_field(name: str, text: str) -> Any:
    """A field's value from its text on the command line.

    Args:
        name: A field of `Recipe`.
        text: Its value; items of a tuple are separated by commas.

    Returns:
        The value, of the field's type.

    Raises:
        ValueError: if the text is of another type.

    Example:

    >>> parse_field("milestones", "30,60")
    (30, 60)
    """
    kind = _kinds()[name]
    readers = {
        bool: lambda text: {"true": True, "false": False}[text.lower()],
        tuple[int, ...]: lambda text: tuple(
            map(int, filter(None, text.split(",")))
        ),
    }
    try:
        return readers.get(kind, kind)(text)
    except (ValueError, KeyError):
        expected = {
            bool: "true or false",
            tuple[int, ...]: "whole numbers with commas",
        }.get(kind, f"of type {kind.__name__}")
        raise ValueError(
            f"`{name}` must be {expected}; got {text!r}."
        ) from None


def describe_fields() -> dict[str, str]:
    """What each field of a recipe means, from the docstring of `Recipe`.

    Returns:
        A sentence or two by field name.

    Example:

    >>> describe_fields()["gamma"]
    'Factor by which it drops.'
    """
    text = inspect.getdoc(Recipe)
    text = text[text.index("Args:") : text.index("Raises:")]
    entries = re.findall(r"^    (\w+): (.+?)(?=^    \w|\Z)", text, re.M | re.S)
    return {name: " ".join(body.split()) for name, body in entries}
