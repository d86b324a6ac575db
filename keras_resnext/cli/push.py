"""`keras-resnext push`: a classifier as a repository of the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import ModelArgument
from keras_resnext.cli.console import WeightsOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import open_data
from keras_resnext.cli.console import start_tensorflow


def push(
    model: ModelArgument,
    repository: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="The repository.")
    ],
    weights: WeightsOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name or folder of the data set to evaluate on, for the "
            "card. Defaults to the run's."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Defaults to the validation or test split."),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Whether to measure the card's accuracy.")
    ] = True,
    license: Annotated[
        str | None,
        typer.Option(
            help="Of the weights, such as apache-2.0. Defaults to that of "
            "published weights."
        ),
    ] = None,
    description: Annotated[
        str, typer.Option(help="Paragraphs for the card, or @FILE.")
    ] = "",
    exports: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder that `export` wrote: its .tflite and .onnx files "
            "are published too.",
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Of a new repository. Defaults to the owner's default.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace an existing repository's files."
        ),
    ] = False,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write the repository there; upload nothing."
        ),
    ] = None,
    data_dir: DataDirOption = None,
):
    """Publish a classifier on the Hugging Face Hub, with a model card.

    It opens in keras_resnext, in plain Keras and, where timm has the network,
    in timm. The token is that of `hf auth login` or HF_TOKEN.
    """
    start_tensorflow()
    from keras_resnext.classifier import Classifier
    from keras_resnext.share import check_target
    from keras_resnext.share import push_to_hub
    from keras_resnext.share.repository import check_shareable
    from keras_resnext.share.repository import read_exports

    target = {
        "private": private,
        "overwrite": overwrite,
        "dry_run": dry_run,
    }
    if description.startswith("@"):
        file = Path(description[1:])
        if not file.is_file():
            raise ValueError(
                f"`description` must be text or @ and an existing file; there "
                f"is no {file}."
            )
        description = file.read_text(encoding="utf-8")
    # Before an evaluation, which takes minutes.
    check_target(repository, license=license, **target)
    classifier = Classifier.load(model, weights)
    check_shareable(classifier)
    read_exports(exports, classifier)
    evaluation = None
    if evaluate:
        from keras_resnext import training

        data = open_data(model, dataset, data_dir)
        evaluation = training.evaluate(classifier, data, split=split)
        console.print(
            f"{data.name}, split {evaluation.split}: {evaluation.examples} "
            f"images. Accuracy {evaluation.accuracy:.4f}."
        )
    place = push_to_hub(
        classifier,
        repository,
        evaluation=evaluation,
        license=license,
        description=description,
        exports=exports,
        **target,
    )
    done = "Wrote" if dry_run else "Pushed"
    console.print(f"{done} {place}.")
