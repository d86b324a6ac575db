"""Recipes: arithmetic, overrides, and what is refused."""

import dataclasses
import json

import pytest

from keras_resnext.training.recipe import RECIPES
from keras_resnext.training.recipe import Recipe


def test_learning_rate_is_scaled_by_the_batch():
    assert Recipe(base_lr=0.1, batch_size=256).peak_lr == pytest.approx(0.1)
    assert Recipe(base_lr=0.1, batch_size=64).peak_lr == pytest.approx(0.025)


def test_overrides_take_the_type_of_the_field():
    changed = Recipe().override(
        ["epochs=30", "base_lr=1", "flip=true", "model=resnext50"]
    )
    assert changed == dataclasses.replace(
        Recipe(), epochs=30, base_lr=1.0, flip=True, model="resnext50"
    )
    assert type(changed.base_lr) is float


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=3", "with a field of dataset, model.*got 'epoch=3'"),
        ("epochs", "field=value.*got 'epochs'"),
        ("epochs=many", "`epochs` must be of type int; got 'many'"),
        ("epochs=1.5", "`epochs` must be of type int; got '1.5'"),
        ("flip=yes", "`flip` must be true or false; got 'yes'"),
        ("epochs=0", "`epochs` must be above 0; got 0"),
        ("batch_size=-4", "`batch_size` must be above 0; got -4"),
        ("momentum=1", r"`momentum` must be in \[0, 1\); got 1.0"),
        ("label_smoothing=nan", "`label_smoothing` must be finite"),
        ("base_lr=nan", "`base_lr` must be finite"),
        ("base_lr=inf", "`base_lr` must be finite"),
        ("dataset=", "`dataset` must be a name or a folder"),
        (f"seed={2**40}", "`seed` must be less than 2"),
        ("weight_decay=-1", "`weight_decay` must be 0 or above"),
        ("milestones=30", "`milestones` must be increasing, .* else empty"),
        ("milestones=a", "`milestones` must be whole numbers with commas"),
        ("schedule=linear", "`schedule` must be one of cosine, step"),
        (
            "gradient_accumulation_steps=5",
            "`gradient_accumulation_steps` must be a divisor of `batch_size`",
        ),
        ("random_erasing=2", r"`random_erasing` must be in \[0, 1\]"),
        ("crop_pct=0", "`crop_pct` must be above 0"),
        ("warmup_epochs=10", "`warmup_epochs` must be .* less than `epochs`"),
    ],
)
def test_bad_fields_are_named(assignment, message):
    with pytest.raises(ValueError, match=message):
        Recipe().override([assignment])


def test_wrong_types_are_refused():
    with pytest.raises(
        ValueError, match="`epochs` must be of type int; got 3.0"
    ):
        Recipe(epochs=3.0)
    with pytest.raises(ValueError, match="`flip` must be of type bool; got 1"):
        Recipe(flip=1)


def test_recipes_are_saved_and_read():
    for recipe in RECIPES.values():
        text = json.dumps(dataclasses.asdict(recipe))
        assert Recipe(**json.loads(text)) == recipe


def test_rates_are_those_of_the_papers():
    """Learning rates as their authors give them, for their batches."""
    rates = {name: recipe.peak_lr for name, recipe in RECIPES.items()}
    assert rates["imagenet_paper"] == pytest.approx(0.1)  # 256 images
    assert rates["imagenet_modern"] == pytest.approx(0.5)  # 1024
    assert rates["cifar_paper"] == pytest.approx(0.1)  # 128


def test_stochastic_depth_needs_shortcuts():
    assert Recipe(drop_path_rate=0.2).drop_path_rate == 0.2
    with pytest.raises(ValueError, match=r"`drop_path_rate` must be in \[0, 1"):
        Recipe(drop_path_rate=1.0)
    with pytest.raises(ValueError, match="must be 0 without shortcuts"):
        Recipe(drop_path_rate=0.2, residual=False)


def test_evaluation_follows_size_and_crop():
    transform = Recipe(
        image_size=176, eval_image_size=224, crop_pct=0.875
    ).eval_transform
    assert (transform.image_size, transform.resize_size) == (224, 256)
