"""Writes what all subjects start from: weights, images, our exports.

    python -m benchmarks.prepare JOB

in a process of its own, so that the one that times others stays small.
"""

import pathlib
import sys

import numpy as np

from benchmarks.job import Job

IMAGES = 8


def prepare(job):
    """Fill `job.folder` for `job`'s network and image size."""
    import keras

    import keras_resnext
    from keras_resnext import export
    from keras_resnext.weights.convert import to_torch

    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        job.stages,
        job.cardinality,
        job.base_width,
        input_shape=(job.size, job.size, 3),
        classifier_activation=None,
    )
    _randomize_norms(model)
    folder = pathlib.Path(job.folder)
    tensors = to_torch({x.name: x.get_weights() for x in model.layers})
    np.savez(folder / "weights.npz", **tensors)
    images = keras_resnext.preprocess_input(_photographs(job.size))
    np.save(folder / "images.npy", images)
    for convert, name in (
        (export.to_onnx, "model.onnx"),
        (export.to_tflite, "model.tflite"),
    ):
        convert(model, folder / name, preprocessing=None, images=images)


def _randomize_norms(model):
    """Statistics and scales that a mix-up would show in the logits.

    The last scale of a block is small, as in trained networks: otherwise each
    block doubles what the one before it got wrong by rounding, and gradients
    are good to one digit only.
    """
    import keras

    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            last = layer.name.endswith("_3_bn")
            scale, shift, mean, variance = (
                rng.uniform(low, high, layer.gamma.shape)
                for low, high in (
                    (0.1, 0.3) if last else (0.5, 1.5),
                    (-0.5, 0.5),
                    (-0.5, 0.5),
                    (0.5, 1.5),
                )
            )
            layer.set_weights([scale, shift, mean, variance])


def _photographs(size):
    """Crops of scikit-learn's two photographs, uint8."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    crops = []
    for index in range(IMAGES):
        photo = Image.fromarray(load_sample_images().images[index % 2])
        side = rng.integers(224, min(photo.size) + 1)
        left, top = (rng.integers(0, x - side + 1) for x in photo.size)
        box = (left, top, left + side, top + side)
        crops.append(np.asarray(photo.resize((size, size), box=box)))
    return np.stack(crops)


if __name__ == "__main__":
    prepare(Job.from_json(sys.argv[1]))
