"""Quantisation-aware training: a network that rounds as its int8 file will."""

import keras
import numpy as np

from keras_resnext.extras import require_tensorflow
from keras_resnext.fake_quantization import BITS
from keras_resnext.fake_quantization import FakeQuantization
from keras_resnext.fake_quantization import FixedQuantization
from keras_resnext.fake_quantization import Observer
from keras_resnext.fake_quantization import QuantizedConv2D
from keras_resnext.fake_quantization import QuantizedDense
from keras_resnext.inspection import edges
from keras_resnext.inspection import graph_config
from keras_resnext.inspection import is_graph
from keras_resnext.inspection import layers_of
from keras_resnext.layers import GroupedConv2D
from keras_resnext.layers import PointwiseConv2D
from keras_resnext.rewrite.folding import plan_folding
from keras_resnext.rewrite.walker import Rules
from keras_resnext.rewrite.walker import rewrite_model

_CONVOLUTIONS = (keras.layers.Conv2D, GroupedConv2D, PointwiseConv2D)
# What int8 kernels compute on the steps of their input.
_EXACT = (
    keras.layers.ZeroPadding2D,
    keras.layers.MaxPooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
)
_ROUNDED = (
    keras.layers.Add,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
)
_BATCH = 32


def quantization_aware(
    model: keras.Model,
    *,
    per_channel: bool = True,
    weight_bits: int = 8,
    activation_bits: int = 8,
    observers: Observer | None = None,
    calibration: np.ndarray | None = None,
) -> keras.Model:
    """The same network, rounding where its int8 file will.

    Weights are rounded by output channel and symmetrically, activations by
    tensor and asymmetrically: the input, the outputs of convolutions with
    their batch norm and ReLU, of additions, and of the pooling. Batch norms
    are part of their convolutions. It trains with `fit` and is saved like any
    model; `keras_resnext.export` then takes the ranges that it learned.

    Biases of convolutions are rounded once batch-norm statistics are frozen;
    those of dense layers, and the classifier's outputs, are not.

    Args:
        model: A functional or sequential `keras.Model` in float32, in the
            grouped form.
        per_channel: Whether each filter's weights have a step of their own;
            without, only ONNX files can be written. Defaults to `True`.
        weight_bits: 2 to 8. Fewer than 8 are for experiments: no runtime
            takes them. Defaults to 8.
        activation_bits: 2 to 8. Defaults to 8.
        observers: How ranges are learned, an `Observer`. Defaults to
            `Observer()`.
        calibration: Images as the model takes them, `(images, height, width,
            channels)`, whose activations set the ranges to begin with.
            Defaults to `None`: the first training batch does.

    Returns:
        A functional `keras.Model` of the same name, inputs, outputs and
        weights.

    Raises:
        ImportError: if Keras runs on another backend than TensorFlow.
        ValueError: if an argument is not as described, a layer is used more
            than once, or has no int8 kernel that is known here; the message
            names the layer.

    Example:

    >>> model = keras_resnext.quantization_aware(
    ...     keras_resnext.ResNeXt50(weights=None)
    ... )
    >>> model.compile("sgd", "sparse_categorical_crossentropy")

    Reference:
        Jacob et al., arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342.
    """
    require_tensorflow("`quantization_aware`")
    for name, bits in (
        ("weight_bits", weight_bits),
        ("activation_bits", activation_bits),
    ):
        if type(bits) is not int or bits not in BITS:
            raise ValueError(f"`{name}` must be from 2 to 8; got {bits!r}.")
    if not (observers is None or isinstance(observers, Observer)):
        raise ValueError(
            f"`observers` must be an Observer or None; got {observers!r}."
        )
    if calibration is not None:
        calibration = np.asarray(calibration, "float32")
        if calibration.ndim != 4 or not len(calibration):
            raise ValueError(
                "`calibration` must be images (images, height, width, "
                f"channels), one at least; got shape {calibration.shape}."
            )
        if len(model.inputs) > 1:
            raise ValueError(
                "`calibration` must be None for a model of several inputs; "
                f"{model.name} has {len(model.inputs)}."
            )
    observers = observers or Observer()
    if calibration is None and not observers.freeze_ranges_after:
        raise ValueError(
            "`calibration` must be given if ranges are frozen from the start; "
            "got None with `freeze_ranges_after` 0."
        )
    weights = {"bits": weight_bits, "per_channel": per_channel}
    new = rewrite_model(
        model,
        lambda graph: _rules(graph, weights, activation_bits, observers),
    )
    if calibration is not None:
        _calibrate(new, calibration)
    return new


def for_export(model: keras.Model, *, rounded: bool = True) -> keras.Model:
    """A network of `quantization_aware` as converters to int8 expect it.

    Batch norms are folded and weights are not rounded, which converters do
    with the same steps; the ranges of activations are constants.

    Args:
        model: A model of `quantization_aware`.
        rounded: Whether activations are rounded; without, it is the network
            in floating point. Defaults to `True`.

    Returns:
        A functional `keras.Model` of the same name, inputs and outputs.

    Raises:
        ValueError: if it has learned no ranges yet.

    Example:

    >>> for_export(model).get_layer("conv1_relu_fake_quant").limits
    (0.0, 5.94)
    """

    def replace(layer):
        config = layer.get_config()
        if isinstance(layer, FakeQuantization):
            limits = layer.limits if rounded else None
            return FixedQuantization(limits, layer.bits, name=layer.name)
        if isinstance(layer, (QuantizedConv2D, QuantizedDense)):
            for name in ("batch_norm", "bits", "per_channel", "observer"):
                config.pop(name, None)
        if isinstance(layer, QuantizedConv2D):
            config["use_bias"] = layer.folded()[1] is not None
            return GroupedConv2D.from_config(config)
        if isinstance(layer, QuantizedDense):
            return keras.layers.Dense.from_config(config)

    def arrays(layer):
        if isinstance(layer, FakeQuantization):
            return []
        if isinstance(layer, QuantizedConv2D):
            return [
                keras.ops.convert_to_numpy(array)
                for array in layer.folded()
                if array is not None
            ]
        return layer.get_weights()

    def call(layer, *args, **kwargs):
        if isinstance(layer, GroupedConv2D):
            return layer(args[0])  # without the step, which converters know
        return layer(*args, **kwargs)

    return rewrite_model(
        model, lambda graph: Rules(replace, call, weights=arrays)
    )


def _rules(model, weights, activation_bits, observers):
    """How one graph is quantised."""
    _check(model)
    layers = {layer.name: layer for layer in model.layers}
    sources, readers = edges(model)
    inputs = [name for name, before in sources.items() if not before]
    norms = {}
    for norm, convs in plan_folding(model).items():
        if len(convs) > 1:
            raise ValueError(
                "`model` must be in the grouped form, see `convert_form`; "
                f"{norm.name} follows a sum of {len(convs)} convolutions."
            )
        norms[convs[0].name] = norm
    removed = {norm.name for norm in norms.values()}
    on_grid = {}  # name of a layer to its rounded output and the step

    def replace(layer):
        if layer.name in removed:
            return keras.layers.Identity(name=layer.name)
        if type(layer) in _CONVOLUTIONS:
            return QuantizedConv2D.from_config(
                layer.get_config()
                | weights
                | {
                    "batch_norm": _norm_config(norms.get(layer.name)),
                    "observer": observers,
                }
            )
        if type(layer) is keras.layers.Dense:
            return QuantizedDense.from_config(layer.get_config() | weights)

    def rounded(name, tensor):
        if name not in on_grid:
            # Keras numbers inputs, anew in each copy of a network.
            prefix = "input" if [name] == inputs else name
            on_grid[name] = FakeQuantization(
                activation_bits, observers, name=f"{prefix}_fake_quant"
            )(tensor)
        return on_grid[name]

    def call(layer, *args, **kwargs):
        name = layer.name
        old = layers[name]
        if name in removed:
            return finished(name, args[0])
        if is_graph(old) or not _is_quantized(old, sources[name], on_grid):
            return layer(*args, **kwargs)
        if not _is_relu(old):
            tensors = keras.tree.flatten(args[0])
            pairs = [
                rounded(source, tensor)
                for source, tensor in zip(sources[name], tensors, strict=True)
            ]
            tensors = [tensor for tensor, _ in pairs]
            args = (keras.tree.pack_sequence_as(args[0], tensors), *args[1:])
        if type(old) in _CONVOLUTIONS:
            kwargs = kwargs | {"step": pairs[0][1]}
        outputs = layer(*args, **kwargs)
        if isinstance(old, _EXACT):
            on_grid[name] = outputs, pairs[0][1]
        elif name not in norms and not isinstance(old, keras.layers.Dense):
            outputs = finished(name, outputs)
        return outputs

    def finished(name, outputs):
        """An output, rounded unless a ReLU comes before the rounding."""
        following = [layers.get(reader) for reader in readers[name]]
        if len(following) == 1 and _is_relu(following[0]):
            return outputs
        return rounded(name, outputs)[0]

    def arrays(layer):
        norm = norms.get(layer.name)
        if norm is None:
            return layer.get_weights()
        steps = np.zeros((), "int32")
        return [*layer.get_weights(), *norm.get_weights(), steps]

    return Rules(replace, call, arrays)


def _norm_config(norm):
    """What a quantised convolution keeps of a batch norm's config."""
    if norm is None:
        return None
    names = ("epsilon", "momentum", "scale", "center", "trainable")
    return {name: getattr(norm, name) for name in names}


def _check(model):
    """Refuse other layouts and precisions, and what is used several times."""
    for layer in model.layers:
        if getattr(layer, "data_format", None) == "channels_first":
            raise ValueError(
                "`model` must have channels last, as int8 kernels have; "
                f"{layer.name} has channels_first."
            )
        if isinstance(layer, keras.layers.BatchNormalization):
            _check_norm(layer)
        if layer.compute_dtype != "float32":
            raise ValueError(
                "`model` must compute in float32, because the steps of eight "
                f"bits are too fine for others; {layer.name} computes in "
                f"{layer.compute_dtype}."
            )
    for entry in graph_config(model)["layers"]:
        calls = len(entry["inbound_nodes"])
        if calls > 1:
            raise ValueError(
                f"`model` must use each layer once; {entry['name']} is used "
                f"{calls} times."
            )


def _check_norm(norm):
    """Refuse settings of a batch norm that a quantised layer would lose."""
    for name in (
        *("synchronized", "beta_regularizer", "gamma_regularizer"),
        *("beta_constraint", "gamma_constraint"),
    ):
        if getattr(norm, name, None):
            raise ValueError(
                f"`model` must have batch norms without {name}; {norm.name} "
                f"has {getattr(norm, name)!r}."
            )


def _is_quantized(layer, sources, on_grid):
    """Whether a layer is computed in int8.

    Raises:
        ValueError: if it is not known how.
    """
    if type(layer) in (*_CONVOLUTIONS, keras.layers.Dense):
        return True
    if isinstance(layer, (*_EXACT, *_ROUNDED)) or _is_relu(layer):
        return True
    unknown = layer.weights or any(source in on_grid for source in sources)
    if unknown and not isinstance(layer, keras.layers.Normalization):
        raise ValueError(
            "`model` must have layers whose int8 kernels are known; "
            f"{layer.name} is a {type(layer).__name__}."
        )
    return False


def _is_relu(layer):
    """Whether int8 kernels do it while they write what comes before."""
    if isinstance(layer, keras.layers.ReLU):
        return not (layer.negative_slope or layer.threshold)
    return (
        isinstance(layer, keras.layers.Activation)
        and layer.activation is keras.activations.relu
    )


def _calibrate(model, images):
    """Set the ranges to those of some images' activations."""
    observers = [
        layer
        for layer in layers_of(model)
        if isinstance(layer, FakeQuantization)
    ]
    for layer in observers:
        layer.observing = True
    try:
        for begin in range(0, len(images), _BATCH):
            model(images[begin : begin + _BATCH], training=False)
    finally:
        for layer in observers:
            layer.observing = False
