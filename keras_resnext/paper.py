"""The paper's tables as data: what it compares, and the errors it published.

Top-1 and top-5 errors are percentages on ImageNet-1K's validation set, one
centre crop of 224 pixels, as published in arXiv 1611.05431 (v2); nothing here
was measured by this package.
"""

import typing


class Row(typing.NamedTuple):
    """One line of a table.

    Args:
        label: The paper's name.
        model: The name that `keras_resnext.variants.build` knows.
        top1: Published top-1 error, in percent.
        top5: Published top-5 error, in percent, if the table has it.
        residual: Whether the network has shortcuts.
    """

    label: str
    model: str
    top1: float
    top5: float | None = None
    residual: bool = True


TABLES = {
    "Table 1: the templates (errors from table 3)": (
        Row("ResNet-50", "resnet50", 23.9),
        Row("ResNeXt-50 (32x4d)", "resnext50", 22.2),
    ),
    "Table 3: cardinality against width": (
        Row("ResNet-50, 1x64d", "resnet50", 23.9),
        Row("ResNeXt-50, 2x40d", "resnext50_2x40d", 23.0),
        Row("ResNeXt-50, 4x24d", "resnext50_4x24d", 22.6),
        Row("ResNeXt-50, 8x14d", "resnext50_8x14d", 22.3),
        Row("ResNeXt-50, 32x4d", "resnext50", 22.2),
        Row("ResNet-101, 1x64d", "resnet101", 22.0),
        Row("ResNeXt-101, 2x40d", "resnext101_2x40d", 21.7),
        Row("ResNeXt-101, 4x24d", "resnext101_4x24d", 21.4),
        Row("ResNeXt-101, 8x14d", "resnext101_8x14d", 21.3),
        Row("ResNeXt-101, 32x4d", "resnext101", 21.2),
    ),
    "Table 4: cardinality against depth and width, at twice the cost": (
        Row("ResNet-101, 1x64d", "resnet101", 22.0, 6.0),
        Row("ResNeXt-101, 32x4d", "resnext101", 21.2, 5.6),
        Row("ResNet-200, 1x64d", "resnet200", 21.7, 5.8),
        Row("ResNet-101, wider, 1x100d", "resnext101_1x100d", 21.3, 5.7),
        Row("ResNeXt-101, 2x64d", "resnext101_2x64d", 20.7, 5.5),
        Row("ResNeXt-101, 64x4d", "resnext101_64x4d", 20.4, 5.3),
    ),
    "Section 5.1: without shortcuts": (
        Row("ResNet-50", "resnet50", 23.9),
        Row("ResNet-50, no shortcuts", "resnet50", 31.2, None, False),
        Row("ResNeXt-50", "resnext50", 22.2),
        Row("ResNeXt-50, no shortcuts", "resnext50", 26.1, None, False),
    ),
}
