"""Weights: where they come from and how they get into a model."""

from keras_resnext.weights.load import find_source as find_source
from keras_resnext.weights.load import get_weights as get_weights
from keras_resnext.weights.load import list_weights as list_weights
from keras_resnext.weights.load import load_weights as load_weights
from keras_resnext.weights.load import (
    most_accurate_permissive as most_accurate_permissive,
)
from keras_resnext.weights.save import export_weights as export_weights
