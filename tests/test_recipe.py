"""Recipes: arithmetic, overrides, and what is refused."""

import dataclasses
import json

import pytest

from keras_resnext.training.presets import RECIPES
from keras_resnext.training.recipe import GROUPS
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.recipe import describe_fields


def test_learning_rate_is_the_rate_used():
    assert Recipe(learning_rate=0.1, batch_size=64).peak_lr == 0.1
    scaled = Recipe(learning_rate=0.1, batch_size=64, lr_base_size=256)
    assert scaled.peak_lr == pytest.approx(0.025)


def test_overrides_take_the_type_of_the_field():
    changed = Recipe().override(
        ["epochs=30", "learning_rate=1", "flip=true", "model=resnext50"]
    )
    assert changed == dataclasses.replace(
        Recipe(), epochs=30, learning_rate=1.0, flip=True, model="resnext50"
    )
    assert type(changed.learning_rate) is float


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "epoch=3",
            "of dataset, val_fraction.*got 'epoch=3'.* Did you mean epochs",
        ),
        ("epochs", "field=value.*got 'epochs'"),
        ("epochs=many", "`epochs` must be of type int; got 'many'"),
        ("epochs=1.5", "`epochs` must be of type int; got '1.5'"),
        ("flip=yes", "`flip` must be true or false; got 'yes'"),
        ("epochs=0", "`epochs` must be above 0; got 0"),
        ("batch_size=-4", "`batch_size` must be above 0; got -4"),
        ("momentum=1", r"`momentum` must be in \[0, 1\); got 1.0"),
        ("label_smoothing=nan", "`label_smoothing` must be finite"),
        ("learning_rate=nan", "`learning_rate` must be finite"),
        ("learning_rate=inf", "`learning_rate` must be finite"),
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
        ("warmup_epochs=10", "less than the schedule's 10 epochs"),
        ("head_epochs=10", "`head_epochs` must be less than `epochs`, 10"),
        ("head_epochs=2", "`head_learning_rate` must be above 0 with"),
        ("head_learning_rate=1", "`head_learning_rate` must be .* else 0"),
        ("extended_from=10", "`extended_from` must be less than `epochs`"),
        ("class_weight=yes", "`class_weight` must be one of none, balanced"),
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


def test_recipes_are_files_too(tmp_path):
    recipe = Recipe(milestones=(3, 6), schedule="step", weights="imagenet")
    recipe.save(tmp_path / "mine.json")
    assert Recipe.load(tmp_path / "mine.json") == recipe
    with pytest.raises(FileExistsError):
        recipe.save(tmp_path / "mine.json")
    (tmp_path / "part.json").write_text('{"epochs": 3, "warmup_epochs": 1}')
    part = Recipe(epochs=3, warmup_epochs=1.0)
    assert Recipe.load(tmp_path / "part.json") == part
    (tmp_path / "other.json").write_text('{"epoch": 3}')
    with pytest.raises(
        ValueError, match="other.json must be a recipe; .*epoch"
    ):
        Recipe.load(tmp_path / "other.json")


def test_each_field_is_explained_in_one_group():
    fields = [field.name for field in dataclasses.fields(Recipe)]
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(fields)
    explained = describe_fields()
    assert list(explained) == fields
    assert explained["gamma"] == "Factor by which it drops."
    assert explained["flip"].endswith("flipped horizontally.")
    assert all(text.endswith(".") for text in explained.values())


def test_extended_recipes_name_where_they_began():
    recipe = Recipe(epochs=10)
    restated = recipe.extended(20, 10)
    assert (restated.epochs, restated.schedule_start) == (20, 0)
    restarted = recipe.extended(20, 10, restart_schedule=True)
    assert (restarted.epochs, restarted.schedule_start) == (20, 10)
    with pytest.raises(ValueError, match="`epochs` must be more than the 10"):
        recipe.extended(10, 10)
