"""Exported files in their own runtimes, without Keras and this package.

`python runtimes.py FORMAT FILE IMAGES.npy THREADS CALLS` measures a file in a
process that imports nothing else, and prints JSON.
"""

import json
import os
import resource
import statistics
import sys
import time

import numpy as np


def open_saved_model(path, threads=None):
    """Open a SavedModel in TensorFlow.

    Args:
        path: Its folder.
        threads: Threads within an operation. Defaults to `None`, TensorFlow's
            present setting, which is final once TensorFlow has run.

    Returns:
        A function from pixels, `(images, height, width, channels)`, to a dict
        of outputs, each `(images, ...)`.
    """
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]

    def run(images):
        outputs = serve(image=tf.constant(images, tf.float32))
        return {name: value.numpy() for name, value in outputs.items()}

    run.model = loaded  # or TensorFlow frees its variables
    return run


def open_tflite(path, threads=None):
    """Open a TFLite file in LiteRT; see `open_saved_model`."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads or os.cpu_count())
    serve = interpreter.get_signature_runner("serving_default")
    dtype = serve.get_input_details()["image"]["dtype"]

    def run(images):
        if np.issubdtype(dtype, np.integer):
            images = np.round(images)
        parts = [serve(image=image[None].astype(dtype)) for image in images]
        return {
            name: np.concatenate([part[name] for part in parts])
            for name in parts[0]
        }

    return run


def open_onnx(path, threads=None):
    """Open an ONNX file in ONNX Runtime; see `open_saved_model`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    properties = session.get_modelmeta().custom_metadata_map
    channels_first = properties.get("data_format") == "NCHW"

    def run(images):
        images = np.asarray(images, "float32")
        if channels_first:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return dict(
            zip(names, session.run(None, {"image": images}), strict=True)
        )

    return run


OPENERS = {
    "savedmodel": open_saved_model,
    "tflite": open_tflite,
    "onnx": open_onnx,
}


def in_batches(run, size=64):
    """A function of any number of images from one of at most `size`."""

    def run_all(images):
        parts = np.array_split(images, -(-len(images) // size))
        outputs = [run(part) for part in parts]
        return {
            name: np.concatenate([part[name] for part in outputs])
            for name in outputs[0]
        }

    return run_all


def median_latency(run, images, calls):
    """Median time of one call with one image, in milliseconds.

    Args:
        run: A function of pixels `(1, height, width, channels)`.
        images: Pixels `(images, height, width, channels)`, used in turn.
        calls: Number of timed calls, after five for warm-up.

    Returns:
        Milliseconds.
    """
    times = []
    for call in range(-5, calls):
        image = images[call % len(images)][None]
        started = time.perf_counter()
        run(image)
        if call >= 0:
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def main():
    """Measure the file that the command line names."""
    format, path, images, threads, calls = sys.argv[1:]
    run = OPENERS[format](path, int(threads))
    latency = median_latency(run, np.load(images), int(calls))
    print(json.dumps({"latency_ms": latency, "peak_bytes": peak_memory()}))


def peak_memory():
    """Peak memory of this process, in bytes."""
    try:
        with open("/proc/self/status") as status:
            (line,) = (x for x in status if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except OSError:
        # Not on Linux: there a child process starts with its parent's value.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
