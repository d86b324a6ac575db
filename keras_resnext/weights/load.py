"""Load weights into a built model."""

import os
import pathlib
import warnings


def load_weights(model, source: str | os.PathLike) -> None:
    """Load weights saved with `model.save_weights` into a model.

    Layers are matched by class and order, not by name, as Keras does.

    Args:
        model: A `keras.Model` of the same architecture.
        source: Path of a `.weights.h5` file.

    Raises:
        ValueError: if `source` is no such file, or its arrays do not fit;
            the model is as it was then.

    Example:

    >>> keras_resnext.load_weights(model, "runs/x/model.weights.h5")
    """
    check_source(source)
    before = model.get_weights()
    try:
        # What Keras warns of layer by layer, the error below says once.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            model.load_weights(source)
    except (ValueError, OSError, KeyError) as error:
        model.set_weights(before)
        raise ValueError(
            f"`weights` must fit the model; {source} does not fit "
            f"{model.name}: {str(error).strip().splitlines()[0]}"
        ) from error
    for warning in caught:
        warnings.warn(warning.message, warning.category, stacklevel=2)


def check_source(source: str | os.PathLike) -> None:
    """Refuse a source that `load_weights` cannot read.

    Args:
        source: What a builder got as `weights`, not `None`.

    Raises:
        ValueError: if it is not the path of an existing `.weights.h5` file.

    Example:

    >>> check_source("model.weights.h5")
    """
    if str(source).endswith(".weights.h5") and pathlib.Path(source).is_file():
        return
    raise ValueError(
        "Weights must be None or the path of an existing .weights.h5 file "
        f"(published weights are not part of this version); got {source!r}."
    )
