"""timm's `config.json`, which says what the weights beside it are of."""

import math
import typing
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_resnext.transforms import EvalTransform


class TimmNetwork(typing.NamedTuple):
    """A network that timm's `ResNet` computes as `keras_resnext.ResNeXt` does.

    It has four stages, the ImageNet stem, 256 filters and shortcuts.

    Args:
        depths: Blocks in each stage.
        cardinality: Paths in each block.
        base_width: Channels of a path in the first stage.
        output_stride: See `keras_resnext.ResNeXt`. Defaults to 32.
    """

    depths: tuple[int, int, int, int]
    cardinality: int
    base_width: int
    output_stride: int = 32


class TimmModel(typing.NamedTuple):
    """What a `config.json` of timm describes.

    Args:
        network: The `TimmNetwork`.
        classes: Outputs of the classifier.
        labels: Class names; `None` if it has none.
        transform: The `EvalTransform` that timm evaluates it with.
    """

    network: TimmNetwork
    classes: int
    labels: list[str] | None
    transform: EvalTransform


# timm's names; `model_args` describe the others.
_NAMES = {
    "resnext50_32x4d": TimmNetwork((3, 4, 6, 3), 32, 4),
    "resnext101_32x4d": TimmNetwork((3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": TimmNetwork((3, 4, 23, 3), 32, 8),
    "resnext101_32x16d": TimmNetwork((3, 4, 23, 3), 32, 16),
    "resnext101_32x32d": TimmNetwork((3, 4, 23, 3), 32, 32),
    "resnext101_64x4d": TimmNetwork((3, 4, 23, 3), 64, 4),
    "resnet50": TimmNetwork((3, 4, 6, 3), 1, 64),
    "resnet101": TimmNetwork((3, 4, 23, 3), 1, 64),
    "resnet152": TimmNetwork((3, 8, 36, 3), 1, 64),
    "resnet200": TimmNetwork((3, 24, 36, 3), 1, 64),
}
# timm's argument -> ours.
_ARGUMENTS = {
    "layers": "depths",
    "cardinality": "cardinality",
    "base_width": "base_width",
    "output_stride": "output_stride",
}
# Of images, so that a file from elsewhere cannot ask for all memory.
_MOST_PIXELS = 4096
_LEAST_CROP = 0.1
# What the others must be, and those that change nothing in inference.
_REQUIRED = {"in_chans": 3, "global_pool": "avg"}
_IGNORED = {"num_classes", "drop_rate", "drop_path_rate", "zero_init_last"}


def to_timm_config(model: TimmModel) -> dict[str, Any]:
    """The `config.json` with which timm opens a model's weights.

    Args:
        model: The `TimmModel`. Its transform normalises.

    Returns:
        A dict that JSON can hold.

    Example:

    >>> to_timm_config(model)["architecture"]
    'resnext50_32x4d'

    Reference:
        timm 1.0.31, `models/_hub.py`, `save_config_for_hf`.
    """
    network, transform = model.network, model.transform
    names = {known: name for name, known in _NAMES.items()}
    name = names.get(network._replace(output_stride=32))
    arguments = {}
    if name is None:
        name = "resnext50_32x4d"
        arguments = {
            "layers": list(network.depths),
            "cardinality": network.cardinality,
            "base_width": network.base_width,
        }
    if network.output_stride != 32:
        arguments["output_stride"] = network.output_stride
    size = transform.image_size
    config = {
        "architecture": name,
        "num_classes": model.classes,
        "num_features": 2048,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": transform.interpolation,
            "crop_pct": _crop_pct(transform),
            "crop_mode": "center",
            "mean": list(transform.mean),
            "std": list(transform.std),
            "num_classes": model.classes,
            "pool_size": [-(-size // network.output_stride)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    if model.labels:
        config["label_names"] = list(model.labels)
    if arguments:
        config["model_args"] = arguments
    return config


def from_timm_config(config: Mapping[str, Any]) -> TimmModel:
    """The inverse of `to_timm_config`, for files that timm wrote too.

    Args:
        config: What `config.json` holds.

    Returns:
        A `TimmModel`.

    Raises:
        ValueError: if it does not describe a ResNeXt or ResNet that
            `keras_resnext.ResNeXt` builds.

    Example:

    >>> from_timm_config(json.loads(path.read_text())).network.cardinality
    32
    """
    try:
        network = _network(
            str(config["architecture"]), config.get("model_args") or {}
        )
        about = config["pretrained_cfg"]
        transform = EvalTransform.from_crop_pct(
            _size(about.get("test_input_size") or about["input_size"]),
            _checked_crop_pct(about),
            interpolation=about.get("interpolation", "bilinear"),
            mean=about["mean"],
            std=about["std"],
        )
        classes = config.get("num_classes") or about["num_classes"]
        labels = config.get("label_names") or about.get("label_names")
        return TimmModel(network, classes, _labels(labels, classes), transform)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            "`config` must be timm's description of a model, with "
            "architecture, num_classes and pretrained_cfg; what came has "
            f"{', '.join(map(str, config)) or 'nothing'} ({error!r})."
        ) from error


def _network(name, arguments):
    """The network of a name and of timm's arguments."""
    known = {**_REQUIRED, **_ARGUMENTS}
    others = {k: v for k, v in arguments.items() if k not in _IGNORED}
    if name not in _NAMES or not others.keys() <= known.keys():
        raise ValueError(
            f"`architecture` must be one of {', '.join(_NAMES)} with no more "
            f"arguments than {', '.join(known)}; got {name!r} with {others}."
        )
    for key, value in _REQUIRED.items():
        if others.get(key, value) != value:
            raise ValueError(f"`{key}` must be {value}; got {others[key]!r}.")
    ours = {
        ours: tuple(others[key]) if key == "layers" else others[key]
        for key, ours in _ARGUMENTS.items()
        if key in others
    }
    return _NAMES[name]._replace(**ours)


def _size(shape):
    """The side of square images from timm's `(channels, height, width)`."""
    channels, height, width = shape
    if channels != 3 or height != width or not 0 < height <= _MOST_PIXELS:
        raise ValueError(
            "`input_size` must be (3, size, size) with a size of at most "
            f"{_MOST_PIXELS}; got {shape}."
        )
    return height


def _checked_crop_pct(about):
    """timm's `crop_pct`, if it crops the centre."""
    if about.get("crop_mode", "center") != "center":
        raise ValueError(
            f"`crop_mode` must be center; got {about['crop_mode']!r}."
        )
    share = about.get("test_crop_pct") or about.get("crop_pct", 0.875)
    if not _LEAST_CROP <= share <= 1:
        raise ValueError(
            f"`crop_pct` must be from {_LEAST_CROP} to 1; got {share!r}."
        )
    return share


def _labels(names, classes):
    """Class names in order, from a list or a dict from index to name."""
    if isinstance(names, Mapping):
        names = [names.get(str(i), names.get(i)) for i in range(classes)]
    if (
        not isinstance(names, Sequence)
        or len(names) != classes
        or not all(isinstance(name, str) for name in names)
    ):
        return None
    return list(names)


def _crop_pct(transform):
    """The share from which timm computes `resize_size`."""
    share = transform.crop_pct
    # floor(224 / (224 / 232)) is 231 in floating point.
    if math.floor(transform.image_size / share) < transform.resize_size:
        share = math.nextafter(share, 0)
    return share
