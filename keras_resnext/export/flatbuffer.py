"""Parsing and packing of TFLite files."""

import functools
import os
from pathlib import Path

import flatbuffers
import numpy as np


class _AlignedBuilder(flatbuffers.Builder):
    """Aligns weights to 16 bytes, as TFLite's own writer does."""

    def CreateNumpyVector(self, x):
        self.Prep(16, x.nbytes)
        return super().CreateNumpyVector(x)


def parse(content: bytes):
    """A file as a `ModelT`; its weights are views of `content`."""
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    for buffer in parsed.buffers:
        if buffer.offset > 1:  # behind the FlatBuffer
            buffer.data = np.frombuffer(
                content, "uint8", buffer.size, buffer.offset
            )
            buffer.offset = buffer.size = 0
    return parsed


def pack(parsed, size: int) -> bytes:
    """The content of a file, of about `size` bytes, from a `ModelT`."""
    for code in parsed.operatorCodes:
        # The only field that older readers know, OpenVINO among them. It has
        # eight bits, and 127 stands for what does not fit.
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    builder = _AlignedBuilder(size)
    builder.Finish(parsed.Pack(builder), b"TFL3")
    return builder.Output()


@functools.cache
def _names():
    """Builtin operators' names by number."""
    from ai_edge_litert import schema_py_generated as schema

    return {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if not name.startswith("_")
    }


def operator_name(parsed, operator) -> str:
    """Name of an operator.

    Args:
        parsed: The `ModelT` it belongs to.
        operator: An `OperatorT`.

    Returns:
        A name such as `"CONV_2D"`; a custom operator's own name.
    """
    code = parsed.operatorCodes[operator.opcodeIndex]
    if code.customCode:
        return code.customCode.decode()
    # Codes above 127 do not fit the old field, which is 127 then.
    return _names()[max(code.builtinCode, code.deprecatedBuiltinCode)]


def operators(path: str | os.PathLike[str]) -> list[str]:
    """Names of all operators of a TFLite file, in order.

    Args:
        path: The file.

    Returns:
        A list of names, see `operator_name`.

    Example:

    >>> operators("resnext50.tflite").count("CONV_2D")
    53
    """
    parsed = parse(Path(path).read_bytes())
    return [
        operator_name(parsed, operator)
        for graph in parsed.subgraphs
        for operator in graph.operators
    ]
