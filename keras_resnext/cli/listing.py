"""`keras-resnext list` and `keras-resnext summary`: what there is."""

import dataclasses
import functools
from typing import Annotated

import typer

from keras_resnext.cli.console import console
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.console import table


def list_names(
    model: Annotated[
        str | None, typer.Argument(help="Only this model's weights.")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Published weights instead.")
    ] = False,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="Training recipes instead.")
    ] = False,
    devices: Annotated[
        bool,
        typer.Option(
            "--devices",
            help="This machine's devices instead, and how grouped "
            "convolutions run on them.",
        ),
    ] = False,
):
    """List the models that have a name."""
    if (model and not weights) or weights + devices + recipes > 1:
        raise ValueError(
            "`list` takes a model with --weights only, and one of --weights, "
            "--devices and --recipes."
        )
    if weights:
        _print_weights(model)
    elif recipes:
        _print_recipes()
    elif devices:
        start_tensorflow()
        _print_devices()
    else:
        start_tensorflow()
        _print_models()


def summary(
    model: Annotated[
        str | None, typer.Argument(help="Name of a model, see `list`.")
    ] = None,
    form: Annotated[
        str, typer.Option(help="grouped, concatenated or branches.")
    ] = "grouped",
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's tables instead.")
    ] = False,
):
    """Print what a model costs, stage by stage."""
    if paper == bool(model):
        raise ValueError(
            "`summary` takes the name of a model or --paper; got "
            f"{'both' if paper else 'neither'}."
        )
    start_tensorflow()
    if paper:
        _print_paper()
    else:
        console.print(_stages(model, form))


def _print_models():
    from keras_resnext.variants import list_models

    for name in list_models():
        console.print(name)
    console.print(
        "and resnext<depth>_<cardinality>x<base_width>d, such as "
        "resnext50_16x8d or resnext20_4x16d"
    )


def _print_weights(model):
    from keras_resnext.weights import list_weights

    columns = ("top-1", "top-5", "pixels", "MB", "licence")
    for name in dict.fromkeys(record.model for record in list_weights(model)):
        rows = table("weights", *columns, title=name)
        rows.columns[-1].justify = "left"
        for record in list_weights(name):
            rows.add_row(
                record.tag + ("" if record.include_top else ", no top"),
                f"{record.top1:.2f}",
                f"{record.top5:.2f}",
                str(record.image_size),
                f"{record.size_mb:.0f}",
                record.license,
            )
        console.print(rows)
    console.print(
        "Accuracies are percentages on ImageNet's validation images, as "
        "published; none was measured here."
    )


def _print_recipes():
    """Each recipe, by what differs from the default."""
    from keras_resnext.training import RECIPES
    from keras_resnext.training import Recipe

    defaults = dataclasses.asdict(Recipe())
    for name, recipe in RECIPES.items():
        rows = table("field", "value", title=name)
        rows.columns[1].justify = "left"
        for field, value in dataclasses.asdict(recipe).items():
            if name == "digits" or value != defaults[field]:
                rows.add_row(field, str(value))
        console.print(rows)
    console.print("Fields that a recipe does not list are those of digits.")


def _print_devices():
    import tensorflow as tf

    from keras_resnext.cpu import instruction_sets
    from keras_resnext.cpu import onednn_decision
    from keras_resnext.layers import conv_implementation
    from keras_resnext.layers import pointwise_implementation

    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        name = details.get("device_name", "")
        console.print(f"{device.device_type} {name}".rstrip())
    console.print(f"Instruction sets: {', '.join(instruction_sets()) or '?'}")
    decision = onednn_decision()
    console.print(f"oneDNN: {decision}")
    if decision.startswith("off") and "avx2" in instruction_sets():
        console.print("  it is faster with TF_ENABLE_ONEDNN_OPTS=1")
    console.print("Grouped convolutions, see `layers.conv_implementation`:")
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        console.print(f"  {dtype:9} {conv_implementation(dtype)}")
    console.print("1x1 in training, see `layers.pointwise_implementation`:")
    console.print(f"  float32   {pointwise_implementation()}")


def _stages(name, form):
    """The table of a model's cost by stage."""
    from keras_resnext.complexity import count_complexity
    from keras_resnext.complexity import total
    from keras_resnext.names import stage_of
    from keras_resnext.variants import build

    network = build(name, form=form)
    counts = count_complexity(network)
    stages = {}
    for layer, count in counts.by_layer.items():
        stages.setdefault(stage_of(layer) or layer, {})[layer] = count
    height, width = network.input_shape[1:3]
    rows = table(
        "stage",
        *("output", "parameters", "multiply-adds", "activations"),
        title=f"{network.name}, {form}, one image of {height}x{width}",
    )
    for stage, layers in stages.items():
        shape = network.get_layer(list(layers)[-1]).output.shape[1:]
        rows.add_row(stage, "x".join(map(str, shape)), *_cost(total(layers)))
    rows.add_row("total", "", *_cost(counts))
    return rows


def _cost(count):
    return (
        f"{count.params:,}",
        f"{count.multiply_adds:,}",
        f"{count.activations:,}",
    )


def _print_paper():
    """The paper's tables: costs counted here, errors as published."""
    from keras_resnext.paper import TABLES

    for title, lines in TABLES.items():
        rows = table(
            "network",
            *("parameters", "multiply-adds"),
            *("top-1 error (published)", "top-5 error (published)"),
            title=title,
        )
        for line in lines:
            with console.status(f"Building {line.label}"):
                count = _complexity(line.model, line.residual)
            rows.add_row(
                line.label,
                f"{count.params / 1e6:.2f} M",
                f"{count.multiply_adds / 1e9:.3f} G",
                f"{line.top1} %",
                "-" if line.top5 is None else f"{line.top5} %",
            )
        console.print(rows)
    console.print(
        "Parameters and multiply-adds are counted at 224x224; errors are as "
        "published in arXiv 1611.05431 and were not measured here."
    )


@functools.cache
def _complexity(model, residual):
    from keras_resnext.complexity import count_complexity
    from keras_resnext.variants import build

    return count_complexity(build(model, residual=residual))
