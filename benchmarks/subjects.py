"""The same network from the same weights in each library.

A subject is a function of a `Job` that returns what to time: a function
without arguments that computes logits (inference) or does a training step and
returns its loss. Images, and copies of them in the layout that a library asks
for, are made before. Libraries are imported inside: each process has one.
"""

import dataclasses
import functools
import os
import pathlib
import sys
import types
from collections.abc import Callable

import numpy as np

from benchmarks import loading

LEARNING_RATE = 0.001
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
LABEL_SMOOTHING = 0.1


def images_and_labels(job):
    """Float32 `(batch, size, size, 3)`, normalised, and int `(batch,)`."""
    labels = np.arange(job.batch) * 7 % 1000
    if job.folder:
        images = np.load(pathlib.Path(job.folder, "images.npy"))
        return images[: job.batch], labels
    shape = (job.batch, job.size, job.size, 3)
    return np.random.default_rng(0).normal(size=shape).astype("float32"), labels


def saved_tensors(job):
    """Weights in torchvision's names."""
    with np.load(pathlib.Path(job.folder, "weights.npz")) as file:
        return dict(file)


# --- Keras ----------------------------------------------------------------


def keras_resnext(
    job, form="grouped", fold=False, constant=False, stock=False, fit=False
):
    _start_tensorflow(job)
    import keras

    import keras_resnext as ours

    model = _our_model(job, _activation(job))
    if form != "grouped":
        model = ours.convert_form(model, form)
    if stock:
        model = ours.to_stock_layers(model)
    if fold:
        model = ours.fold_batch_norm(model)
    if job.task == "inference":
        call = ours.inference_function(model) if constant else None
        return _keras_inference(job, model, call)
    if fit:
        return _keras_fit(job, model)
    if stock:
        return _keras_training(job, model, keras.optimizers.SGD)
    from keras_resnext.training.optimizer import SGD

    return _keras_training(job, model, SGD)


def _our_model(job, activation):
    """The grouped network, in the job's precision, with the saved weights."""
    import keras

    import keras_resnext as ours
    from keras_resnext.weights.convert import from_torch

    if job.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = ours.ResNeXt(
        job.stages,
        job.cardinality,
        job.base_width,
        input_shape=(job.size, job.size, 3),
        classifier_activation=activation,
    )
    if job.folder:
        for name, arrays in from_torch(saved_tensors(job)).items():
            model.get_layer(name).set_weights(arrays)
    return model


def zeromodels(job):
    _start_tensorflow(job)
    import keras
    from zeromodels.models.resnext import ResNeXtImageClassify

    from keras_resnext.weights.convert import from_torch

    if job.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = ResNeXtImageClassify(
        depths=job.stages,
        groups=job.cardinality,
        # Channels of all groups in the first stage, as multiples of 64.
        width_factor=job.cardinality * job.base_width // 64,
        image_size=job.size,
        classifier_activation=_activation(job) or "linear",
    )
    weights = from_torch(saved_tensors(job))
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(weights.pop(_our_name(layer.name)))
    assert not weights, sorted(weights)
    if job.task == "inference":
        return _keras_inference(job, model)
    return _keras_training(job, model, keras.optimizers.SGD)


def _our_name(name):
    """`resnet_layer1_0_batchnorm2` -> `conv2_block1_2_bn`."""
    if name == "predictions":
        return name
    if "_layer" not in name:
        return {"conv1": "conv1_conv", "batchnorm1": "conv1_bn"}[name]
    stage, block, *shortcut, kind = name.split("_layer")[1].split("_")
    kind = kind.replace("batchnorm", "bn")
    part = "0" if shortcut else kind[-1]
    return (
        f"conv{int(stage) + 1}_block{int(block) + 1}_{part}_"
        f"{kind.rstrip('123')}"
    )


def _start_tensorflow(job):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(job.threads)


def _activation(job):
    return None if job.task == "inference" else "softmax"


def _keras_inference(job, model, call=None):
    import tensorflow as tf

    images = tf.constant(images_and_labels(job)[0])
    call = call or tf.function(lambda x: model(x, training=False))
    return lambda: call(images).numpy()


def _keras_training(job, model, optimizer):
    import tensorflow as tf

    from keras_resnext.training import Recipe
    from keras_resnext.training.step import make_train_steps

    optimizer = optimizer(
        LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    optimizer.build(model.trainable_variables)
    steps = make_train_steps(
        tf.distribute.get_strategy(),
        model,
        optimizer,
        Recipe(batch_size=job.batch, label_smoothing=LABEL_SMOOTHING),
    )
    images, labels = images_and_labels(job)
    targets = tf.one_hot(labels, model.output_shape[-1])
    batch = (images, targets, tf.ones(job.batch))
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    on = tf.constant(0.0)  # nobody wishes to stop
    return lambda: steps(batches, 1, on).numpy()[0] / job.batch


def _keras_fit(job, model):
    """The step that `model.fit` compiles, called as `fit` calls it."""
    import keras
    import tensorflow as tf

    model.compile(
        keras.optimizers.SGD(
            LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        ),
        keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING),
    )
    images, labels = images_and_labels(job)
    batch = images, tf.one_hot(labels, model.output_shape[-1])
    batches = iter(tf.data.Dataset.from_tensors(batch).repeat())
    model.make_train_function()

    def step():
        model.reset_metrics()  # or losses would be means of all steps
        return float(model.train_function(batches)["loss"])

    return step


def keras_on_jax(job, stock=False):
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    import jax
    import keras

    import keras_resnext as ours

    model = _our_model(job, None)
    if stock:
        model = ours.to_stock_layers(model)
    images, labels = map(jax.numpy.asarray, images_and_labels(job))
    if job.task == "inference":
        model = ours.fold_batch_norm(model)

        @jax.jit
        def forward(trainable, others, images):
            return model.stateless_call(trainable, others, images)[0]

        weights = [
            [v.value for v in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
            )
        ]
        return lambda: np.asarray(forward(*weights, images))

    optimizer = keras.optimizers.SGD(
        LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    optimizer.build(model.trainable_variables)
    targets = jax.nn.one_hot(labels, model.output_shape[-1])

    def loss_of(trainable, others, images):
        logits, others = model.stateless_call(
            trainable, others, images, training=True
        )
        losses = keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=LABEL_SMOOTHING
        )
        return keras.ops.mean(losses), others

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, images):
        trainable, others, slots = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trainable, others, images
        )
        trainable, slots = optimizer.stateless_apply(
            slots, gradients, trainable
        )
        return (trainable, others, slots), loss

    state = tuple(
        [v.value for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    )

    def step():
        nonlocal state
        state, loss = update(state, images)
        return float(loss)

    return step


# --- PyTorch --------------------------------------------------------------


def torch(
    job, layout="contiguous_format", compile=False, library="torchvision"
):
    import torch

    torch.set_num_threads(job.threads)
    layout = getattr(torch, layout)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _torch_network(job, library)
    if job.folder:
        _load_tensors(network, saved_tensors(job))
    network = network.to(device, memory_format=layout)

    images, labels = images_and_labels(job)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2))
    images = images.to(device).contiguous(memory_format=layout)
    autocast = functools.partial(
        torch.autocast, device, torch.bfloat16, job.dtype == "bfloat16"
    )
    forward = torch.compile(network) if compile else network
    if job.task == "inference":
        network.eval()

        def infer():
            with torch.inference_mode(), autocast():
                return forward(images).float().cpu().numpy()

        return infer

    labels = torch.from_numpy(labels).to(device)
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    optimizer = torch.optim.SGD(
        network.parameters(),
        LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )

    def step():
        optimizer.zero_grad()
        with autocast():
            loss = loss_function(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def import_torchvision():
    """torchvision, which timm imports too, beside torch's CPU build."""
    # It has no wheel for that; its Python parts run without this module,
    # which describes compiled operators.
    name = "torchvision._meta_registrations"
    sys.modules[name] = types.ModuleType(name)
    import torchvision

    return torchvision


def _torch_network(job, library):
    import_torchvision()
    if library == "timm":
        from timm.models.resnet import Bottleneck
        from timm.models.resnet import ResNet

        return ResNet(
            Bottleneck,
            job.stages,
            cardinality=job.cardinality,
            base_width=job.base_width,
        )
    from torchvision.models.resnet import Bottleneck
    from torchvision.models.resnet import ResNet

    return ResNet(
        Bottleneck,
        job.stages,
        groups=job.cardinality,
        width_per_group=job.base_width,
    )


def _load_tensors(network, arrays):
    import torch

    tensors = {name: torch.from_numpy(x) for name, x in arrays.items()}
    wrong = network.load_state_dict(tensors, strict=False)
    assert not wrong.unexpected_keys, wrong.unexpected_keys
    # Only batch norm's counters are not in the file.
    missing = [x for x in wrong.missing_keys if "num_batches" not in x]
    assert not missing, missing


# --- Runtimes, on our exports ---------------------------------------------


def onnxruntime(job):
    # ONNX Runtime reads this on import; otherwise it reports to Microsoft.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(
        pathlib.Path(job.folder, "model.onnx"),
        options,
        providers=["CPUExecutionProvider"],
    )
    feed = {session.get_inputs()[0].name: images_and_labels(job)[0]}
    return lambda: session.run(None, feed)[0]


def litert(job):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(
        str(pathlib.Path(job.folder, "model.tflite")), num_threads=job.threads
    )
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]
    result = interpreter.get_output_details()[0]["index"]
    images = images_and_labels(job)[0]

    def infer():
        interpreter.set_tensor(entry, images)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return infer


def openvino(job):
    import openvino

    core = openvino.Core()
    model = core.read_model(pathlib.Path(job.folder, "model.onnx"))
    model.reshape([job.batch, job.size, job.size, 3])
    precision = {"float32": "f32", "bfloat16": "bf16"}[job.dtype]
    request = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": job.threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    ).create_infer_request()
    images = images_and_labels(job)[0]
    return lambda: request.infer([images])[0].copy()


@dataclasses.dataclass(frozen=True)
class Subject:
    """How to prepare a job, and what its process imports before."""

    prepare: Callable
    libraries: tuple[str, ...]


def _ours(libraries=("keras_resnext", "tensorflow", "keras"), **options):
    prepare = functools.partial(keras_resnext, **options)
    return Subject(prepare, libraries)


def _torch(**options):
    return Subject(functools.partial(torch, **options), ("torch",))


SUBJECTS = {
    "keras_resnext folded": _ours(fold=True),
    "keras_resnext constant": _ours(fold=True, constant=True),
    "keras_resnext grouped": _ours(),
    "keras_resnext fit": _ours(fit=True),
    # What TensorFlow does where this package is imported too late to ask for
    # oneDNN.
    "keras_resnext after keras": _ours(
        ("tensorflow", "keras"), fold=True, constant=True
    ),
    "keras_resnext concatenated": _ours(form="concatenated"),
    "keras_resnext branches": _ours(form="branches"),
    "stock Keras": _ours(("tensorflow", "keras"), stock=True),
    "zeromodels": Subject(zeromodels, ("tensorflow", "keras", "zeromodels")),
    "PyTorch": _torch(),
    "PyTorch channels_last": _torch(layout="channels_last"),
    "PyTorch compiled": _torch(layout="channels_last", compile=True),
    "timm compiled": _torch(
        layout="channels_last", compile=True, library="timm"
    ),
    "Keras on JAX": Subject(keras_on_jax, ("jax",)),
    "Keras on JAX, Conv2D": Subject(
        functools.partial(keras_on_jax, stock=True), ("jax",)
    ),
    "ONNX Runtime": Subject(onnxruntime, ("onnxruntime",)),
    "LiteRT": Subject(litert, ("ai_edge_litert.interpreter",)),
    "OpenVINO": Subject(openvino, ("openvino",)),
    "keras_resnext images": Subject(
        loading.our_images, ("keras_resnext", "tensorflow")
    ),
    "torchvision images": Subject(loading.their_images, ("torch",)),
    "keras_resnext loop": Subject(
        loading.our_loop, ("keras_resnext", "tensorflow", "keras")
    ),
}
