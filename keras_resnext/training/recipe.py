"""The configuration of a training run, without TensorFlow."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable

from keras_resnext.transforms import EvalTransform

_CHOICES = {
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "step"),
    "precision": ("float32", "mixed_bfloat16", "mixed_float16"),
    "interpolation": ("bilinear", "bicubic"),
}
_ABOVE_ZERO = (
    *("image_size", "batch_size", "gradient_accumulation_steps", "epochs"),
    *("base_lr", "gamma", "crop_pct", "head_lr_factor"),
)
_NOT_BELOW_ZERO = (
    *("weight_decay", "global_clipnorm", "crop_padding", "mixup", "cutmix"),
    *("color_jitter", "lighting", "eval_image_size", "seed"),
)
_BELOW_ONE = ("momentum", "label_smoothing", "ema_decay", "drop_path_rate")
_FRACTIONS = ("random_erasing", "random_resized_crop_scale", "crop_pct")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The full configuration of a run, saved with it as `recipe.json`.

    The defaults train a small CIFAR-style ResNeXt on handwritten digits in
    one to two minutes on two CPU cores. `RECIPES` has others, by name.

    Args:
        dataset: Name of a TFDS builder (`"digits"`, `"cifar10"`), or path of a
            folder `<split>/<class>/<image>`.
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
        epochs: Passes over the training split.
        optimizer: `"sgd"` or `"adamw"`.
        base_lr: Peak learning rate for a batch of 256 images; it is scaled in
            proportion to `batch_size` (Goyal et al., arXiv 1706.02677).
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
        weights: Initial weights: a file, a tag of `list_weights`, or
            `"imagenet"`; empty for random ones.
        freeze_until: Freeze everything up to and including this stage, such
            as `"conv3"`; empty to train everything.
        head_lr_factor: Factor of the learning rate for the classifier.
        seed: Seed of initial weights, order and augmentation.

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
    residual: bool = True
    drop_path_rate: float = 0.0
    image_size: int = 16
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    epochs: int = 10
    optimizer: str = "sgd"
    base_lr: float = 0.4
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
    freeze_until: str = ""
    head_lr_factor: float = 1.0
    seed: int = 0

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
        self._require(
            "warmup_epochs",
            0 <= self.warmup_epochs < self.epochs,
            f"at least 0 and less than `epochs`, {self.epochs}",
        )
        self._require(
            "milestones",
            (self.schedule == "step") == bool(self.milestones)
            and list(self.milestones) == sorted(set(self.milestones))
            and all(0 < e < self.epochs for e in self.milestones),
            "increasing, below `epochs`, with `schedule` step, else empty",
        )
        self._require(
            "gradient_accumulation_steps",
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"a divisor of `batch_size`, {self.batch_size}",
        )

    def _check_type(self, field):
        """Refuse values of another type; ints become floats, lists tuples."""
        value = getattr(self, field.name)
        if field.type is float and type(value) is int:
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
        return self.base_lr * self.batch_size / 256

    @property
    def final_image_size(self) -> int:
        """Side of the trained model's input, in pixels."""
        return self.eval_image_size or self.image_size

    @property
    def eval_transform(self) -> EvalTransform:
        """The transform of images for the trained model."""
        return EvalTransform.from_crop_pct(self.final_image_size, self.crop_pct)

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
        kinds = typing.get_type_hints(type(self))
        changes = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals or name not in kinds:
                raise ValueError(
                    f"A recipe field must be set as field=value, with a field "
                    f"of {', '.join(kinds)}; got {assignment!r}."
                )
            changes[name] = _parse(name, kinds[name], text)
        return dataclasses.replace(self, **changes)


def _parse(name, kind, text):
    """A field's value from its text."""
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


# As in section 4 of the paper, with the schedule of the code it refers to
# (fb.resnet.torch): a tenth after 30, 60 and 90 epochs.
_IMAGENET_PAPER = Recipe(
    dataset="imagenet2012",
    model="resnext50_32x4d",
    image_size=224,
    batch_size=256,
    epochs=100,
    base_lr=0.1,
    schedule="step",
    warmup_epochs=0,
    milestones=(30, 60, 90),
    nesterov=False,
    weight_decay=1e-4,
    decay_all=True,
    label_smoothing=0,
    crop_padding=0,
    random_resized_crop_scale=0.08,
    flip=True,
    crop_pct=224 / 256,
)
# As in the paper's appendix: 0.1 for 128 images, a tenth at 150 and 225.
_CIFAR_PAPER = Recipe(
    dataset="cifar10",
    model="resnext29_8x64d",
    image_size=32,
    batch_size=128,
    epochs=300,
    base_lr=0.1 * 256 / 128,
    schedule="step",
    warmup_epochs=0,
    milestones=(150, 225),
    nesterov=False,
    weight_decay=5e-4,
    decay_all=True,
    label_smoothing=0,
    crop_padding=4,
    flip=True,
)

RECIPES = {
    "digits": Recipe(),
    "imagenet_paper": _IMAGENET_PAPER,
    # As in facebookresearch/ResNeXt: Nesterov, and more augmentation than the
    # paper mentions.
    "imagenet_released": dataclasses.replace(
        _IMAGENET_PAPER,
        nesterov=True,
        interpolation="bicubic",
        color_jitter=0.4,
        lighting=0.1,
    ),
    # torchvision's second weights (its issue 3995, pull request 5935): 0.5
    # for 8 x 128 images. Its average is updated every 32 steps with a weight
    # of (1 - 0.99998) x 8 x 128 x 32 / 600, which is spread over the steps
    # here. Its sampler, which repeats each image four times an epoch, is left
    # out.
    "imagenet_modern": dataclasses.replace(
        _IMAGENET_PAPER,
        image_size=176,
        eval_image_size=224,
        crop_pct=224 / 232,
        batch_size=1024,
        epochs=600,
        base_lr=0.5 * 256 / 1024,
        schedule="cosine",
        milestones=(),
        warmup_epochs=5,
        weight_decay=2e-5,
        decay_all=False,
        ema_decay=1 - 2e-5 * 1024 / 600,
        label_smoothing=0.1,
        trivial_augment=True,
        random_erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
    ),
    "cifar_paper": _CIFAR_PAPER,
    # As in the released code, which drops at 0.49 and 0.74 of the epochs.
    "cifar_released": dataclasses.replace(
        _CIFAR_PAPER, nesterov=True, milestones=(147, 222)
    ),
}
