"""Save weights in torchvision's names, for other libraries."""

import os
from typing import TYPE_CHECKING

import numpy as np

from keras_resnext.extras import require
from keras_resnext.files import check_free
from keras_resnext.files import staged
from keras_resnext.names import join_paths
from keras_resnext.weights import convert

if TYPE_CHECKING:
    import keras


def export_weights(
    model: "keras.Model",
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a model's weights as torchvision and timm name them.

    Args:
        model: A `keras.Model` of the builders, in any form.
        path: A file that ends in `.safetensors`.
        overwrite: Whether to replace an existing file. Defaults to `False`.

    Raises:
        ValueError: if `path` has another extension, or the model has other
            layers with weights than the builders', folded batch norms, or
            layers with LoRA or quantised weights.
        FileExistsError: if `path` exists and `overwrite` is false.

    Example:

    >>> import timm
    >>> model = keras_resnext.ResNeXt50(weights=None)
    >>> keras_resnext.export_weights(model, "mine.safetensors")
    >>> timm.create_model("resnext50_32x4d",
    ...                   checkpoint_path="mine.safetensors")
    """
    if not str(path).endswith(".safetensors"):
        raise ValueError(f"`path` must end in .safetensors; got {str(path)!r}.")
    check_free(path, overwrite=overwrite)
    require("safetensors", extra="weights", purpose="Writing .safetensors")
    from safetensors.numpy import save_file

    # Here, because it imports Keras, and listing weights does not need Keras.
    from keras_resnext.inspection import check_plain_weights

    for layer in model.layers:
        check_plain_weights(layer)
    weights = {x.name: x.get_weights() for x in model.layers if x.weights}
    if "conv1_bn" not in weights:
        raise ValueError(
            "`model` must be one of the builders', with its batch norms, not "
            f"folded; {model.name} has no conv1_bn."
        )
    tensors = convert.to_torch(join_paths(weights))
    with staged(path, overwrite=overwrite) as new:
        save_file(
            {name: np.ascontiguousarray(x) for name, x in tensors.items()},
            new,
            metadata={"format": "pt"},
        )
