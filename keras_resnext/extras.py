"""Error messages: missing extras, near misses, the first line, full disks."""

import difflib
import importlib.util
from collections.abc import Iterable


def require(module: str, *, extra: str, purpose: str) -> None:
    """Check that an optional module is installed.

    Args:
        module: Name of the module.
        extra: The extra of this package that installs it.
        purpose: What needs it, as the start of a sentence.

    Raises:
        ModuleNotFoundError: if the module is not installed.

    Example:

    >>> require("onnxruntime", extra="export", purpose="The ONNX check")
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{purpose} needs the module {module}; install it with "
            f"pip install 'keras_resnext[{extra}]'."
        )


def require_tensorflow(purpose: str) -> None:
    """Check that Keras runs on TensorFlow.

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


def suggest(name: object, choices: Iterable[str]) -> str:
    """The end of an error message about an unknown name.

    Args:
        name: What the user wrote, of any type.
        choices: The known names.

    Returns:
        `" Did you mean resnext50?"`, or `""` if no known name is close.

    Example:

    >>> suggest("resnext5", ["resnext50", "resnet50", "vgg16"])
    ' Did you mean resnext50?'
    """
    known = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f" Did you mean {known[near[0]]}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none.

    Args:
        error: The exception.

    Returns:
        One line, for another error's message. Characters that cannot be
        printed, which may come from a file, are replaced by their escapes.

    Example:

    >>> first_line(ValueError("Bad shape.\\nMore details."))
    'Bad shape.'
    """
    return printable((str(error).strip() or repr(error)).splitlines()[0])


def printable(text: str) -> str:
    """A text in which what cannot be printed is escaped.

    Args:
        text: What may have come from a file.

    Returns:
        One line.

    Example:

    >>> printable("red \\x1b[31m")
    'red \\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cannot_write(path: object, error: Exception) -> OSError:
    """An error of TensorFlow's file system in words.

    Before the reason, it has the name of an operation and a temporary path.

    Args:
        path: What was to be written.
        error: The `tf.errors.OpError`.

    Returns:
        An `OSError` to raise.

    Example:

    >>> cannot_write("runs/x/checkpoints/step-3", error)
    OSError('runs/x/checkpoints/step-3 cannot be written: No space left on
    device.')
    """
    reason = first_line(error).rpartition("; ")[2].partition(" [Op:")[0]
    return OSError(f"{path} cannot be written: {reason}.")
