"""Weights: where they come from and how they get into a model."""

from keras_resnext.weights.load import load_weights as load_weights
