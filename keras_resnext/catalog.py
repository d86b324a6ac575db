"""What the named models cost, known without building one.

`make golden` writes the numbers; building all models takes minutes.
"""

import dataclasses
import json
import pathlib

from keras_resnext.extras import suggest

FILE = pathlib.Path(__file__).with_name("model_costs.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCost:
    """What a named model costs, with its classifier.

    Args:
        name: Its name, see `keras_resnext.list_models`.
        image_size: Side of its images by default, in pixels.
        parameters: Number of trainable values.
        multiply_adds: Multiply-adds for one image, see `count_complexity`.
        values: Number of values in its file: parameters, and batch norm's
            moving statistics.
    """

    name: str
    image_size: int
    parameters: int
    multiply_adds: int
    values: int

    @property
    def size_mb(self) -> float:
        """Size of its weights in megabytes (10^6 bytes), float32."""
        return self.values * 4 / 1e6


def find_costs(part: str = "") -> list[ModelCost]:
    """The costs of the named models, or of some.

    Args:
        part: What their names must contain, in any case. Defaults to `""`:
            all.

    Returns:
        A list in the order of `keras_resnext.list_models`.

    Raises:
        ValueError: if no name contains `part`.

    Example:

    >>> [cost.name for cost in find_costs("152")]
    ['resnext152']
    """
    costs = json.loads(FILE.read_bytes())
    names = [name for name in costs if part.lower() in name]
    if not names:
        raise ValueError(
            "`name` must be a part of a model's name, see `list`; got "
            f"{part!r}.{suggest(part, costs)}"
        )
    return [ModelCost(name=name, **costs[name]) for name in names]
