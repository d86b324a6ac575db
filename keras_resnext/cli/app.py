"""The command `keras-resnext`: its commands, its errors, its exit status.

Nothing heavy is imported before a command needs it, so that `--help` answers
at once.
"""

import os
import sys
from typing import Annotated

import typer

from keras_resnext import __version__
from keras_resnext.cli import evaluate
from keras_resnext.cli import export
from keras_resnext.cli import finetune
from keras_resnext.cli import listing
from keras_resnext.cli import predict
from keras_resnext.cli import push
from keras_resnext.cli import train
from keras_resnext.cli.console import print_error
from keras_resnext.cli.console import warnings_as_lines
from keras_resnext.quiet import limit_tensorflow_log

app = typer.Typer(
    help="ResNeXt for Keras 3: fine-tune, train, evaluate, predict, export, "
    "push.",
    epilog="MODEL is the folder of a training run, a .keras file, the name of "
    "a model with weights (--weights TAG or FILE), or a repository of the "
    "Hugging Face Hub (hf://user/name). Errors are one line; "
    "set KERAS_RESNEXT_TRACEBACK=1 to see the traceback.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("list")(listing.list_names)
for command in (
    listing.summary,
    finetune.finetune,
    train.train,
    evaluate.evaluate,
    predict.predict,
    export.export,
    push.push,
):
    app.command()(command)


def _print_version(wanted: bool):
    if wanted:
        print(f"keras-resnext {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
):
    pass


def main():
    """Run the command line; a failure is one line and exit status 1."""
    # Errors that matter are exceptions too; oneDNN logs dtypes it passes over.
    limit_tensorflow_log("3")
    try:
        with warnings_as_lines():
            app()
    except Exception as error:
        if "KERAS_RESNEXT_TRACEBACK" in os.environ or not _is_expected(error):
            raise
        status = getattr(error, "exit_status", 1)
        print_error(error, label="" if status != 1 else "Error: ")
        sys.exit(status)


def _is_expected(error):
    """Whether an error is about the input or the machine, not a bug."""
    expected = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
    if "tensorflow" in sys.modules:
        # Such as an image in a data set that cannot be decoded.
        expected += (sys.modules["tensorflow"].errors.OpError,)
    return isinstance(error, expected)
