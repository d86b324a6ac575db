"""A long life in a process of its own: `python -m` this, with a job in JSON.

Each job prints a line of JSON: the memory after each part of its work, and
what it has seen besides.
"""

import concurrent.futures
import gc
import json
import os
import pathlib
import pickle
import sys
import threading
import time

import numpy as np

_THREADS = 4
_SAMPLES = 40


def resident():
    """MB in memory, without what is garbage."""
    gc.collect()
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1000


def watch(count, work):
    """Call `work` with numbers from 0; the memory, measured 40 times."""
    memory = []
    for number in range(count):
        work(number)
        if (number + 1) * _SAMPLES // count > len(memory):
            memory.append(resident())
    return memory


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def make_model(filters=16, side=None):
    import keras

    import keras_resnext
    from tests.conftest import randomize

    keras.utils.set_random_seed(0)
    return randomize(
        keras_resnext.ResNeXt(
            *((1, 1, 1), 4, filters),
            stem="cifar",
            classes=10,
            input_shape=(side, side, 3),
        )
    )


def megabytes(model):
    return sum(weights.nbytes for weights in model.get_weights()) / 1e6


def predictions(way):
    """1,000 predictions, of 1 to 8 images of 16 to 64 pixels a side."""
    from keras_resnext.classifier import Classifier

    model = make_model(side=16 if way == "classifier" else None)
    rng = np.random.default_rng(0)
    shapes = rng.integers((1, 16, 16), (9, 65, 65), (1000, 3))
    if way != "classifier":  # which resizes; oneDNN keeps code for each shape
        shapes[:, 1:] = shapes[:, 1:] // 16 * 16
    if way == "classifier":
        classifier = Classifier(model)

        def predict(shape, seed):
            pixels = 127 + 40 * noise(*shape, 3, seed=seed)
            images = [*pixels.clip(0, 255).astype("uint8")]
            return [p.probabilities for p in classifier.predict(images)]

    elif way == "predict":

        def predict(shape, seed):
            return model.predict(noise(*shape, 3, seed=seed), verbose=0)

    else:

        def predict(shape, seed):
            return model(noise(*shape, 3, seed=seed), training=False)

    first = [np.asarray(predict(shapes[i], i)) for i in range(10)]
    memory = watch(len(shapes), lambda i: predict(shapes[i], i))
    same = all(
        np.array_equal(predict(shapes[i], i), first[i]) for i in range(10)
    )
    return {"memory": memory, "weights": megabytes(model), "same": same}


def models(way):
    """100 models that are built, used and dropped."""
    import keras_resnext
    from keras_resnext.inference import inference_function

    images = noise(2, 16, 16, 3)
    answers, sizes = [], set()

    def build(number):
        model = make_model(side=16)
        infer = model
        if way == "inference_function":
            infer = inference_function(keras_resnext.fold_batch_norm(model))
        answers.append(np.asarray(infer(images)))
        sizes.add(megabytes(model))

    memory = watch(100, build)
    same = all(np.array_equal(answer, answers[0]) for answer in answers)
    return {"memory": memory, "weights": max(sizes), "same": same}


def batch_sizes():
    """50 batch sizes through one function, the largest at first, twice."""
    from keras_resnext.inference import inference_function

    model = make_model(filters=64, side=16)
    infer = inference_function(model)
    images = noise(50, 16, 16, 3)
    others = np.random.default_rng(0).permutation(np.arange(1, 50)).tolist()
    sizes = [50, *others]
    differences = []

    def predict(number):
        found = infer(images[: sizes[number]]).numpy()
        # Of another batch, sums may be taken in another order.
        differences.append(np.abs(found - expected[: sizes[number]]).max())

    expected = np.asarray(model(images, training=False))
    return {
        "memory": watch(len(sizes), predict),
        "again": watch(len(sizes), predict),
        "weights": megabytes(model),
        "graphs": infer.experimental_get_tracing_count(),
        "difference": float(max(differences) / expected.max()),
    }


def threads(way):
    """1,000 predictions by four threads on one model."""
    from keras_resnext.classifier import Classifier
    from keras_resnext.inference import inference_function

    model = make_model(side=16)
    images = 127 + 40 * noise(8, 16, 16, 3)
    if way == "classifier":
        classifier = Classifier(model)
        pictures = [*images.clip(0, 255).astype("uint8")]

        def predict(count):
            found = classifier.predict(pictures[:count])
            return np.stack([p.probabilities for p in found])

    else:
        infer = model
        if way == "inference_function":
            infer = inference_function(model)

        def predict(count):
            return np.asarray(infer(images[:count]))

    expected = [predict(count) for count in range(1, 9)]
    together = threading.Barrier(_THREADS)
    differing = []

    def live(first):
        together.wait()
        for number in range(first, first + 10):
            found = predict(number % 8 + 1)
            if not np.array_equal(found, expected[number % 8]):
                differing.append(number)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        memory = watch(25, lambda _: [*pool.map(live, range(_THREADS))])
    return {
        "memory": memory,
        "weights": megabytes(model),
        "same": not differing,
    }


def training(recipe, workdir):
    """A run of many epochs of three steps."""
    from keras_resnext.training import Recipe
    from keras_resnext.training import train

    seen = []

    def on_epoch(entry):
        seen.append(
            (
                resident(),
                len(os.listdir("/proc/self/fd")),
                len(os.listdir("/proc/self/task")),
                time.process_time(),
            )
        )

    run = train(Recipe(**recipe), workdir, on_epoch=on_epoch)
    memory, files, tasks, seconds = (list(x) for x in zip(*seen, strict=True))
    return {
        "memory": memory,
        "weights": megabytes(run.load_model()),
        "files": files,
        "threads": tasks,
        "seconds": np.diff(seconds).tolist(),
    }


def served(folder, requests):
    """Requests to a SavedModel from four threads, in TensorFlow alone.

    Args:
        folder: Of the SavedModel.
        requests: File with pickled lists of picture files.
    """
    import tensorflow as tf

    serve = tf.saved_model.load(folder).signatures["image_bytes"]
    requests = pickle.loads(pathlib.Path(requests).read_bytes())

    def answer(files):
        outputs = serve(image_bytes=tf.constant(files))
        return {name: value.numpy() for name, value in outputs.items()}

    files = sorted({file for request in requests for file in request})
    alone = {file: answer([file]) for file in files}
    wrong = []

    def ask(number):
        files = requests[number]
        answers = answer(files)
        for name, values in answers.items():
            expected = np.concatenate([alone[file][name] for file in files])
            same = np.array_equal(values, expected)
            if values.dtype == np.float32 and not same:
                # Of another batch, sums may be taken in another order.
                same = np.allclose(values, expected, rtol=1e-4, atol=1e-7)
            if not same:
                wrong.append((number, name))

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        each = len(requests) // _SAMPLES
        memory = watch(
            _SAMPLES,
            lambda part: [
                *pool.map(ask, range(part * each, (part + 1) * each))
            ],
        )
    return {
        "memory": memory,
        "wrong": wrong,
        "seconds": time.perf_counter() - started,
        "keras": "keras_resnext" in sys.modules,
        "valid": [bool(alone[file]["valid"][0]) for file in files],
        "labels": [alone[file]["top_labels"][0, 0].decode() for file in files],
        "scores": [alone[file]["probabilities"][0].tolist() for file in files],
    }


if __name__ == "__main__":
    job, *arguments = json.loads(sys.argv[1])
    jobs = (predictions, models, batch_sizes, threads, training, served)
    by_name = {job.__name__: job for job in jobs}
    print(json.dumps(by_name[job](*arguments)))
