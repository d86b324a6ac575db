"""python -m benchmarks: time this package and its peers; train and compare."""

import contextlib
import json
import pathlib
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import machine
from benchmarks import report
from benchmarks.job import Job

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False
)
console = Console(width=None if sys.stdout.isatty() else 130)
ThreadsOption = Annotated[int, typer.Option(help="Threads of each process.")]
FolderOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        help="Where results are written and read. Defaults to the folder of "
        "this machine's class in benchmarks/results."
    ),
]
ResultsOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        help="Where results are written and read. Defaults to "
        "benchmarks/results."
    ),
]
TransferRunsOption = Annotated[
    pathlib.Path, typer.Option(help="Where images and networks are kept.")
]
SourceOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        help="Folder with Fashion-MNIST's four .gz files: train on Keras' JAX "
        "backend (KERAS_BACKEND=jax) and its accelerator.",
    ),
]
LearnerRunsOption = Annotated[
    pathlib.Path,
    typer.Option(help="Where the run under way is kept, to go on there."),
]
MinutesOption = Annotated[
    float | None, typer.Option(help="Start no run after as many minutes.")
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Runs of each kind.")]


@app.command()
def compare(
    threads: ThreadsOption = 2,
    folder: FolderOption = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="All subjects and groups in more rounds, 40 minutes, into "
            "comparison.json instead of headline.json.",
        ),
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="Measure only groups whose name has this, such as 'training' "
            "or 'batch 8, bfloat16', and keep what the file has of others.",
        ),
    ] = None,
):
    """Time this package and its peers; a quarter of an hour on two cores."""
    from benchmarks.compare import GROUPS
    from benchmarks.compare import HEADLINE
    from benchmarks.compare import compare
    from benchmarks.compare import time_imports

    about = machine.describe()
    file = report.class_folder(about, folder) / (
        "comparison.json" if every else "headline.json"
    )
    dtypes = machine.dtypes(about["instructions"])
    order = [
        group
        for group in (GROUPS if every else HEADLINE)
        if group.dtype in dtypes
    ]
    groups = [group for group in order if (only or "") in group.name]
    if not groups:
        names = "; ".join(group.name for group in order)
        raise typer.BadParameter(f"--only must be part of one of: {names}.")
    if only:
        results = json.loads(file.read_text())
        if results["about"]["versions"] != about["versions"]:
            raise typer.BadParameter(
                "--only cannot add to results of other versions; measure all."
            )
    else:
        about |= {"threads": threads, "size": Job("").size}
        about |= machine.limits(threads)
        imports = time_imports() if every else {}  # three minutes
        results = {"about": about, "imports": imports, "groups": []}
    names = [group.name for group in order]
    measured = {report.name_of(group): group for group in results["groups"]}
    starts = 3 if every else 1
    job = Job("", threads=threads)
    for group in compare(job, groups, starts, log=console.print):
        measured[report.name_of(group)] = group
        # After each: a failure later does not lose it.
        results["groups"] = sorted(
            measured.values(), key=lambda x: names.index(report.name_of(x))
        )
        _write(file, results)
    report.draw_comparison(results, file.with_suffix(".svg"))
    report.print_results(results, console)


@app.command()
def growth(threads: ThreadsOption = 2, folder: FolderOption = None):
    """Time larger batches, images and networks; about 20 minutes."""
    from benchmarks.growth import measure_growth

    points = measure_growth(Job("", threads=threads), log=console.print)
    about = _about(threads)
    folder = report.class_folder(about, folder)
    _write(folder / "growth.json", {"about": about, "points": points})
    report.draw_growth(points, folder / "growth.svg")


@app.command()
def loading(threads: ThreadsOption = 2, folder: FolderOption = None):
    """Time reading images, and training's loop; a few minutes."""
    from benchmarks.loading import measure_loading

    results = measure_loading(Job("", threads=threads), log=console.print)
    about = _about(threads)
    folder = report.class_folder(about, folder)
    _write(folder / "loading.json", {"about": about, **results})


@app.command()
def exporting(threads: ThreadsOption = 2, folder: FolderOption = None):
    """Time exporting, beside Keras' own; about fifteen minutes."""
    from benchmarks.exporting import measure_exporting

    results = measure_exporting(Job("", threads=threads), log=console.print)
    about = _about(threads)
    folder = report.class_folder(about, folder)
    _write(folder / "exporting.json", {"about": about, **results})


@app.command()
def study(
    folder: ResultsOption = None,
    source: SourceOption = None,
    runs: LearnerRunsOption = pathlib.Path("runs/study"),
    minutes: MinutesOption = None,
):
    """Cardinality, width, depth and shortcuts on Fashion-MNIST.

    45 runs of three seeds and 21 more of the networks that a question is
    about; finished ones are read from study.jsonl in the folder. Days on two
    cores, a quarter of an hour on a GPU. `make fashion` prepares the images
    without a network.
    """
    from benchmarks.study import run_study
    from benchmarks.verdict import draw_study
    from benchmarks.verdict import page
    from benchmarks.verdict import planned_seeds
    from benchmarks.verdict import power

    console.print(power(), highlight=False)
    folder = folder or report.FOLDER
    with _errors_in_a_line():
        records = run_study(
            folder / "study.jsonl",
            _learner(source, runs),
            seeds=planned_seeds(),
            minutes=float("inf") if minutes is None else minutes,
            log=console.print,
        )
    if records:
        draw_study(records, folder / "study.svg")
        text = page(records)
        (folder / "study.md").write_text(text)
        console.print(Markdown(text))


@app.command()
def tune(
    folder: ResultsOption = None,
    source: SourceOption = None,
    runs: LearnerRunsOption = pathlib.Path("runs/tuning"),
    minutes: MinutesOption = None,
):
    """Choose the recipe `fashion_mnist`, on a split of the training images.

    Finished runs are read from results/fashion_tuning.jsonl. Days on two
    cores, minutes on a GPU.
    """
    from benchmarks.tuning import print_tuning
    from benchmarks.tuning import run_tuning

    with _errors_in_a_line():
        records = run_tuning(
            (folder or report.FOLDER) / "fashion_tuning.jsonl",
            _learner(source, runs),
            minutes=float("inf") if minutes is None else minutes,
            log=console.print,
        )
    print_tuning(records, console)


@app.command()
def final(
    folder: ResultsOption = None,
    source: SourceOption = None,
    runs: LearnerRunsOption = pathlib.Path("runs/final"),
):
    """Train the recipe `fashion_mnist` with three seeds, and test it.

    Finished runs are read from results/fashion_mnist.jsonl. Five hours each on
    two cores, a minute and a half on a GPU.
    """
    from benchmarks.tuning import run_final

    with _errors_in_a_line():
        run_final(
            (folder or report.FOLDER) / "fashion_mnist.jsonl",
            _learner(source, runs),
            runs,
            log=console.print,
        )
    console.print(f"Weights of runs that ended now are in {runs}.")


@app.command()
def quantization(
    folder: ResultsOption = None,
    runs: LearnerRunsOption = pathlib.Path("runs/quantization"),
    seeds: SeedsOption = 3,
):
    """Eight bits and fewer, after training and in training; an hour.

    Finished runs are read from quantization.jsonl in the folder. `make
    fashion` prepares the images.
    """
    from benchmarks.quantization import report as tables
    from benchmarks.quantization import run_quantization
    from keras_resnext.cli.console import start_tensorflow

    start_tensorflow()
    records = run_quantization(
        (folder or report.FOLDER) / "quantization.jsonl",
        runs,
        seeds=seeds,
        log=console.print,
    )
    console.print(Markdown(tables(records)))


@app.command()
def quantization_steps():
    """What fake quantisation costs in a training step; five minutes."""
    from benchmarks.quantization import measure_steps
    from keras_resnext.cli.console import start_tensorflow

    start_tensorflow()
    for record in measure_steps():
        console.print(
            f"{record['network']}, batch {record['batch']}, {record['state']}: "
            f"{record['ms']:.0f} ms, {record['ratio']:.2f}",
            highlight=False,
        )


def _learner(source, runs):
    """What trains: `keras_resnext.training`, or the loop for accelerators."""
    import keras

    backend = keras.backend.backend()
    if (backend, source is None) not in (("tensorflow", True), ("jax", False)):
        raise typer.BadParameter(
            "--source is needed with KERAS_BACKEND=jax, and only there; got "
            f"{source} with Keras on {backend}."
        )
    if backend == "jax":
        from benchmarks.fashion import read
        from benchmarks.on_jax import Learner

        return Learner(*read(source))
    from benchmarks.on_tensorflow import Learner
    from keras_resnext.cli.console import start_tensorflow

    start_tensorflow()
    return Learner(runs)


@contextlib.contextmanager
def _errors_in_a_line():
    """What a user can mend is printed without a traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"Error: {error}") from error


@app.command()
def transfer(
    folder: ResultsOption = None,
    runs: TransferRunsOption = pathlib.Path("runs/transfer"),
    seeds: SeedsOption = 3,
):
    """Fine-tune on emoji, beside training from scratch; an hour.

    The emoji come from npm's registry, with npm.
    """
    from benchmarks.transfer import draw_transfer
    from benchmarks.transfer import prepare
    from benchmarks.transfer import run_transfer

    images = runs / "images"
    prepare(images)
    tested = len(list((images / "twitter" / "test").rglob("*.png")))
    records = run_transfer(images, runs, seeds=seeds, log=console.print)
    folder = folder or report.FOLDER
    _write(
        folder / "transfer.json",
        {
            "about": machine.describe(),
            "tested": tested,
            "records": records,
        },
    )
    draw_transfer(records, tested, folder / "transfer.svg")


@app.command()
def imbalance(
    folder: ResultsOption = None,
    runs: TransferRunsOption = pathlib.Path("runs/transfer"),
    seeds: SeedsOption = 3,
):
    """Fine-tune on classes of 90 to 12 emoji, weighted and not.

    20 minutes, and 10 for the network it starts from, which `transfer` shares.
    """
    from benchmarks.transfer import prepare
    from benchmarks.transfer import run_imbalance

    prepare(runs / "images")
    records = run_imbalance(
        runs / "images", runs, seeds=seeds, log=console.print
    )
    _write(
        (folder or report.FOLDER) / "imbalance.json",
        {"about": machine.describe(), "records": records},
    )


@app.command()
def fashion(
    source: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Folder with the four .gz files. Defaults to Debian's "
            "package, downloaded with apt-get."
        ),
    ] = None,
    data_dir: Annotated[
        pathlib.Path | None,
        typer.Option(help="Directory of TensorFlow Datasets' data sets."),
    ] = None,
):
    """Prepare Fashion-MNIST for `--dataset fashion_mnist` without a network.

    31 MB, a minute or two.
    """
    from benchmarks.fashion import prepare
    from keras_resnext.cli.console import start_tensorflow

    start_tensorflow()
    console.print(f"{prepare(source, data_dir)} is ready.")


@app.command()
def show(
    folder: FolderOption = None,
    readme: Annotated[
        bool, typer.Option("--readme", help="Renew README.md's table too.")
    ] = False,
):
    """Print and draw the results again, without measuring."""
    folder = report.class_folder(machine.describe(), folder)
    for name in ("headline.json", "comparison.json"):
        if (folder / name).exists():
            results = json.loads((folder / name).read_text())
            report.draw_comparison(
                results, folder / name.replace("json", "svg")
            )
            report.print_results(results, console)
    if (folder / "growth.json").exists():
        points = json.loads((folder / "growth.json").read_text())["points"]
        report.draw_growth(points, folder / "growth.svg")
    if readme:
        report.write_readme(report.stored_results())


def _write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(path)


def _about(threads):
    return {**machine.describe(), "threads": threads, "size": Job("").size}


if __name__ == "__main__":
    app()
