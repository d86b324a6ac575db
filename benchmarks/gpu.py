"""The builders on Keras' JAX backend beside timm, on one GPU.

    python -m benchmarks.gpu --batch 256

needs JAX with CUDA, Keras, torch with CUDA and timm, and no TensorFlow. Both
sides train and infer in bfloat16 mixed precision, channels last, compiled
whole; what they reach is also given as a share of the rate at which the card
multiplies large bfloat16 matrices. "Conv2D" is the same network of Keras' own
layers, `Conv2D(groups=32)` among them.
"""

import argparse
import datetime
import importlib.metadata
import json
import statistics

from benchmarks.harness import Worker
from benchmarks.harness import take_turns
from benchmarks.job import Job

_PEERS = ("keras", "jax", "torch", "timm")
SUBJECTS = ("Keras on JAX", "Keras on JAX, Conv2D", "timm compiled")
# One forward pass of ResNeXt-50 (32x4d) at 224 pixels, `count_complexity`.
MULTIPLY_ADDS = 4_230_479_872
# Backwards, each convolution is computed for its input and for its kernel.
PASSES = {"inference": 1, "training": 3}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--output", help="a JSON file to write")
    arguments = parser.parse_args()

    import torch

    rate = matrix_rate()
    print(f"matrices: {rate / 1e12:.0f} TFLOP/s")
    results = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in _PEERS},
        "batch": arguments.batch,
        "matrix_flops": rate,
    }
    for task, passes in PASSES.items():
        workers = {}
        try:
            for subject in SUBJECTS:
                workers[subject] = Worker(
                    Job(subject, task, "bfloat16", arguments.batch)
                )
            seconds = take_turns(workers, arguments.rounds, 10, warm_up=3)
        finally:
            for worker in workers.values():
                worker.kill()
        for subject, values in seconds.items():
            images = arguments.batch / statistics.median(values)
            share = 2 * passes * MULTIPLY_ADDS * images / rate
            print(
                f"{task}, {subject}: {images:,.0f} images/s, "
                f"{share:.1%} of the matrices' rate"
            )
            results[f"{task}, {subject}"] = {
                "images_per_second": images,
                "share": share,
            }
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(results, file, indent=1)


def matrix_rate(size=8192, repetitions=20):
    """Operations a second of bfloat16 matrices, two for a multiply-add."""
    import torch

    a, b = (
        torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
        for _ in range(2)
    )
    times = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * size**3 / statistics.median(times)


if __name__ == "__main__":
    main()
