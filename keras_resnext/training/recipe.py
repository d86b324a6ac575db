"""What a training run does, as numbers with units. No TensorFlow here."""

import dataclasses
import math
import typing
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The full configuration of a run; saved beside it as `recipe.json`.

    The defaults train a small CIFAR-style ResNeXt on handwritten digits in
    one to two minutes on two CPU cores. Everything else that a run needs
    follows from these numbers.

    Args:
        dataset: Name of a TFDS builder (`"digits"`, `"cifar10"`), or path of a
            folder `<split>/<class>/<image>`.
        model: Name that `keras_resnext.resnext.build` knows.
        form: Form of the blocks, `"grouped"` or `"branches"`.
        image_size: Side of the network's input, in pixels.
        batch_size: Images in a step, over all replicas together.
        epochs: Passes over the training split.
        base_lr: Peak learning rate for a batch of 256 images; it is scaled in
            proportion to `batch_size` (Goyal et al., arXiv 1706.02677).
        warmup_epochs: Epochs over which the rate rises from zero; after them
            it falls to zero along a cosine.
        momentum: Nesterov momentum of SGD.
        weight_decay: Decay of all kernels, times the learning rate; biases
            and batch norm are left alone.
        label_smoothing: Probability spread evenly over all classes.
        crop_padding: Black pixels put around a training image before a random
            crop back to `image_size`; 0 for none.
        flip: Whether half of the training images are mirrored left to right.
        seed: Seed of the initial weights, the order and the augmentation.

    Raises:
        ValueError: if a field has a value that cannot work.

    Example:

    >>> Recipe(epochs=30, batch_size=128).peak_lr
    0.2

    Reference:
        arXiv 1611.05431, section 5.3: CIFAR images are padded by 4 pixels,
        cropped and flipped.
    """

    dataset: str = "digits"
    model: str = "resnext11_8x4d"
    form: str = "grouped"
    image_size: int = 16
    batch_size: int = 32
    epochs: int = 10
    base_lr: float = 0.4
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    crop_padding: int = 2
    flip: bool = False
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not field.type:
                raise ValueError(
                    f"`{field.name}` must be of type {field.type.__name__}; "
                    f"got {value!r}."
                )
        for field in dataclasses.fields(self):
            if field.type is float:
                value = getattr(self, field.name)
                self._require(field.name, math.isfinite(value), "finite")
        self._require("dataset", bool(self.dataset), "a name or a folder")
        self._require("seed", self.seed < 2**32, "less than 2**32")
        for name in ("image_size", "batch_size", "epochs", "base_lr"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "crop_padding", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or above")
        for name in ("momentum", "label_smoothing"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require(
            "warmup_epochs",
            0 <= self.warmup_epochs < self.epochs,
            f"at least 0 and less than `epochs`, {self.epochs}",
        )

    def _require(self, name, holds, expected):
        if not holds:
            raise ValueError(
                f"`{name}` must be {expected}; got {getattr(self, name)!r}."
            )

    @property
    def peak_lr(self) -> float:
        """Learning rate after the warm-up."""
        return self.base_lr * self.batch_size / 256

    def override(self, assignments: Iterable[str]) -> "Recipe":
        """A copy with fields set from strings, as the command line has them.

        Args:
            assignments: Iterable of `"field=value"`.

        Returns:
            A new `Recipe`.

        Raises:
            ValueError: if a field is unknown or its value has another type.

        Example:

        >>> Recipe().override(["epochs=30", "flip=true"]).epochs
        30
        """
        types = typing.get_type_hints(type(self))
        changes = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals or name not in types:
                raise ValueError(
                    f"A recipe field must be set as field=value, with a field "
                    f"of {', '.join(types)}; got {assignment!r}."
                )
            changes[name] = _parse(name, types[name], text)
        return dataclasses.replace(self, **changes)


def _parse(name, kind, text):
    if kind is bool:
        choices = {"true": True, "false": False}
        if text.lower() in choices:
            return choices[text.lower()]
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    expected = "true or false" if kind is bool else f"of type {kind.__name__}"
    raise ValueError(f"`{name}` must be {expected}; got {text!r}.")
