"""Look inside a classifier: what it looked at, and what it finds alike.

Everything works on TensorFlow, JAX and PyTorch, and for networks of the
builders, models with one of them nested, and others that end in scores of
classes. A `Classifier` is given photographs, a plain model its own input.
"""

from keras_resnext.explain.attribution import grad_cam as grad_cam
from keras_resnext.explain.attribution import (
    integrated_gradients as integrated_gradients,
)
from keras_resnext.explain.embedding import embed as embed
from keras_resnext.explain.embedding import (
    nearest_neighbors as nearest_neighbors,
)
from keras_resnext.explain.overlays import overlay as overlay
