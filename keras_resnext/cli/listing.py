"""`keras-resnext list` and `keras-resnext summary`: what there is."""

import dataclasses
import functools
from typing import Annotated

import typer

from keras_resnext.cli.console import console
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.console import table
from keras_resnext.extras import suggest


def list_names(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Only models with this in their name; with --weights, only "
            "this model's; with --recipes, this recipe.",
        ),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Published weights instead.")
    ] = False,
    recipes: Annotated[
        bool,
        typer.Option(
            "--recipes",
            help="Training recipes instead; with a name, all of its fields and "
            "what they mean.",
        ),
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
    """List the models that have a name, and what they cost."""
    if (model and devices) or weights + devices + recipes > 1:
        raise ValueError(
            "`list` takes one of --weights, --devices and --recipes, and no "
            "name with --devices."
        )
    if weights:
        _print_weights(model)
    elif recipes:
        _print_recipe(model) if model else _print_recipes()
    elif devices:
        start_tensorflow()
        _print_devices()
    else:
        _print_models(model or "")


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
        network = _build(model, form)
        console.print(_stages(network, form))
        console.print(_facts(network, model))


def _print_models(part):
    """The models whose names have this part."""
    from keras_resnext.catalog import find_costs
    from keras_resnext.weights import most_accurate_permissive

    columns = ("parameters", "multiply-\nadds", "MB", "best weights", "top-1")
    rows = table("model", *columns)
    rows.columns[4].justify = "left"
    for column in rows.columns:
        column.no_wrap = True  # whole names, so that `grep` finds them
    for cost in find_costs(part):
        best = most_accurate_permissive(cost.name)
        rows.add_row(
            cost.name,
            f"{cost.parameters / 1e6:.2f} M",
            f"{cost.multiply_adds / 1e9:.2f} G",
            f"{cost.size_mb:.0f}",
            best.tag if best else "",
            f"{best.top1:.2f}" if best else "",
        )
    console.print(rows)
    console.print(
        "For one image of 224x224 pixels, 32x32 for the networks of 29 layers; "
        "MB in float32. Best weights are the most accurate "
        "published ones that allow commercial use, top-1 in percent as "
        "published; `list --weights` has all. Other names are "
        "resnext<depth>_<cardinality>x<base_width>d, such as resnext50_16x8d "
        "or resnext20_4x16d; with _f64 at the end, the first stage has 64 "
        "channels instead of 256."
    )


def _print_weights(model):
    from keras_resnext.weights import list_weights
    from keras_resnext.weights.registry import FASHION_MNIST
    from keras_resnext.weights.registry import IMAGENET

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
    datasets = {record.dataset for record in list_weights(model)}
    for dataset, images in (
        (IMAGENET, "validation images, as published; none was measured here"),
        (FASHION_MNIST, "test images, measured here"),
    ):
        if dataset in datasets:
            console.print(
                f"Accuracies are percentages on {dataset}'s {images}."
            )


def _print_recipe(name):
    """All fields of a recipe, with what they mean."""
    from keras_resnext.training import RECIPES
    from keras_resnext.training.recipe import GROUPS
    from keras_resnext.training.recipe import describe_fields

    if name not in RECIPES:
        raise ValueError(
            f"`name` must be one of {', '.join(RECIPES)} with --recipes; got "
            f"{name!r}.{suggest(name, RECIPES)}"
        )
    texts = describe_fields()
    for group, fields in GROUPS.items():
        rows = table("field", "value", "meaning", title=f"{name}: {group}")
        for column in rows.columns[1:]:
            column.justify = "left"
        for field in fields:
            value = str(getattr(RECIPES[name], field))
            rows.add_row(field, value, texts[field])
        console.print(rows)


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


def _build(name, form):
    from keras_resnext.variants import build

    return build(name, form=form)


def _facts(network, name):
    """A line on a model's size and the best weights for it."""
    from keras_resnext.weights import most_accurate_permissive

    best = most_accurate_permissive(name)
    weights = "none"
    if best:
        weights = (
            f"{best.tag} ({best.license}), top-1 {best.top1:.2f} % on "
            f"{best.dataset}"
        )
    return (
        f"{network.count_params() * 4 / 1e6:.1f} MB in float32. Most accurate "
        f"published weights that allow commercial use: {weights}."
    )


def _stages(network, form):
    """The table of a model's cost by stage."""
    from keras_resnext.complexity import count_complexity
    from keras_resnext.complexity import total
    from keras_resnext.names import stage_of

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
