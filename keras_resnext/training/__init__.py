"""Training: recipes, data, and a `tf.distribute` loop that resumes."""

from keras_resnext.extras import require_tensorflow

require_tensorflow("Training")

from keras_resnext.training.loop import evaluate as evaluate
from keras_resnext.training.loop import train as train
from keras_resnext.training.recipe import Recipe as Recipe
