"""Options of the command line for the fields of a recipe."""

import dataclasses
import functools
import inspect
from typing import Annotated

import typer

from keras_resnext.training.recipe import GROUPS
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.recipe import describe_fields

# What `train` and the command line set themselves.
_NOT_SET_BY_HAND = {"extended_from", "restart_schedule"}


def with_recipe_fields(command):
    """Give a command an option for each field of a recipe.

    Args:
        command: A function with `**fields`; it gets the options that were
            given, as strings by field name. Its own parameters come first.

    Returns:
        A function with a signature that typer can read.
    """
    own = inspect.signature(command).parameters
    hints = inspect.get_annotations(command, eval_str=True)
    parameters = [
        p.replace(annotation=hints[p.name])
        for p in own.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    kinds = {field.name: field.type for field in dataclasses.fields(Recipe)}
    texts = {k: v.replace('"', "") for k, v in describe_fields().items()}
    parameters += [
        _parameter(name, kinds[name], texts[name], group)
        for group, names in GROUPS.items()
        for name in names
        if name not in own and name not in _NOT_SET_BY_HAND
    ]

    @functools.wraps(command)
    def with_options(**values):
        given = {
            name: str(value)
            for name, value in values.items()
            if name in kinds and name not in own and value is not None
        }
        others = {k: v for k, v in values.items() if k in own}
        return command(**others, **given)

    with_options.__signature__ = inspect.Signature(
        [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
    )
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options


def _parameter(name, kind, text, group):
    """One option: a flag, or text that the recipe reads and checks."""
    if kind is bool:
        option = typer.Option(help=text, rich_help_panel=group)
        annotation = Annotated[bool | None, option]
    else:
        shown = {int: "INT", float: "NUMBER", str: "TEXT"}.get(kind, "INT,...")
        option = typer.Option(help=text, rich_help_panel=group, metavar=shown)
        annotation = Annotated[str | None, option]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=annotation,
    )
