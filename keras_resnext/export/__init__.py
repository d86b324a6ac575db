"""Exporters: a built model and a path come in, a verified file goes out."""

import os

from keras_resnext.extras import require_tensorflow

require_tensorflow("Exporting")
# ONNX Runtime reads this on import; otherwise it reports to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from keras_resnext.export.onnx import to_onnx as to_onnx
from keras_resnext.export.report import Plan as Plan
from keras_resnext.export.report import Report as Report
from keras_resnext.export.report import export_files as export_files
from keras_resnext.export.report import plan_files as plan_files
from keras_resnext.export.saved_model import to_saved_model as to_saved_model
from keras_resnext.export.session import Session as Session
from keras_resnext.export.tflite import to_tflite as to_tflite
from keras_resnext.export.verify import Agreement as Agreement
from keras_resnext.export.verify import Artifact as Artifact
from keras_resnext.export.verify import ExportError as ExportError
from keras_resnext.export.verify import Limits as Limits
