"""Load weights, published or saved, into a built model."""

import dataclasses
import logging
import os
import pathlib
import re

import ml_dtypes

from keras_resnext.weights import convert
from keras_resnext.weights.hub import fetch
from keras_resnext.weights.read import READERS
from keras_resnext.weights.read import read
from keras_resnext.weights.read import reader_of
from keras_resnext.weights.read import require_torch
from keras_resnext.weights.registry import PUBLISHED
from keras_resnext.weights.registry import WeightsRecord

_log = logging.getLogger("keras_resnext")
_HEAD = "predictions"
_STEM = "conv1_conv"
_LAYER = re.compile(r"conv1_(conv|bn)|conv\d+_block\d+_.+|predictions")


def list_weights(model: str | None = None) -> list[WeightsRecord]:
    """The published files, or those of one network.

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
            f"published; got {model!r}."
        )
    return sorted(records, key=_rank)


def get_weights(
    model: str, tag: str = "imagenet", include_top: bool = True
) -> WeightsRecord:
    """The record of a published file.

    Args:
        model: A network, see `list_weights`.
        tag: A tag of its records, or `"imagenet"` for the best one without
            restrictions: torchvision's newest, else the most accurate under
            the Apache licence. A revision of the Hub's repository (branch,
            tag or commit) may follow an `@`. Defaults to `"imagenet"`.
        include_top: Whether the classifier is wanted, where a file without it
            is published too. Defaults to `True`.

    Returns:
        A `WeightsRecord` record.

    Raises:
        ValueError: if there is none; it names those there are.

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
        if records[0].commercial:
            return records[0]
        raise ValueError(
            f"All published weights of {_notation(model)} are licensed for "
            "non-commercial use only, so that none is the default; choose one "
            f"as `weights`: {_tags(records)}."
        )
    found = [record for record in records if record.tag == tag]
    if not found:
        raise ValueError(
            f"`weights` must be None, a file or, for {_notation(model)}, one "
            f'of "imagenet", {_tags(records)}; got {tag!r}.'
        )
    matching = [r for r in found if r.include_top == include_top]
    return (matching or found)[0]


def find_source(
    source: str | os.PathLike, model: str, include_top: bool = True
) -> pathlib.Path | WeightsRecord:
    """What a builder's `weights` means, before anything is built or fetched.

    Args:
        source: A tag, a file or the folder of a training run.
        model: The network in the paper's notation.
        include_top: Whether the classifier is wanted. Defaults to `True`.

    Returns:
        A path that exists, or a record.

    Raises:
        ValueError: if it is neither; it says what there is.

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
    if record.address.endswith(".pth"):
        require_torch(record.name)  # before it is downloaded
    return record


def load_weights(model, source: str | os.PathLike | WeightsRecord) -> None:
    """Load weights, published or saved, into a model of the builders.

    The model may have any form, and it need not have the classifier that the
    file has: with none it is left out, and one for other classes stays as it
    is. The first convolution is adapted to images with other channels than
    RGB (`convert.adapt_stem`). Both is said in one line.

    Args:
        model: A `keras.Model` of the builders.
        source: A tag of `list_weights`, `"imagenet"`, a record, or a path: a
            `.safetensors` or `.pth` file in torchvision's names, a `.h5` of
            keras-applications, or a `.keras` or `.weights.h5` file or a
            training run of this package.

    Raises:
        ValueError: if `source` is none of these, does not fit, or holds
            numbers that are not finite. The model is as it was then.
        ConnectionError: if a published file cannot be fetched.

    Example:

    >>> keras_resnext.load_weights(model, "tv2_in1k")
    """
    ours = [x for x in model.layers if x.weights and _LAYER.fullmatch(x.name)]
    shapes = convert.join_shapes(
        {x.name: [tuple(w.shape) for w in x.weights] for x in ours}
    )
    source = find_source(
        source, convert.infer_architecture(shapes), _HEAD in shapes
    )
    path = source
    if isinstance(source, WeightsRecord):
        path = fetch(source)
        if not source.commercial:
            _log.warning(
                "%s is licensed for non-commercial use only (%s).",
                source.name,
                source.license,
            )
    dtypes = {x.variable_dtype for x in ours}
    weights = _fitting(read(path), shapes, path, dtypes)
    cut = convert.split_paths(weights, [x.name for x in ours])
    for layer in ours:
        if layer.name in cut:
            layer.set_weights(cut[layer.name])


def _fitting(weights, shapes, path, dtypes):
    """What of a file goes into a model of such shapes; or an error."""
    found = {
        name: [a.shape for a in arrays] for name, arrays in weights.items()
    }
    theirs, ours = (
        convert.infer_architecture(found),
        convert.infer_architecture(shapes),
    )
    if theirs != ours:
        raise ValueError(
            f"`weights` must fit the model; {path} holds {theirs}, the model "
            f"is {ours}."
        )
    body = shapes.keys() - {_HEAD}
    for verb, names in (
        ("lacks", body - weights.keys()),
        ("has more than the model", weights.keys() - shapes.keys() - {_HEAD}),
    ):
        if names:
            raise ValueError(
                f"`weights` must fit the model; {path} {verb}: "
                f"{', '.join(sorted(names)[:5])}."
            )
    weights = {name: weights[name] for name in shapes if name in weights}
    _adapt(weights, found, shapes, path)
    for name, arrays in weights.items():
        expected = [a.shape for a in arrays]
        if expected != shapes[name]:
            raise ValueError(
                f"`weights` must fit the model; {path} has {expected} for "
                f"{name}, the model {shapes[name]}."
            )
        _check_values(name, arrays, path, dtypes)
    return weights


def _check_values(name, arrays, path, dtypes):
    # Of what `layer.set_weights` will cast to, too.
    largest = min(float(ml_dtypes.finfo(dtype).max) for dtype in dtypes)
    if not all((abs(array) <= largest).all() for array in arrays):
        raise ValueError(
            f"`weights` must be finite in {', '.join(sorted(dtypes))}; {path} "
            f"has NaN, infinity or larger numbers in {name}."
        )
    if name.endswith("_bn") and (arrays[3] < 0).any():
        raise ValueError(
            f"`weights` must have variances of at least 0; {path} has less in "
            f"{name}."
        )


def _adapt(weights, found, shapes, path):
    """Other classes and other channels than the file's, and say so."""
    if _HEAD in shapes and _HEAD not in found:
        _log.warning("%s has no classifier; the model's stays as it is.", path)
    elif _HEAD in shapes:
        features, ours = shapes[_HEAD][0]
        theirs = found[_HEAD][0][-1]
        if theirs != ours and found[_HEAD] == [(features, theirs), (theirs,)]:
            del weights[_HEAD]
            _log.warning(
                "%s has a classifier of %d classes, the model of %d; the "
                "model's stays as it is.",
                path,
                theirs,
                ours,
            )
    channels = shapes[_STEM][0][2]
    if [s[2:3] for s in found[_STEM]] == [(3,)] and channels != 3:
        (kernel,) = weights[_STEM]
        weights[_STEM] = [convert.adapt_stem(kernel, channels)]
        _log.warning(
            "%s is of RGB images, the model of %d channels; the first "
            "convolution was adapted.",
            path,
            channels,
        )


def _notation(model):
    name = model.lower()
    return f"{name}_32x4d" if name in ("resnext50", "resnext101") else name


def _rank(record):
    """Torchvision's own on the Hub, newest first; then by accuracy."""
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
