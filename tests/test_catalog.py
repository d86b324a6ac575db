"""The table of models, against their frozen layers and a built one."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest

from keras_resnext.catalog import find_costs
from keras_resnext.variants import build
from keras_resnext.variants import list_models
from tests import regenerate_golden

COSTS = find_costs()


def places(layer, size, is_cifar):
    """Positions of a layer's output, from its name and the paper's table 1."""
    if layer == "predictions":
        return 1
    if layer == "conv1_conv":
        return (size if is_cifar else size // 2) ** 2
    stage, block, part = map(
        int, re.fullmatch(r"conv(\d)_block(\d+)_(\d)_conv", layer).groups()
    )
    side = (size if is_cifar else size // 4) >> (stage - 2)
    # Only the 3x3 convolution of a stage's first block has a stride.
    before_stride = block == 1 and part == 1 and stage > 2
    return (2 * side if before_stride else side) ** 2


def test_names_are_those_of_the_builders():
    assert [cost.name for cost in COSTS] == list_models()


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
def test_costs_follow_from_the_frozen_layers(cost):
    path = regenerate_golden.GOLDEN / f"{cost.name}.json"
    layers = json.loads(path.read_text())
    sizes = {
        layer: [math.prod(shape) for shape in shapes]
        for _, layer, shapes in layers
    }
    assert cost.values == sum(map(sum, sizes.values()))
    moving = sum(sum(s[2:]) for x, s in sizes.items() if x.endswith("_bn"))
    assert cost.parameters == cost.values - moving
    assert cost.size_mb == pytest.approx(4e-6 * cost.values)
    is_cifar = "resnext29" in cost.name
    assert cost.image_size == (32 if is_cifar else 224)
    assert cost.multiply_adds == sum(
        size[0] * places(layer, cost.image_size, is_cifar)
        for layer, size in sizes.items()
        if not layer.endswith("_bn")
    )


def test_costs_are_those_of_a_built_model():
    name = "resnext29_1x64d"
    (cost,) = find_costs(name)
    found = regenerate_golden.cost(build(name))
    assert dataclasses.asdict(cost) == {"name": name, **found}


def test_models_are_found_by_a_part_of_their_name():
    for part in ("101", "32X", "ResNeXt29"):
        expected = [x for x in list_models() if part.lower() in x]
        assert len(expected) > 1
        assert [cost.name for cost in find_costs(part)] == expected
    with pytest.raises(ValueError, match="part of .*'resnet5O'. Did you mean"):
        find_costs("resnet5O")


def test_the_list_needs_no_keras():
    """Which takes seconds to import."""
    code = (
        "import sys; from keras_resnext import cli; "
        "sys.argv = ['keras-resnext', 'list', '152']\n"
        "try:\n    cli.main()\n"
        "finally:\n    assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "resnext152" in done.stdout
