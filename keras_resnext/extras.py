"""Optional dependencies: a clear line when one is missing."""

import importlib.util


def require(module: str, *, extra: str, purpose: str) -> None:
    """Refuse to go on without an optional module, naming what installs it.

    Args:
        module: Name of the module.
        extra: The extra of this package that brings it.
        purpose: What needs it, as the start of a sentence.

    Raises:
        ModuleNotFoundError: if the module cannot be found.

    Example:

    >>> require("onnxruntime", extra="export", purpose="The ONNX check")
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{purpose} needs the module {module}; install it with "
            f"pip install 'keras_resnext[{extra}]'."
        )


def require_tensorflow(purpose: str) -> None:
    """Refuse to go on with Keras on another backend.

    Args:
        purpose: What needs TensorFlow, as the start of a sentence.

    Raises:
        ImportError: if Keras runs on another backend.

    Example:

    >>> require_tensorflow("Training")
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            f"{purpose} needs Keras on TensorFlow (KERAS_BACKEND=tensorflow); "
            f"it runs on {keras.backend.backend()}."
        )
