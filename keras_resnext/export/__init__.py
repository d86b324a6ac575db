"""Exporters: a built model and a path come in, a proven file goes out."""

from keras_resnext.extras import require_tensorflow

require_tensorflow("Exporting")

from keras_resnext.export.artifact import Artifact as Artifact
from keras_resnext.export.onnx import to_onnx as to_onnx
from keras_resnext.export.saved_model import to_saved_model as to_saved_model
from keras_resnext.export.tflite import to_tflite as to_tflite
from keras_resnext.export.verify import ExportError as ExportError
from keras_resnext.export.verify import Limits as Limits
