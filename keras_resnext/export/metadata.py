"""TFLite metadata: what MediaPipe and other readers must know about a file.

The FlatBuffer is written table by table: MediaPipe's own writer cannot be
imported from its wheels (1.2.2), and no other package has one. The field
numbers are those of tensorflow/lite/schema metadata_schema.fbs, version 1.5.
"""

import flatbuffers
import numpy as np

_IDENTIFIER = b"M001"
# Union members and enumerators.
_RGB = _NORMALIZATION = _FEATURE_PROPERTIES = np.uint8(1)
_IMAGE = _GRAYSCALE = np.uint8(2)
_AXIS_LABELS = np.int8(2)


def image_classifier_metadata(
    *,
    name,
    description,
    shape,
    pixels,
    input_name,
    output_names,
    probabilities,
    has_labels,
) -> bytes:
    """Metadata of a network from an image to classes or features.

    A float input must have normalization options. They are mean 0 and
    deviation 1, because the graph itself normalizes pixels in [0, 255].

    Args:
        name: Name of the model.
        description: Description of the model.
        shape: `(height, width, channels)` of the image.
        pixels: Whether it takes plain pixels. Any other input is left without
            metadata, so that no reader feeds it pixels.
        input_name: Name of the image.
        output_names: Names of the outputs, in alphabetical order, as in the
            file.
        probabilities: Whether the only output is in [0, 1].
        has_labels: Whether `labels.txt` is attached, one class on each line.

    Returns:
        A FlatBuffer with the identifier M001.

    Example:

    >>> image_classifier_metadata(
    ...     name="resnext50", description="", shape=(224, 224, 3),
    ...     pixels=True, input_name="image", output_names=["probabilities"],
    ...     probabilities=True, has_labels=True)[4:8]
    b'M001'
    """
    height, width, channels = shape
    image = {0: input_name}  # TensorMetadata
    if pixels:
        colours = _GRAYSCALE if channels == 1 else _RGB
        sides = {0: np.uint32(width), 1: np.uint32(height)}
        image |= {
            1: "Plain pixels in [0, 255].",
            3: {0: _IMAGE, 1: {0: colours, 1: sides}},  # Content
            4: [  # ProcessUnit of NormalizationOptions
                {
                    0: _NORMALIZATION,
                    1: {0: np.float32([0]), 1: np.float32([1])},
                }
            ],
            5: {0: np.float32([255]), 1: np.float32([0])},  # Stats
        }
    outputs = [
        {0: name, 3: {0: _FEATURE_PROPERTIES, 1: {}}} for name in output_names
    ]
    if has_labels:
        classes = {
            0: "labels.txt",
            1: "Names of the classes, in the order of the scores.",
            2: _AXIS_LABELS,
        }
        (scores,) = outputs
        if probabilities:
            scores[5] = {0: np.float32([1]), 1: np.float32([0])}
        scores[6] = [classes]
    builder = flatbuffers.Builder()
    root = _write(
        builder,
        {  # ModelMetadata
            0: name,
            1: description,
            2: "v1",
            3: [{2: [image], 3: outputs}],  # SubGraphMetadata
            7: "1.5.0",
        },
    )
    builder.Finish(root, _IDENTIFIER)
    return bytes(builder.Output())


def _write(builder, value):
    """Write a string, vector, list of tables or table, and return its offset.

    A table is a dict from field number to value; NumPy scalars are stored
    inline.
    """
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_write(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    parts = {
        field: part if isinstance(part, np.generic) else _write(builder, part)
        for field, part in value.items()
    }
    builder.StartObject(max(parts, default=-1) + 1)
    for field, part in parts.items():
        if isinstance(part, np.generic):
            prepend = {
                np.int8: builder.PrependInt8Slot,
                np.uint8: builder.PrependUint8Slot,
                np.uint32: builder.PrependUint32Slot,
            }[type(part)]
            prepend(field, int(part), 0)
        else:
            builder.PrependUOffsetTRelativeSlot(field, part, 0)
    return builder.EndObject()
