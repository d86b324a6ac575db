"""Exported files in their own runtimes, with neither Keras nor this package.

`python runtimes.py FORMAT FILE IMAGES.npy THREADS CALLS` measures one in a
process of its own, which loads nothing else, and prints JSON.
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
        threads: Threads within an operation; `None` leaves TensorFlow's
            setting, which cannot be changed once it has run.

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

    run.model = loaded  # which TensorFlow would forget
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


def median_latency(run, images, calls):
    """Median time of one call with one image, in milliseconds.

    Args:
        run: A function of pixels `(1, height, width, channels)`.
        images: Pixels `(images, height, width, channels)`, taken in turn.
        calls: Calls to time, after five that are not.

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
    """Of this process, in bytes."""
    try:
        with open("/proc/self/status") as status:
            (line,) = (x for x in status if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except OSError:
        # Elsewhere than on Linux, where this would begin with the memory of
        # the process that started this one.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
