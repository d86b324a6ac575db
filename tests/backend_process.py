"""What one backend computes, in a process of its own: `run` a part of it.

Keras reads KERAS_BACKEND when it is imported, and only a process shows what
else was imported. Frameworks are therefore imported inside the functions.
"""

import contextlib
import importlib
import io
import json
import os
import pathlib
import subprocess
import sys
import traceback

import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")
SIZE = 16
LABELS = [f"class {i}" for i in range(10)]

# The main network, for 16x16 pixels, and what differs in others.
MAIN = {
    "depths": (2, 1),
    "cardinality": 4,
    "base_width": 4,
    "stem": "cifar",
    "filters": 64,
    "classes": 10,
    "input_shape": (SIZE, SIZE, 3),
}
NETWORKS = {
    "main": MAIN,
    "imagenet_stem": {
        **MAIN,
        "depths": (1, 1, 1),
        "stem": "imagenet",
        "output_stride": 8,
        "input_shape": (32, 32, 3),
    },
    "no_shortcuts": {**MAIN, "residual": False},
    "no_top": {**MAIN, "include_top": False, "pooling": "max"},
    "one_block": {**MAIN, "depths": (1,)},
}
# Arguments of `GroupedConv2D`, beside four groups of 3x3.
CONVOLUTIONS = (
    {"padding": "same", "strides": 2},
    {"padding": "valid", "dilation_rate": 2, "activation": "relu"},
)
BATCH = 8
STEPS = 3


def run(backend, part, folder):
    """Run one of the functions below on a backend; `folder` is its argument."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.backend_process", part, str(folder)],
        cwd=pathlib.Path(__file__).parents[1],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            # JAX compiles each shape of random numbers, these in half the
            # time. They are replaced by the weights of files.
            "JAX_THREEFRY_PARTITIONABLE": "0",
        },
        capture_output=True,
        text=True,
    )
    assert not done.returncode, f"{backend}: {done.stderr[-3000:]}"
    return done.stdout


def compute(folder):
    """What every backend can do; numbers go to `<backend>.npz`."""
    import keras_resnext  # first, so that TensorFlow uses oneDNN

    # isort: split
    import keras

    loaded = set(sys.modules)
    backend = keras.backend.backend()
    images = np.load(folder / "images.npy")
    numbers, models = {}, {}
    for name, options in NETWORKS.items():
        models[name] = model = keras_resnext.ResNeXt(
            **options, weights=folder / f"{name}.weights.h5"
        )
        side = model.input_shape[1] // SIZE
        larger = images.repeat(side, axis=1).repeat(side, axis=2)
        numbers[f"networks/{name}"] = call(model, larger)
    main = models["main"]
    for ending in ("safetensors", "keras"):
        model = keras_resnext.ResNeXt(**MAIN, weights=folder / f"main.{ending}")
        numbers[f"weights/{ending}"] = call(model, images)
    pyramid = keras_resnext.feature_pyramid(main)
    maps = pyramid(images, training=False)
    for level, values in zip(pyramid.pyramid_outputs, maps, strict=True):
        numbers[f"pyramid/{level}"] = keras.ops.convert_to_numpy(values)
    numbers |= convolutions()
    numbers |= channels_first(folder, images)
    numbers |= published(folder)
    models["resnext50"] = keras_resnext.ResNeXt50(
        weights=folder / "resnext50.safetensors", classifier_activation=None
    )
    numbers |= photographs(models["resnext50"], folder)
    numbers |= mixed_bfloat16(folder, images)
    model = compiled(folder)
    numbers["losses/float32"] = fit(model, *batches(folder, images))
    numbers |= {f"trained/{w.path}": w.numpy() for w in model.weights}
    numbers["scores/trained"] = call(model, images)
    written = folder / "written" / backend
    model.save_weights(written.with_suffix(".weights.h5"))
    keras_resnext.export_weights(model, written.with_suffix(".safetensors"))
    check_imports(loaded)

    # Keras imports TensorFlow, if there is one, to write any layer's config.
    if backend != "tensorflow":
        sys.modules["tensorflow"] = None
    transform = keras_resnext.EvalTransform.from_crop_pct(SIZE)
    classifier = keras_resnext.Classifier(model, LABELS, transform)
    classifier.save(written.with_suffix(".keras"))
    for form in ("concatenated", "branches"):
        models[form] = keras_resnext.convert_form(main, form)
        back = keras_resnext.convert_form(models[form], "grouped")
        numbers[f"forms/{form}"] = call(models[form], images)
        numbers[f"forms/{form} and back"] = call(back, images)
    folded = keras_resnext.fold_batch_norm(main)
    numbers["folding/main"] = call(folded, images)
    plain = keras_resnext.to_stock_layers(main)
    numbers["stock/main"] = call(plain, images)
    for name, model in models.items():
        numbers[f"complexity/{name}"] = cost(model)
    # torch reads its own files, whatever Keras runs on.
    if (folder / "main.pth").exists():
        model = keras_resnext.ResNeXt(**MAIN, weights=folder / "main.pth")
        numbers["weights/pth"] = call(model, images)
    np.savez(folder / f"{backend}.npz", **numbers)


def check_imports(before):
    """No other framework came in, but for those that Keras itself imports."""
    import keras

    others = {*BACKENDS} - {keras.backend.backend()}
    needless = others & sys.modules.keys() - before
    assert not needless, needless


def call(model, images):
    """Outputs in inference, as an array."""
    import keras

    return keras.ops.convert_to_numpy(model(images, training=False))


def cost(model):
    """Parameters, multiply-adds and activations of all layers."""
    import keras_resnext

    counted = keras_resnext.count_complexity(model)
    return [
        (x.params, x.multiply_adds, x.activations)
        for x in (counted, *counted.by_layer.values())
    ]


def published(folder):
    """The package's own weights, on small cut-outs of photographs."""
    import keras_resnext

    classifier = keras_resnext.Classifier.load(
        "resnext29_8x4d_f64", "fashion_mnist"
    )
    predictions = classifier.predict(np.load(folder / "cutouts.npy"))
    return {
        "published/probabilities": np.stack(
            [x.probabilities for x in predictions]
        ),
        "published labels/fashion_mnist": [x.label for x in predictions],
    }


def photographs(model, folder):
    """Logits of two photographs at 224 pixels."""
    import keras_resnext

    transform = keras_resnext.EvalTransform.from_crop_pct(224)
    images = [transform(x) for x in np.load(folder / "photographs.npy")]
    return {"resnext50/logits": call(model, np.stack(images))}


def mixed_bfloat16(folder, images):
    """Scores, and the loss of a step."""
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = compiled(folder, "one_block")
    keras.config.set_dtype_policy("float32")
    return {
        "bfloat16/scores": call(model, images),
        "bfloat16/loss": fit(model, batches(folder, images)[0]),
    }


def convolutions():
    """`GroupedConv2D`, and Keras' own layer but on TensorFlow."""
    import keras

    from keras_resnext.layers import GroupedConv2D

    kinds = {"ours": GroupedConv2D}
    if keras.backend.backend() != "tensorflow":
        kinds["keras"] = keras.layers.Conv2D
    rng = np.random.default_rng(0)
    # Not as many filters as columns: there Keras adds biases along the wrong
    # axis, on TensorFlow with channels first.
    inputs = rng.normal(size=(2, SIZE, SIZE, 8)).astype("float32")
    kernel = rng.normal(size=(3, 3, 2, 20)).astype("float32")
    bias = rng.normal(size=20).astype("float32")
    numbers = {}
    for data_format in ("channels_last", "channels_first"):
        first = data_format == "channels_first"
        x = inputs.transpose(0, 3, 1, 2) if first else inputs
        for number, options in enumerate(CONVOLUTIONS):
            for name, kind in kinds.items():
                layer = kind(
                    20, 3, groups=4, data_format=data_format, **options
                )
                layer.build(x.shape)
                layer.set_weights([kernel, bias])
                y = keras.ops.convert_to_numpy(layer(x))
                y = y.transpose(0, 2, 3, 1) if first else y
                numbers[f"convolutions {name}/{data_format} {number}"] = y
    return numbers


def channels_first(folder, images):
    """The main network with channels first, where there are kernels for it."""
    import keras

    import keras_resnext

    if keras.backend.backend() == "tensorflow":
        return {}
    keras.config.set_image_data_format("channels_first")
    shape = {"input_shape": (3, SIZE, SIZE)}
    model = keras_resnext.ResNeXt(
        **MAIN | shape, weights=folder / "main.weights.h5"
    )
    outputs = call(model, images.transpose(0, 3, 1, 2))
    keras.config.set_image_data_format("channels_last")
    return {"channels first/main": outputs}


def batches(folder, images):
    """Images and labels of three batches."""
    labels = np.load(folder / "labels.npy")
    steps = range(0, STEPS * BATCH, BATCH)
    return [(images[i : i + BATCH], labels[i : i + BATCH]) for i in steps]


def fit(model, *batches):
    """The loss of each batch, before the step that it makes."""
    losses = []
    for images, labels in batches:
        history = model.fit(images, labels, batch_size=BATCH, verbose=0)
        losses += history.history["loss"]
    return losses


def compiled(folder, name="main"):
    """A network, ready to train."""
    import keras

    import keras_resnext

    model = keras_resnext.ResNeXt(
        **NETWORKS[name], weights=folder / f"{name}.weights.h5"
    )
    model.compile(
        # At ten times the rate, one ReLU on the other side of zero put the
        # third loss 2e-4 apart (seen).
        keras.optimizers.SGD(0.002, momentum=0.9),
        "sparse_categorical_crossentropy",
    )
    return model


def open_others(folder):
    """Files of the other backends; numbers go to `<backend>_opened.npz`.

    Then, how each entry ends that is TensorFlow's, to `<backend>_ends.json`.
    """
    import keras_resnext

    # isort: split
    import keras

    loaded = set(sys.modules)
    backend = keras.backend.backend()
    images = np.load(folder / "images.npy")
    numbers = {}
    for path in sorted((folder / "written").glob("*.keras")):
        writer = path.stem
        if writer == backend:
            continue
        classifier = keras_resnext.Classifier.load(path)
        assert classifier.labels == LABELS
        assert classifier.transform.image_size == SIZE
        numbers[f"{writer}/keras"] = call(classifier.model, images)
        for ending in (".weights.h5", ".safetensors"):
            model = keras_resnext.ResNeXt(
                **MAIN, weights=path.with_suffix(ending)
            )
            numbers[f"{writer}/{ending[1:]}"] = call(model, images)
    np.savez(folder / f"{backend}_opened.npz", **numbers)
    check_imports(loaded)
    if backend == "tensorflow":
        return

    entries = json.loads((folder / "entries.json").read_text())
    ends = {}
    for name in entries["names"]:
        module, _, attribute = name.rpartition(".")
        ends[name] = end_of(
            lambda m=module, a=attribute: getattr(importlib.import_module(m), a)
        )
    ends["inference_function"] = end_of(
        lambda: keras_resnext.inference_function(classifier.model)
    )
    ends["quantization_aware"] = end_of(
        lambda: keras_resnext.quantization_aware(classifier.model)
    )
    check_imports(loaded)
    for command in entries["commands"]:
        ends[command] = command_line(*command.split())
    (folder / f"{backend}_ends.json").write_text(json.dumps(ends))


def end_of(action):
    """The type and text of the error that an action ends in."""
    try:
        action()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def command_line(*arguments):
    """Run the command in this process: status, output and errors."""
    from keras_resnext import cli

    sys.argv = ["keras-resnext", *arguments]
    status = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            status = stopped.code or 0
        except Exception:
            traceback.print_exc()
            status = 1
    return status, output.getvalue(), errors.getvalue()


if __name__ == "__main__":
    globals()[sys.argv[1]](pathlib.Path(sys.argv[2]))
