"""python -m benchmarks: time this package and its peers; study digits."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.job import Job

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(width=None if sys.stdout.isatty() else 130)
ThreadsOption = Annotated[int, typer.Option(help="Threads of each process.")]
FolderOption = Annotated[
    pathlib.Path, typer.Option(help="Where results are written and read.")
]
_DISTRIBUTIONS = (
    "tensorflow",
    "keras",
    "torch",
    "onnxruntime",
    "ai-edge-litert",
    "openvino",
    "zeromodels",
)


@app.command()
def compare(
    threads: ThreadsOption = 2,
    folder: FolderOption = report.FOLDER,
    only: Annotated[
        str | None,
        typer.Option(
            help="Measure only groups whose name has this, such as 'training' "
            "or 'batch 8, bfloat16', and keep what the file has of others.",
        ),
    ] = None,
):
    """Time this package and its peers; about 40 minutes on two cores."""
    from benchmarks.compare import GROUPS
    from benchmarks.compare import compare
    from benchmarks.compare import time_imports

    file = folder / "comparison.json"
    results = {"about": _about(threads), "imports": {}, "groups": []}
    groups = [group for group in GROUPS if (only or "") in group.name]
    if not groups:
        names = "; ".join(group.name for group in GROUPS)
        raise typer.BadParameter(f"--only must be part of one of: {names}.")
    if only:
        before = json.loads(file.read_text())
        if before["about"]["versions"] != results["about"]["versions"]:
            raise typer.BadParameter(
                "--only cannot add to results of other versions; measure all."
            )
        results = before
    else:
        results["imports"] = time_imports()
    order = [(group.task, group.batch, group.dtype) for group in GROUPS]
    measured = {_key(group): group for group in results["groups"]}
    for group in compare(Job("", threads=threads), groups, log=console.print):
        measured[_key(group)] = group
        # After each: a failure later does not lose it.
        results["groups"] = sorted(
            measured.values(), key=lambda group: order.index(_key(group))
        )
        _write(file, results)
    report.draw_comparison(results, folder / "comparison.svg")
    report.print_results(results, console)


@app.command()
def growth(threads: ThreadsOption = 2, folder: FolderOption = report.FOLDER):
    """Time larger batches, images and networks; about 20 minutes."""
    from benchmarks.growth import measure_growth

    points = measure_growth(Job("", threads=threads), log=console.print)
    _write(folder / "growth.json", {"about": _about(threads), "points": points})
    report.draw_growth(points, folder / "growth.svg")


@app.command()
def loading(threads: ThreadsOption = 2, folder: FolderOption = report.FOLDER):
    """Time reading images, and training's loop; a few minutes."""
    from benchmarks.loading import measure_loading

    results = measure_loading(Job("", threads=threads), log=console.print)
    _write(folder / "loading.json", {"about": _about(threads), **results})


@app.command()
def exporting(threads: ThreadsOption = 2, folder: FolderOption = report.FOLDER):
    """Time exporting, beside Keras' own; about fifteen minutes."""
    from benchmarks.exporting import measure_exporting

    results = measure_exporting(Job("", threads=threads), log=console.print)
    _write(folder / "exporting.json", {"about": _about(threads), **results})


@app.command()
def study(
    folder: FolderOption = report.FOLDER,
    runs: Annotated[
        pathlib.Path,
        typer.Option(help="Where trained networks are kept; it goes on there."),
    ] = pathlib.Path("runs/study"),
    seeds: Annotated[
        int, typer.Option(min=2, help="Runs of each network.")
    ] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 10,
):
    """Train cardinalities 1 to 32 on digits, with and without shortcuts.

    At constant complexity; half an hour on two cores.
    """
    from benchmarks.study import draw_study
    from benchmarks.study import print_study
    from benchmarks.study import run_study
    from keras_resnext.training import Recipe
    from keras_resnext.training.datasets import open_dataset

    recipe = Recipe(
        image_size=8, crop_padding=1, epochs=epochs, warmup_epochs=0.2 * epochs
    )
    records = run_study(runs, recipe=recipe, seeds=seeds, log=console.print)
    data = open_dataset(recipe.dataset)
    held_out = data.num_examples(data.val_split)
    _write(
        folder / "study.json",
        {
            "about": _machine(),
            "recipe": dataclasses.asdict(recipe),
            "held_out": held_out,
            "records": records,
        },
    )
    draw_study(records, folder / "study.svg")
    print_study(records, held_out, console)


@app.command()
def show(
    folder: FolderOption = report.FOLDER,
    readme: Annotated[
        bool, typer.Option("--readme", help="Renew README.md's table too.")
    ] = False,
):
    """Print and draw the results again, without measuring."""
    results = json.loads((folder / "comparison.json").read_text())
    report.draw_comparison(results, folder / "comparison.svg")
    report.print_results(results, console)
    points = json.loads((folder / "growth.json").read_text())["points"]
    report.draw_growth(points, folder / "growth.svg")
    if readme:
        report.write_readme(results)


def _key(group):
    return group["task"], group["batch"], group["dtype"]


def _write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(path)


def _about(threads):
    return {**_machine(), "threads": threads, "size": Job("").size}


def _machine():
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    flags = re.search(r"flags\s*: (.*)", cpu)
    fast = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": re.search(r"model name\s*: (.*)", cpu)[1],
        "instructions": [x for x in fast if flags and x in flags[1].split()],
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _DISTRIBUTIONS},
        },
    }


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # a peer that is not compared with


if __name__ == "__main__":
    app()
