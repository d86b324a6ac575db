"""Feature maps of all stages, for detection and segmentation."""

import keras

from keras_resnext.names import stage_of


@keras.saving.register_keras_serializable(package="keras_resnext")
class FeaturePyramid(keras.Model):
    """The model that `feature_pyramid` returns.

    `pyramid_outputs` is the attribute that KerasHub's detectors and
    segmenters read of an image encoder: `{"P2": C2, ..., "P5": C5}`. It is
    kept when the model is saved.

    Args:
        model: A model of the builders, of any form, with or without top.

    Raises:
        ValueError: if the model has no such stages.

    Example:

    >>> maps = FeaturePyramid(keras_resnext.ResNeXt50(weights=None))
    >>> list(maps.pyramid_outputs)
    ['P2', 'P3', 'P4', 'P5']
    """

    def __init__(self, model):
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
        outputs = {f"P{stage}": last[stage] for stage in sorted(last)}
        super().__init__(model.input, list(outputs.values()), name=model.name)
        self.pyramid_outputs = outputs

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


def feature_pyramid(model: keras.Model) -> keras.Model:
    """The feature maps of all stages, for detection and segmentation.

    Args:
        model: A model of the builders, of any form, with or without top.

    Returns:
        A `keras.Model` that shares the layers and has one output per stage:
        C2 to C5 of strides 4, 8, 16 and 32 with the ImageNet stem (at most
        `output_stride`), C2 to C4 of strides 1, 2 and 4 with the CIFAR stem.
        Its `pyramid_outputs` names them P2 to P5, so that it can be the image
        encoder of KerasHub's `RetinaNet` and `DeepLabV3`.

    Raises:
        ValueError: if the model has no such stages.

    Example:

    >>> body = keras_resnext.ResNeXt50(include_top=False, weights=None)
    >>> [c.shape[-1] for c in feature_pyramid(body).outputs]
    [256, 512, 1024, 2048]

    Reference:
        Lin et al., "Feature Pyramid Networks for Object Detection", arXiv
        1612.03144, section 3.
    """
    return FeaturePyramid(model)
