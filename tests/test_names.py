"""Names are taken apart and put together in one place."""

import numpy as np
import pytest

from keras_resnext import names
from keras_resnext.names import LayerName
from keras_resnext.names import NetworkName


@pytest.mark.parametrize(
    ("layer", "parsed", "stage", "block"),
    [
        ("conv1_conv", LayerName("conv1", "conv"), "conv1", None),
        (
            "conv2_block13_2_conv",
            LayerName("conv2_block13", "2_conv"),
            "conv2",
            "conv2_block13",
        ),
        (
            "conv5_block1_1_bn_path107",
            LayerName("conv5_block1", "1_bn", 107),
            "conv5",
            "conv5_block1",
        ),
        (
            "conv3_block2_out",
            LayerName("conv3_block2", "out"),
            "conv3",
            "conv3_block2",
        ),
        ("my_block_3_sum", LayerName("my_block", "3_sum"), None, None),
        ("predictions", None, None, None),
        ("conv2_mine", LayerName("conv2", "mine"), None, None),
    ],
)
def test_grammar(layer, parsed, stage, block):
    assert names.parse_name(layer) == parsed
    assert parsed is None or str(parsed) == layer
    assert names.stage_of(layer) == stage
    assert names.block_of(layer) == block
    assert names.path_of(layer) == (parsed.path if parsed else 0)
    assert names.whole_name(layer) == layer.partition("_path")[0]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("resnext50_32x4d", NetworkName(50, 32, 4, 256)),
        ("resnext20_8x4d_f64", NetworkName(20, 8, 4, 64)),
        ("resnext20_8x4d_f", None),
        ("resnext20_8x4d_f064", None),
        ("resnext20_8x4d_f\u0666\u0664", None),
        ("resnext50", None),
    ],
)
def test_networks(name, parsed):
    assert names.parse_network(name) == parsed
    assert parsed is None or str(parsed) == name


def test_paths_split_and_join_where_they_belong():
    whole = {
        "a_2_conv": [np.arange(12).reshape(1, 1, 2, 6)],
        "a_3_conv": [np.arange(12).reshape(1, 1, 6, 2)],
        "b_bn": [np.arange(6)],
    }
    # Not in the order of the paths.
    layers = [
        f"a_{part}_conv_path{path:02d}" for path in (3, 1, 2) for part in (2, 3)
    ]
    parts = names.split_paths(whole, [*layers, "b_bn", "absent"])
    assert parts.keys() == {*layers, "b_bn"}
    np.testing.assert_array_equal(
        parts["a_2_conv_path02"][0].ravel(), [2, 3, 8, 9]
    )
    np.testing.assert_array_equal(
        parts["a_3_conv_path02"][0].ravel(), [4, 5, 6, 7]
    )
    joined = names.join_paths(parts)
    shapes = names.join_shapes(
        {name: [a.shape for a in arrays] for name, arrays in parts.items()}
    )
    for name, arrays in whole.items():
        np.testing.assert_array_equal(joined[name], arrays)
        assert shapes[name] == [a.shape for a in arrays]
