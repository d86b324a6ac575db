"""Training networks for small images with Keras on JAX, on one accelerator.

All images are on the device, and an epoch is one compiled call, so that a
network of a quarter of a million parameters keeps a GPU busy. Recipes mean
what they mean in `keras_resnext.training.train`, whose steps the tests compare
with these; the random numbers are others. It needs KERAS_BACKEND=jax.
"""

import concurrent.futures
import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_resnext import count_complexity
from keras_resnext import export_weights
from keras_resnext.rewrite.walker import Rules
from keras_resnext.rewrite.walker import rewrite_model
from keras_resnext.training import Recipe
from keras_resnext.variants import build

# Fields that this loop reads; others must be as in `Recipe()`.
_READ = {
    *("dataset", "val_fraction", "model", "residual", "image_size", "epochs"),
    *("batch_size", "learning_rate", "warmup_epochs", "momentum", "nesterov"),
    *("weight_decay", "label_smoothing", "crop_padding", "flip", "seed"),
    "random_erasing",
}
_EVALUATED_AT_ONCE = 1000  # images
_MEAN_COLOR = (124, 116, 104)  # as in `augment.erase`


@dataclasses.dataclass(frozen=True)
class Images:
    """Grey images and their labels, on the device.

    Args:
        pixels: uint8 `(images, height, width)`.
        labels: Integers `(images,)`.
    """

    pixels: jax.Array
    labels: jax.Array

    @classmethod
    def put(cls, pixels, labels):
        """Copy NumPy arrays to the device.

        Args:
            pixels: uint8 `(images, height, width)`.
            labels: Integers `(images,)`.
        """
        return cls(jnp.asarray(pixels), jnp.asarray(labels, "int32"))


class DenseConv2D(keras.layers.Conv2D):
    """A grouped convolution as one of all channels, with zeros between groups.

    cuDNN is slow for groups of a few channels (`NOTES.md`, "A GPU").
    """

    def convolution_op(self, inputs, kernel):
        """Convolve; the kernel is `(height, width, channels, filters)`."""
        kernel = keras.ops.convert_to_tensor(kernel)
        height, width, channels, filters = kernel.shape
        groups = self.groups
        kernel = kernel.reshape(height, width, channels, groups, -1)
        # (height, width, group of the input, channel, group, filter)
        kernel = jnp.einsum("hwcgf,kg->hwkcgf", kernel, jnp.eye(groups))
        kernel = kernel.reshape(height, width, channels * groups, filters)
        return keras.ops.conv(
            inputs,
            kernel,
            self.strides,
            self.padding,
            self.data_format,
            self.dilation_rate,
        )


class Learner:
    """Trains recipes on the images of a data set, which stay on the device.

    Args:
        train: Training images and labels, `(pixels, labels)`.
        test: Test images and labels.
        workers: Networks to compile at the same time. Defaults to 8.

    Example:

    >>> learner = Learner(*fashion.read("fashion-mnist/"))
    >>> learner(Recipe(dataset="fashion_mnist", image_size=28))["accuracy"]
    """

    backend = "jax"

    def __init__(self, train, test, workers: int = 8):
        self._train, self._test = train, test
        self._pool = concurrent.futures.ThreadPoolExecutor(workers)
        self._compiled, self._splits = {}, {}

    def prepare(self, recipes) -> None:
        """Begin to compile what some recipes need.

        Args:
            recipes: The `Recipe`s that will be trained.
        """
        for recipe in recipes:
            self._program(recipe)

    def __call__(self, recipe: Recipe, weights=None) -> dict:
        """Train a recipe.

        Args:
            recipe: A `Recipe`.
            weights: File to write the trained weights to, see
                `export_weights`. Defaults to `None`, which writes none.

        Returns:
            A dict: which of the evaluated images were `right`, their
            `accuracy` and `loss`, the last epoch's `training_loss`, the
            `curve` of accuracies by epoch, `images_per_second`, `params` and
            `multiply_adds`.

        Raises:
            ValueError: if the recipe has a field that this loop does not read.
        """
        program = self._program(recipe).result()
        train, held_out = self._split(recipe)
        rates = learning_rates(recipe, len(train.labels) // recipe.batch_size)
        state = state_of(build_model(recipe))
        keys = jax.random.split(jax.random.key(recipe.seed), recipe.epochs)
        seconds, curve = [], []
        for key, epoch_rates in zip(keys, rates, strict=True):
            start = time.perf_counter()
            state, loss = program.epoch(state, key, epoch_rates, train)
            loss = float(loss)  # waits
            seconds.append(time.perf_counter() - start)
            right, losses = program.evaluate(state, held_out)
            curve.append(float(np.mean(right)))
        if weights:
            export_weights(program.trained(state), weights)
        return {
            "right": np.asarray(right),
            "accuracy": curve[-1],
            "loss": float(np.mean(losses)),
            "training_loss": loss,
            "curve": curve,
            "images_per_second": rates[0].size
            * recipe.batch_size
            / float(np.median(seconds)),
            "params": program.cost.params,
            "multiply_adds": program.cost.multiply_adds,
        }

    def _split(self, recipe):
        """Images to train and to evaluate on, by the recipe's fraction."""
        if recipe.val_fraction not in self._splits:
            pixels, labels = self._train
            held_out = round(recipe.val_fraction * len(labels))
            kept = len(labels) - held_out
            self._splits[recipe.val_fraction] = (
                Images.put(pixels[:kept], labels[:kept]),
                Images.put(pixels[kept:], labels[kept:])
                if held_out
                else Images.put(*self._test),
            )
        return self._splits[recipe.val_fraction]

    def _program(self, recipe):
        """A future of the compiled network, the same for all seeds."""
        _check(recipe)
        key = dataclasses.replace(recipe, seed=0)
        if key not in self._compiled:
            # Here, not in a thread: Keras names layers in global state.
            program = Program(key, with_dense_convolutions(build_model(key)))
            self._compiled[key] = self._pool.submit(
                program.compile, *self._split(key)
            )
        return self._compiled[key]


def build_model(recipe: Recipe) -> keras.Model:
    """The network of a recipe, with the initial weights of its seed.

    Args:
        recipe: A `Recipe`.

    Returns:
        A `keras.Model` that ends in logits.
    """
    keras.utils.set_random_seed(recipe.seed)
    return build(
        recipe.model,
        residual=recipe.residual,
        classes=10,
        input_shape=(recipe.image_size, recipe.image_size, 3),
        weights=None,
        classifier_activation=None,
    )


def with_dense_convolutions(model: keras.Model) -> keras.Model:
    """The same network and weights with `DenseConv2D`.

    Args:
        model: A functional `keras.Model`.

    Returns:
        A new `keras.Model`.
    """

    def replace(layer):
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1:
            return DenseConv2D.from_config(layer.get_config())

    return rewrite_model(model, lambda graph: Rules(replace))


def state_of(model: keras.Model) -> tuple[list, list, list]:
    """What training changes.

    Args:
        model: A `keras.Model`.

    Returns:
        Arrays: its trainable weights, its other variables, and velocities of 0.
    """
    weights = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    return weights, others, [jnp.zeros_like(w) for w in weights]


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> np.ndarray:
    """The rate of each step: a linear warm-up, then a cosine.

    Args:
        recipe: A `Recipe`.
        steps_per_epoch: Steps in an epoch.

    Returns:
        float32 `(epochs, steps_per_epoch)`.
    """
    warm_up = round(recipe.warmup_epochs * steps_per_epoch)
    total = recipe.epochs * steps_per_epoch
    step = np.arange(total)
    decayed = np.clip((step - warm_up) / max(1, total - warm_up), 0, 1)
    factor = np.where(
        step < warm_up,
        step / max(1, warm_up),
        (1 + np.cos(math.pi * decayed)) / 2,
    )
    rates = recipe.learning_rate * factor
    return rates.reshape(recipe.epochs, -1).astype("float32")


def _check(recipe):
    default = Recipe()
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        expected = getattr(default, field.name)
        if field.name not in _READ and value != expected:
            raise ValueError(
                f"`{field.name}` must be {expected!r} on JAX; got {value!r}."
            )


class Program:
    """A recipe's network with its compiled epoch and evaluation.

    Args:
        recipe: A `Recipe`.
        model: Its network, which ends in logits.
    """

    def __init__(self, recipe, model):
        self.recipe, self.model = recipe, model
        self.cost = count_complexity(model)
        self.mean, self.std = (
            255 * np.float32(x)
            for x in (recipe.eval_transform.mean, recipe.eval_transform.std)
        )
        # As in `training.optimizer`: biases and batch norm do not decay.
        self.decay = [
            0.0 if v.name in ("bias", "beta", "gamma") else recipe.weight_decay
            for v in model.trainable_variables
        ]

    def compile(self, train, held_out):
        """Compile for `Images` of these shapes; returns itself."""
        state = state_of(self.model)
        rates = learning_rates(
            self.recipe, len(train.labels) // self.recipe.batch_size
        )
        self._epoch = (
            jax.jit(self._run_epoch, donate_argnums=0)
            .lower(
                state,
                jax.random.key(0),
                rates[0],
                train.pixels,
                train.labels,
            )
            .compile()
        )
        self._evaluation = (
            jax.jit(self._evaluate)
            .lower(state, held_out.pixels, held_out.labels)
            .compile()
        )
        return self

    def epoch(self, state, key, rates, images):
        """Train for an epoch; the state after it and the mean loss."""
        return self._epoch(state, key, rates, images.pixels, images.labels)

    def evaluate(self, state, images):
        """Which images are classified right, and their losses."""
        return self._evaluation(state, images.pixels, images.labels)

    def trained(self, state):
        """The network with the weights of a state."""
        trained, others, _ = state
        for variables, values in (
            (self.model.trainable_variables, trained),
            (self.model.non_trainable_variables, others),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        return self.model

    def _run_epoch(self, state, key, rates, pixels, labels):
        order_key, key = jax.random.split(key)
        steps, batch = len(rates), self.recipe.batch_size
        order = jax.random.permutation(order_key, len(labels))
        order = order[: steps * batch].reshape(steps, batch)

        def step(state, inputs):
            rate, chosen, key = inputs
            images = self._augment(pixels[chosen], key)
            return self.step(state, rate, images, labels[chosen])

        keys = jax.random.split(key, steps)
        state, losses = jax.lax.scan(step, state, (rates, order, keys))
        return state, losses.mean()

    def step(self, state, rate, images, labels):
        """One step of SGD on pixels `(batch, size, size, 3)`."""
        recipe = self.recipe
        weights, others, velocities = state

        def loss_of(weights):
            logits, changed = self.model.stateless_call(
                weights, others, self._normalize(images), training=True
            )
            targets = jax.nn.one_hot(labels, logits.shape[-1])
            losses = keras.losses.categorical_crossentropy(
                targets,
                logits,
                from_logits=True,
                label_smoothing=recipe.label_smoothing,
            )
            return losses.mean(), changed

        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            weights
        )
        gradients = [
            g + decay * w
            for g, w, decay in zip(gradients, weights, self.decay, strict=True)
        ]
        velocities = [
            recipe.momentum * v + g
            for v, g in zip(velocities, gradients, strict=True)
        ]
        updates = velocities
        if recipe.nesterov:
            updates = [
                g + recipe.momentum * v
                for v, g in zip(velocities, gradients, strict=True)
            ]
        weights = [w - rate * u for w, u in zip(weights, updates, strict=True)]
        return (weights, others, velocities), loss

    def _evaluate(self, state, pixels, labels):
        weights, others, _ = state

        def one_batch(batch):
            images, labels = batch
            logits, _ = self.model.stateless_call(
                weights, others, self._normalize(_rgb(images)), training=False
            )
            scores = jax.nn.log_softmax(logits)
            losses = -jnp.take_along_axis(scores, labels[:, None], 1)[:, 0]
            return scores.argmax(-1) == labels, losses

        # Whole batches; 10,000 and 6,000 images make batches of 1,000.
        size = math.gcd(len(labels), _EVALUATED_AT_ONCE)
        batches = (
            pixels.reshape(-1, size, *pixels.shape[1:]),
            labels.reshape(-1, size),
        )
        right, losses = jax.lax.map(one_batch, batches)
        return right.reshape(-1), losses.reshape(-1)

    def _normalize(self, images):
        return (images - self.mean) / self.std

    def _augment(self, pixels, key):
        """Crops, flips and erased rectangles, as in `training.augment`."""
        recipe = self.recipe
        keys = jax.random.split(key, len(pixels))

        def one(image, key):
            crop_key, flip_key, erase_key = jax.random.split(key, 3)
            if recipe.crop_padding:
                image = _pad_and_crop(image, recipe.crop_padding, crop_key)
            if recipe.flip:
                flipped = jax.random.bernoulli(flip_key)
                image = jnp.where(flipped, image[:, ::-1], image)
            image = _rgb(image)
            if recipe.random_erasing:
                image = _erase(image, recipe.random_erasing, erase_key)
            return image

        return jax.vmap(one)(pixels, keys)


def _rgb(pixels):
    """Grey pixels as float32 with three channels."""
    pixels = pixels.astype("float32")[..., None]
    return jnp.repeat(pixels, 3, axis=-1)


def _pad_and_crop(image, padding, key):
    place = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, padding)
    return jax.lax.dynamic_slice(padded, place, image.shape)


def _erase(image, probability, key):
    attempts = 10
    chance, area_key, ratio_key, place_key = jax.random.split(key, 4)
    height, width, _ = image.shape
    area = jax.random.uniform(area_key, (attempts,), minval=0.02, maxval=0.33)
    ratio = jnp.exp(
        jax.random.uniform(
            ratio_key, (attempts,), minval=math.log(0.3), maxval=math.log(3.3)
        )
    )
    sides = jnp.round(
        jnp.sqrt(
            height * width * area[:, None] * jnp.stack([ratio, 1 / ratio], 1)
        )
    )
    fits = (sides < jnp.asarray([height, width])).all(axis=1)
    rows, columns = sides[fits.argmax()]
    place = jax.random.uniform(place_key, (2,))
    top = jnp.floor(place[0] * (height - rows + 1))
    left = jnp.floor(place[1] * (width - columns + 1))
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    inside &= jax.random.bernoulli(chance, probability) & fits.any()
    return jnp.where(inside[..., None], jnp.float32(_MEAN_COLOR), image)
