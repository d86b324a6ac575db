"""Time and memory of exporting, beside Keras' own `export`.

Each export is timed in a process of its own, from a built network to the file
in its place; ours includes the verification against Keras. `python -m
benchmarks.exporting NAME FOLDER` is such a process. Keras exports the same
network made of its own layers.
"""

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.harness import summary
from benchmarks.job import Job

ROUNDS = 3
# Ours, Keras' own, and the largest share of its time that is claimed.
TIMES = (("onnx", "keras onnx", 0.5), ("tflite", "keras litert", 0.6))
TFLITE = ("tflite", "tflite float16", "tflite dynamic", "tflite int8")
OURS = ("onnx", "onnx int8", *TFLITE, "savedmodel")
LATENCY_SHARE = 0.65  # of the float32 file's, at most
MEMORY = 2.5e9


def export_once(name, folder):
    """Export ResNeXt-50; the seconds, peak memory and size of that."""
    import keras
    import numpy as np

    import keras_resnext
    from keras_resnext import export
    from keras_resnext.export.runtimes import peak_memory

    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt50(weights=None)
    path = pathlib.Path(folder) / name.replace(" ", "_")
    rng = np.random.default_rng(0)
    calibration = rng.integers(0, 256, (16, *model.input_shape[1:]))
    if name.startswith("keras "):
        format = name.removeprefix("keras ")
        if format == "litert":
            path = path.with_suffix(".tflite")
        model = keras_resnext.to_stock_layers(model)
        model(calibration[:1])  # Keras exports no model that was never called
        work = functools.partial(
            model.export, str(path), format=format, verbose=False
        )
    else:
        format, _, quantize = name.partition(" ")
        exporter = {
            "savedmodel": export.to_saved_model,
            "tflite": export.to_tflite,
            "onnx": export.to_onnx,
        }[format]
        options = {"quantize": quantize} if quantize else {}
        if quantize == "int8":
            options["calibration"] = calibration
        work = functools.partial(exporter, model, path, **options)
    started = time.perf_counter()
    work()
    return {
        "seconds": time.perf_counter() - started,
        "peak": peak_memory(),
        "bytes": path.stat().st_size if path.is_file() else None,
    }


def measure_exporting(job: Job, log=print) -> dict:
    """Time all exports in turns, then the TFLite files.

    Args:
        job: Has the number of threads for the files' latency.
        log: Called with lines of progress.

    Returns:
        Records for the results file.
    """
    names = (*OURS, "keras onnx", "keras litert")
    seconds, peaks = {name: [] for name in names}, dict.fromkeys(names, 0)
    sizes = {}
    with tempfile.TemporaryDirectory() as root:
        for number in range(ROUNDS):
            for name in names[:: 1 if number % 2 else -1]:
                folder = pathlib.Path(root, str(number))
                folder.mkdir(exist_ok=True)
                measured = _in_process(name, folder)
                seconds[name].append(measured["seconds"])
                peaks[name] = max(peaks[name], measured["peak"])
                sizes[name] = measured["bytes"]
                log(
                    f"{name}: {measured['seconds']:.1f} s, "
                    f"{measured['peak'] / 1e6:.0f} MB"
                )
        files = _run_files(pathlib.Path(root, "0"), job.threads)
    results = {
        "exports": {
            name: {**summary(seconds[name]), "peak": peaks[name]}
            for name in names
        },
        "files": {
            name: {"bytes": sizes[name], **measured}
            for name, measured in files.items()
        },
    }
    results["claims"] = list(claims(results))
    for name, file in results["files"].items():
        log(
            f"{name}: {file['bytes'] / 1e6:.1f} MB, {file['median']:.1f} ms, "
            f"{file['peak'] / 1e6:.0f} MB of memory"
        )
    for claim in results["claims"]:
        log("{claim}: {ratio:.2f}, at most {at most}".format(**claim))
    return results


def claims(results: dict) -> Iterator[dict]:
    """The claims about the measurements, and whether they hold.

    Args:
        results: What `measure_exporting` returns.

    Yields:
        Dicts of the claim, its ratio, the maximum, and `holds`.
    """
    exports, files = results["exports"], results["files"]

    def claim(what, value, reference, most):
        ratio = value / reference
        holds = ratio <= most
        return {"claim": what, "ratio": ratio, "at most": most, "holds": holds}

    for ours, theirs, most in TIMES:
        yield claim(
            f"{ours} / {theirs}, time",
            exports[ours]["median"],
            exports[theirs]["median"],
            most,
        )
    for name in ("tflite dynamic", "tflite int8"):
        yield claim(
            f"{name} / float32, LiteRT latency",
            files[name]["median"],
            files["tflite"]["median"],
            LATENCY_SHARE,
        )
    for name in OURS:
        peak = exports[name]["peak"]
        yield claim(f"{name}, peak memory / {MEMORY / 1e9} GB", peak, MEMORY, 1)


def _in_process(name, folder):
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.exporting", name, str(folder)],
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"{name}: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def _run_files(folder, threads):
    """Latency of the TFLite files, in turns in this process, and memory."""
    import numpy as np

    from keras_resnext.export.report import run_alone
    from keras_resnext.export.runtimes import open_tflite

    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3))
    paths = {name: folder / name.replace(" ", "_") for name in TFLITE}
    runs = {name: open_tflite(path, threads) for name, path in paths.items()}
    seconds = {name: [] for name in TFLITE}
    for turn in range(-3, 30):
        for name, run in runs.items():
            started = time.perf_counter()
            run(image)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    alone = {
        name: run_alone("tflite", path, image, threads)
        for name, path in paths.items()
    }
    return {
        name: {**summary(values), "peak": alone[name]["peak_bytes"]}
        for name, values in seconds.items()
    }


if __name__ == "__main__":
    print(json.dumps(export_once(*sys.argv[1:])))
