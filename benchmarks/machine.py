"""What the machine is that results come from, and how fast it can be at most.

    python -m benchmarks.machine THREADS

prints its limits as JSON; run in a process of its own by `limits`.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

_DISTRIBUTIONS = (
    "tensorflow",
    "keras",
    "torch",
    "onnxruntime",
    "ai-edge-litert",
    "openvino",
    "zeromodels",
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
# Side of the matrices: far beyond the caches, 0.1 s a product on two cores.
_SIDE = 2048


def describe() -> dict:
    """Date, CPU, its instruction sets, and the versions of all libraries."""
    # Not from `keras_resnext.cpu`: importing the package here would turn
    # oneDNN on for all processes that are started, peers' too.
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    flags = re.search(r"flags\s*: (.*)", cpu)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": re.search(r"model name\s*: (.*)", cpu)[1],
        "instructions": [x for x in _FLAGS if flags and x in flags[1].split()],
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in _DISTRIBUTIONS},
        },
    }


def cpu_class(instructions: list[str]) -> str:
    """`"avx512"`, `"avx2"` or `"other"`: what results are kept apart by."""
    if "avx512f" in instructions:
        return "avx512"
    return "avx2" if "avx2" in instructions else "other"


def dtypes(instructions: list[str]) -> tuple[str, ...]:
    """The dtypes in which this CPU can multiply."""
    if {"avx512_bf16", "amx_bf16"} & set(instructions):
        return "float32", "bfloat16"
    return ("float32",)


def limits(threads: int) -> dict:
    """The machine's matrix rate, and the network's multiply-adds.

    Args:
        threads: Threads that a product may use.

    Returns:
        `"gflops"`, by dtype the best of TensorFlow's and PyTorch's products
        of two square matrices, in 1e9 operations a second (a multiply-add is
        two); and `"multiply_adds"`, those of one image.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.machine", str(threads)],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    return json.loads(done.stdout.splitlines()[-1])


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # a peer that is not compared with


def _measure(threads):
    from keras_resnext.cpu import turn_on_onednn

    turn_on_onednn()  # before TensorFlow is imported

    import tensorflow as tf
    import torch

    import keras_resnext

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    torch.set_num_threads(threads)
    instructions = describe()["instructions"]
    rates = {}
    for dtype in dtypes(instructions):
        ours = (
            tf.random.normal((_SIDE, _SIDE)),
            tf.random.normal((_SIDE, _SIDE)),
        )
        ours = [tf.cast(x, dtype) for x in ours]
        theirs = [torch.randn(_SIDE, _SIDE).to(getattr(torch, dtype))] * 2
        rates[dtype] = max(
            _rate(lambda x=ours: tf.matmul(*x)[0, 0].numpy()),
            _rate(lambda x=theirs: (x[0] @ x[1])[0, 0].item()),
        )
    model = keras_resnext.ResNeXt50(weights=None)
    cost = keras_resnext.count_complexity(model)
    return {"gflops": rates, "multiply_adds": cost.multiply_adds}


def _rate(multiply):
    """1e9 operations a second, of the fastest repetition in 2 seconds."""
    multiply()
    seconds = []
    while sum(seconds) < 2:
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return round(2e-9 * _SIDE**3 / min(seconds), 1)


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
