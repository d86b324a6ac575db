"""Rewrite a built model, weights included: forms, folding, int8, stock layers.

Each function returns a new model with its own layers and weights and leaves
the original unchanged.
"""

from keras_resnext.rewrite.folding import fold_batch_norm as fold_batch_norm
from keras_resnext.rewrite.forms import convert_form as convert_form
from keras_resnext.rewrite.quantization import (
    quantization_aware as quantization_aware,
)
from keras_resnext.rewrite.stock import from_stock_layers as from_stock_layers
from keras_resnext.rewrite.stock import to_stock_layers as to_stock_layers
