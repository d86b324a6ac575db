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
