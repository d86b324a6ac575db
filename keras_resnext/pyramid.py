"""Feature maps of all stages, for detection and segmentation."""

import keras

from keras_resnext.names import STEM
from keras_resnext.names import stage_of


@keras.saving.register_keras_serializable(package="keras_resnext")
class FeaturePyramid(keras.Model):
    """The model that `feature_pyramid` returns.

    `pyramid_outputs` is the attribute that KerasHub's detectors and
    segmenters read of an image encoder: `{"P2": C2, ..., "P5": C5}`, where
    the map Pn is 2^n times smaller than the images. It is kept when the model
    is saved.

    Args:
        model: A model of the builders, of any form, with or without top.

    Raises:
        ValueError: if the model has no such stages.

    Example:

    >>> maps = FeaturePyramid(keras_resnext.ResNeXt50(weights=None))
    >>> list(maps.pyramid_outputs)
    ['P2', 'P3', 'P4', 'P5']
    """

    def __init__(self, model: keras.Model):
        last = {}
        for layer in model.layers:
            stage = stage_of(layer.name)
            if stage and layer.name.endswith("_out"):
                last[int(stage.removeprefix("conv"))] = layer.output
        if not last:
            raise ValueError(
                "`model` must be built by keras_resnext, with layers such as "
                f"conv2_block1_out at its top level; {model.name} has none."
            )
        outputs = [last[stage] for stage in sorted(last)]
        super().__init__(model.input, outputs, name=model.name)
        # Of maps of one size, the last, as in the paper.
        self.pyramid_outputs: dict[str, keras.KerasTensor] = {
            f"P{level}": last[stage] for stage, level in _levels(model, last)
        }

    def get_config(self):
        body = keras.Model(self.input, self.outputs, name=self.name)
        return {"model": keras.saving.serialize_keras_object(body)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(
            keras.saving.deserialize_keras_object(
                config["model"], custom_objects=custom_objects
            )
        )


def _levels(model, stages):
    """Each stage with the binary logarithm of its stride."""
    strides = {}
    for layer in model.layers:
        # Of `"pool1_pool"` and others outside the blocks, the name.
        place = stage_of(layer.name) or layer.name
        stride = getattr(layer, "strides", (1,))[0]
        strides[place] = max(stride, strides.get(place, 1))
    total = strides[stage_of(STEM)] * strides.get("pool1_pool", 1)
    for stage in sorted(stages):
        total *= strides[f"conv{stage}"]
        yield stage, total.bit_length() - 1


def feature_pyramid(model: keras.Model) -> FeaturePyramid:
    """The feature maps of all stages, for detection and segmentation.

    Args:
        model: A model of the builders, of any form, with or without top.

    Returns:
        A `FeaturePyramid`: a `keras.Model` that shares the layers and has one
        output per stage, C2 to C5 of strides 4, 8, 16 and 32 with the ImageNet
        stem (at most `output_stride`), C2 to C4 of strides 1, 2 and 4 with the
        CIFAR stem. Its `pyramid_outputs` names them by size, so that it can be
        the image encoder of KerasHub's `RetinaNet` and `DeepLabV3`: Pn has
        stride 2^n and is the last of its size. That is P2 to P5 with the
        ImageNet stem, P2 to P4 with `output_stride=16`, where P4 is C5.

    Raises:
        ValueError: if the model has no such stages.

    Example:

    >>> body = keras_resnext.ResNeXt50(include_top=False, weights=None)
    >>> maps = feature_pyramid(body)
    >>> [c.shape[-1] for c in maps.outputs]
    [256, 512, 1024, 2048]

    KerasHub's converter does what `keras_resnext.preprocess_input` does:

    >>> import keras_hub
    >>> from keras_resnext.imagenet import MEAN, STD
    >>> mean, std = np.array(MEAN), np.array(STD)
    >>> converter = keras_hub.layers.RetinaNetImageConverter(
    ...     scale=list(1 / (255 * std)), offset=list(-mean / std)
    ... )
    >>> detector = keras_hub.models.RetinaNetObjectDetector(
    ...     keras_hub.models.RetinaNetBackbone(
    ...         image_encoder=maps, min_level=3, max_level=7, use_p5=False
    ...     ),
    ...     num_classes=20,
    ...     bounding_box_format="xyxy",
    ...     preprocessor=keras_hub.models.RetinaNetObjectDetectorPreprocessor(
    ...         image_converter=converter
    ...     ),
    ... )

    Reference:
        Lin et al., "Feature Pyramid Networks for Object Detection", arXiv
        1612.03144, section 3.
    """
    return FeaturePyramid(model)
