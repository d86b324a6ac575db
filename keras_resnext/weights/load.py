"""Load published or saved weights into a built model."""

import dataclasses
import logging
import os
import pathlib
from typing import TYPE_CHECKING

import ml_dtypes

from keras_resnext.extras import suggest
from keras_resnext.names import CLASSIFIER
from keras_resnext.names import STEM
from keras_resnext.names import join_shapes
from keras_resnext.names import split_paths
from keras_resnext.names import stage_of
from keras_resnext.weights import convert
from keras_resnext.weights.hub import WEIGHTS_FILE
from keras_resnext.weights.hub import Repository
from keras_resnext.weights.hub import fetch
from keras_resnext.weights.hub import fetch_repository
from keras_resnext.weights.hub import is_repository
from keras_resnext.weights.hub import parse_repository
from keras_resnext.weights.read import READERS
from keras_resnext.weights.read import open_weights
from keras_resnext.weights.read import reader_of
from keras_resnext.weights.read import require_torch
from keras_resnext.weights.registry import IMAGENET
from keras_resnext.weights.registry import PUBLISHED
from keras_resnext.weights.registry import WeightsRecord

if TYPE_CHECKING:
    import keras

_log = logging.getLogger("keras_resnext")


def list_weights(model: str | None = None) -> list[WeightsRecord]:
    """The published weights, or those of one network.

    Args:
        model: A network in the paper's notation, such as
            `"resnext50_32x4d"`; `"resnext50"` and `"resnext101"` mean their
            32x4d. Defaults to `None`: all.

    Returns:
        A list of records, the one that `"imagenet"` means first.

    Raises:
        ValueError: if nothing is published for the network.

    Example:

    >>> keras_resnext.list_weights("resnext50")[0].name
    'resnext50_32x4d.tv2_in1k'
    """
    if model is None:
        return list(PUBLISHED)
    name = _notation(model)
    records = [record for record in PUBLISHED if record.model == name]
    if not records:
        known = dict.fromkeys(record.model for record in PUBLISHED)
        raise ValueError(
            f"`model` must be one of {', '.join(known)}, for which weights are "
            f"published; got {model!r}.{suggest(name, known)}"
        )
    return sorted(records, key=_rank)


def get_weights(
    model: str, tag: str = "imagenet", include_top: bool = True
) -> WeightsRecord:
    """The record of published weights.

    Args:
        model: A network, see `list_weights`.
        tag: A tag of its records, or `"imagenet"` for the best permissively
            licensed weights: torchvision's newest, else the most accurate
            under the Apache licence. A revision of the Hub's repository
            (branch, tag or commit) may follow an `@`; without one, `"main"`,
            which moves, see `WeightsRecord`. Defaults to `"imagenet"`.
        include_top: Whether to prefer the file with the classifier, where
            both are published. Defaults to `True`.

    Returns:
        A `WeightsRecord`.

    Raises:
        ValueError: if the tag is unknown; it lists the known ones.

    Example:

    >>> keras_resnext.get_weights("resnext50", "a1h_in1k").image_size
    288
    >>> keras_resnext.get_weights("resnext50", "a1h_in1k@v1").revision
    'v1'
    """
    tag, at, revision = tag.partition("@")
    record = _get_record(model, tag, include_top)
    if not at:
        return record
    if record.source != "huggingface" or not revision:
        raise ValueError(
            "`weights` must be a tag, or one of the Hugging Face Hub's with "
            f"@ and a revision; got {tag + at + revision!r} ({record.source})."
        )
    return dataclasses.replace(record, revision=revision)


def _get_record(model, tag, include_top):
    records = list_weights(model)
    if tag == "imagenet":
        if records[0].dataset != IMAGENET:
            raise ValueError(
                f"No weights of {_notation(model)} for ImageNet are "
                f"published; set `weights` to {_tags(records)}."
            )
        if records[0].commercial:
            return records[0]
        raise ValueError(
            f"All published weights of {_notation(model)} are licensed for "
            "non-commercial use only, so there is no default; set `weights` "
            f"to one of {_tags(records)}."
        )
    tagged = [record for record in records if record.tag == tag]
    if not tagged:
        tags = [record.tag for record in records]
        listed = _tags(records)
        if records[0].dataset == IMAGENET:
            tags.append("imagenet")
            listed = f'"imagenet", {listed}'
        others = dict.fromkeys(r.model for r in PUBLISHED if r.tag == tag)
        hint = (
            f" It is a tag of {', '.join(others)}."
            if others
            else suggest(tag, tags)
        )
        raise ValueError(
            f"`weights` must be None, a file or, for {_notation(model)}, one "
            f"of {listed}; got {tag!r}.{hint}"
        )
    matching = [r for r in tagged if r.include_top == include_top]
    return (matching or tagged)[0]


def most_accurate_permissive(model: str) -> WeightsRecord | None:
    """The published weights with the best top-1 that allow commercial use.

    Not always those that `"imagenet"` means, see `get_weights`. Of the same
    accuracy to 0.01 %, those on the Hub, which need no torch.

    Args:
        model: A network, see `list_weights`.

    Returns:
        A `WeightsRecord`; `None` if there are none.

    Example:

    >>> most_accurate_permissive("resnext50").tag
    'a1h_in1k'
    """
    name = _notation(model)
    records = [r for r in PUBLISHED if r.model == name and r.commercial]
    return max(
        records,
        key=lambda r: (round(r.top1, 2), r.source == "huggingface"),
        default=None,
    )


def find_source(
    source: str | os.PathLike[str], model: str, include_top: bool = True
) -> pathlib.Path | Repository | WeightsRecord:
    """Resolve a builder's `weights` before anything is built or downloaded.

    Args:
        source: A tag, a record, a file, the folder of a training run, or the
            address of a repository, `hf://user/name@revision`.
        model: The network in the paper's notation.
        include_top: Whether the classifier is wanted. Defaults to `True`.

    Returns:
        An existing path, a record or a repository.

    Raises:
        ValueError: if it is none of these; it lists the choices.

    Example:

    >>> find_source("imagenet", "resnext50_32x4d").tag
    'tv2_in1k'
    """
    if isinstance(source, WeightsRecord):
        if source.model != _notation(model):
            raise ValueError(
                f"`weights` must be of {_notation(model)}; got {source.name}."
            )
        return _readable(source)
    if not isinstance(source, (str, os.PathLike)) or not str(source):
        raise ValueError(
            "`weights` must be None, a tag, a record of `list_weights` or a "
            f"path; got {source!r}."
        )
    if is_repository(source):
        return parse_repository(source)
    # `./imagenet`, or a path object, is a folder of that name.
    tags = {"imagenet"} | {record.tag for record in PUBLISHED}
    if isinstance(source, str) and source.partition("@")[0] in tags:
        return _find_published(source, model, include_top)
    path = pathlib.Path(source)
    if path.exists():
        if reader_of(path):
            return path
        raise ValueError(
            "`weights` must be a file that ends in "
            f"{', '.join(READERS)} or the folder of a training "
            f"run; got {str(source)!r}."
        )
    if reader_of(path) or path.name != source:  # no tag looks like this
        raise ValueError(
            f"`weights` must be an existing file; got {str(source)!r}."
        )
    return _find_published(source, model, include_top)


def _find_published(tag, model, include_top):
    if _notation(model) not in {record.model for record in PUBLISHED}:
        raise ValueError(
            f"`weights` must be None or a file for {model}, for which none "
            f"are published; got {tag!r}."
        )
    return _readable(get_weights(model, tag, include_top))


def _readable(record):
    """The record, or an error before its file is downloaded in vain."""
    if record.address.endswith(".pth"):
        require_torch(record.name)
    return record


def fetch_source(
    source: pathlib.Path | Repository | WeightsRecord,
) -> pathlib.Path:
    """The file or run that `find_source` found, downloaded if it must be.

    A warning says so if the licence excludes commercial use.

    Args:
        source: A path, a record or a repository.

    Returns:
        An existing path.

    Raises:
        ConnectionError: if a published file cannot be downloaded.
        ValueError: if a repository has no `model.safetensors`.

    Example:

    >>> fetch_source(find_source("imagenet", "resnext50_32x4d")).name
    'model.safetensors'
    """
    if isinstance(source, Repository):
        return fetch_repository(source, WEIGHTS_FILE) / WEIGHTS_FILE
    if not isinstance(source, WeightsRecord):
        return source
    path = fetch(source)
    if not source.commercial:
        _log.warning(
            "%s is licensed for non-commercial use only (%s).",
            source.name,
            source.license,
        )
    return path


def load_weights(
    model: "keras.Model", source: str | os.PathLike[str] | WeightsRecord
) -> None:
    """Load published or saved weights into a model of the builders.

    The model may have any form. The file's classifier is skipped if the model
    has none, or one for another number of classes, and the first convolution
    is adapted if images are not RGB (`convert.adapt_stem`); a warning says so.

    Args:
        model: A `keras.Model` of the builders.
        source: A tag of `list_weights`, `"imagenet"`, a record, the address of
            a repository of the Hugging Face Hub with a `model.safetensors` in
            torchvision's names, `"hf://user/name@revision"`, or a path: a
            `.safetensors` or `.pth` file in torchvision's names, a `.h5` of
            keras-applications, or a `.keras` or `.weights.h5` file or a
            training run of this package.

    Raises:
        ValueError: if `source` is none of these, does not fit the model, is
            refused for what it declares (see `keras_resnext.weights.gate`), or
            has values that are not finite. The model is then unchanged.
        ConnectionError: if a published file cannot be downloaded.

    Example:

    >>> model = keras_resnext.ResNeXt50(weights=None)
    >>> keras_resnext.load_weights(model, "tv2_in1k")
    """
    ours = [
        x
        for x in model.layers
        if x.weights and (stage_of(x.name) or x.name == CLASSIFIER)
    ]
    shapes = join_shapes(
        {x.name: [tuple(w.shape) for w in x.weights] for x in ours}
    )
    source = find_source(
        source, convert.infer_architecture(shapes), CLASSIFIER in shapes
    )
    path = fetch_source(source)
    dtypes = {x.variable_dtype for x in ours}
    with open_weights(path) as stored:
        weights = stored.read(_fitting(stored.shapes, shapes, path))
    _adapt_stem(weights, shapes, path)
    for name, arrays in weights.items():
        _check_values(name, arrays, path, dtypes)
    cut = split_paths(weights, [x.name for x in ours])
    for layer in ours:
        if layer.name in cut:
            layer.set_weights(cut[layer.name])


def _fitting(theirs, shapes, path):
    """Names of a file's layers that go into the model, from their shapes."""
    _check_layers(theirs, shapes, path)
    names = [name for name in shapes if name in theirs]
    if _has_other_classes(theirs, shapes, path):
        names.remove(CLASSIFIER)
    for name in names:
        expected = shapes[name]
        if name == STEM and [s[2:3] for s in theirs[name]] == [(3,)]:
            expected = [(*s[:2], 3, *s[3:]) for s in expected]
        if theirs[name] != expected:
            raise _misfit(
                f"{path} has {theirs[name]} for {name}, the model "
                f"{shapes[name]}"
            )
    return names


def _check_layers(file_shapes, shapes, path):
    """Refuse another network's weights; classifiers may differ."""
    theirs = convert.infer_architecture(file_shapes)
    ours = convert.infer_architecture(shapes)
    if theirs != ours:
        raise _misfit(
            f"{path} has the weights of {theirs}, the model is {ours}"
        )
    lacks = shapes.keys() - file_shapes.keys() - {CLASSIFIER}
    more = file_shapes.keys() - shapes.keys() - {CLASSIFIER}
    for verb, names in ("lacks", lacks), ("has more than the model", more):
        if names:
            raise _misfit(f"{path} {verb}: {', '.join(sorted(names)[:5])}")


def _misfit(reason):
    return ValueError(f"`weights` must fit the model; {reason}.")


def _check_values(name, arrays, path, dtypes):
    """Refuse what `layer.set_weights` would cast to other or bad numbers."""
    largest = min(float(ml_dtypes.finfo(dtype).max) for dtype in dtypes)
    # As Python's numbers: `largest` may be none of the array's dtype. Negated,
    # so that NaN is refused.
    if not all(float(abs(array).max()) <= largest for array in arrays):
        raise ValueError(
            f"`weights` must be finite in {', '.join(sorted(dtypes))}; {path} "
            f"has NaN, infinity or larger numbers in {name}."
        )
    if name.endswith("_bn") and (arrays[3] < 0).any():
        raise ValueError(
            f"`weights` must have variances of at least 0; {path} has less in "
            f"{name}."
        )


def _has_other_classes(theirs, shapes, path):
    """Whether a file's classifier stays there; a warning says so."""
    if CLASSIFIER not in shapes:
        return False
    if CLASSIFIER not in theirs:
        _log.warning("%s has no classifier; the model's is unchanged.", path)
        return False
    features, ours = shapes[CLASSIFIER][0]
    classes = theirs[CLASSIFIER][0][-1]
    expected = [(features, classes), (classes,)]
    if classes == ours or theirs[CLASSIFIER] != expected:
        return False
    _log.warning(
        "%s has a classifier of %d classes, the model of %d; the model's is "
        "unchanged.",
        *(path, classes, ours),
    )
    return True


def _adapt_stem(weights, shapes, path):
    """Adapt to other channels than the file's, with a warning."""
    channels = shapes[STEM][0][2]
    (kernel,) = weights[STEM]
    if kernel.shape[2] != channels:
        weights[STEM] = [convert.adapt_stem(kernel, channels)]
        _log.warning(
            "%s is for RGB images, the model for %d channels; the first "
            "convolution was adapted.",
            *(path, channels),
        )


def _notation(model):
    name = model.lower()
    return f"{name}_32x4d" if name in ("resnext50", "resnext101") else name


def _rank(record):
    """Sort key: licence, then torchvision's on the Hub, then accuracy."""
    torchvision = record.source == "huggingface" and record.tag.startswith("tv")
    return (
        not record.commercial,
        not torchvision,
        -(record.top1 or 0),
    )


def _tags(records):
    return ", ".join(
        f'"{tag}"' for tag in dict.fromkeys(r.tag for r in records)
    )
