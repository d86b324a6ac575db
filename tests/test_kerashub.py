"""Detection and segmentation: our pyramid as KerasHub's image encoder."""

import keras
import numpy as np
import pytest

import keras_resnext
from tests.conftest import randomize

pytestmark = pytest.mark.integration

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (make peers)"
)


@pytest.fixture(scope="module")
def encoder():
    body = keras_resnext.ResNeXt(
        (1, 1, 1, 1), 4, 4, include_top=False, input_shape=(None, None, 3)
    )
    return keras_resnext.feature_pyramid(randomize(body))


def backbone(kind, encoder):
    if kind == "retinanet":
        return keras_hub.models.RetinaNetBackbone(
            image_encoder=encoder, min_level=3, max_level=6, use_p5=False
        )
    return keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[2, 4],
        low_level_feature_key="P2",
        projection_filters=8,
    )


@pytest.mark.parametrize("kind", ["retinanet", "deeplab"])
def test_backbones_survive_saving(kind, encoder, tmp_path):
    model = backbone(kind, encoder)
    path = tmp_path / "backbone.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3))
    before, after = (
        m.predict(images.astype("float32"), verbose=0) for m in (model, loaded)
    )
    if kind == "deeplab":
        before, after = {"": before}, {"": after}
    assert before.keys() == after.keys()
    for level, values in before.items():
        assert values.std() > 0
        np.testing.assert_array_equal(values, after[level])
