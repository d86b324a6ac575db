"""Recipes by name: the digits' and those of published results."""

import dataclasses

from keras_resnext.training.recipe import Recipe

# As in section 4 of the paper, with the schedule of the code it refers to
# (fb.resnet.torch): a tenth after 30, 60 and 90 epochs.
_IMAGENET_PAPER = Recipe(
    dataset="imagenet2012",
    model="resnext50_32x4d",
    image_size=224,
    batch_size=256,
    epochs=100,
    learning_rate=0.1,
    schedule="step",
    warmup_epochs=0,
    milestones=(30, 60, 90),
    nesterov=False,
    weight_decay=1e-4,
    decay_all=True,
    label_smoothing=0,
    crop_padding=0,
    random_resized_crop_scale=0.08,
    flip=True,
    crop_pct=224 / 256,
)
# As in the paper's appendix: 0.1 for 128 images, a tenth at 150 and 225.
_CIFAR_PAPER = Recipe(
    dataset="cifar10",
    model="resnext29_8x64d",
    image_size=32,
    batch_size=128,
    epochs=300,
    learning_rate=0.1,
    schedule="step",
    warmup_epochs=0,
    milestones=(150, 225),
    nesterov=False,
    weight_decay=5e-4,
    decay_all=True,
    label_smoothing=0,
    crop_padding=4,
    flip=True,
)

RECIPES = {
    "digits": Recipe(),
    # 360,000 parameters. Random erasing and the number of layers were compared
    # on a split of the training images (`benchmarks/tuning.py`).
    "fashion_mnist": Recipe(
        dataset="fashion_mnist",
        model="resnext29_8x4d_f64",
        image_size=28,
        batch_size=128,
        epochs=40,
        learning_rate=0.1,
        warmup_epochs=1,
        weight_decay=5e-4,
        label_smoothing=0.1,
        crop_padding=2,
        flip=True,
        random_erasing=0.5,
    ),
    "imagenet_paper": _IMAGENET_PAPER,
    # As in facebookresearch/ResNeXt: Nesterov, and more augmentation than the
    # paper mentions.
    "imagenet_released": dataclasses.replace(
        _IMAGENET_PAPER,
        nesterov=True,
        interpolation="bicubic",
        color_jitter=0.4,
        lighting=0.1,
    ),
    # torchvision's second weights (its issue 3995, pull request 5935): 0.5
    # for 8 x 128 images. Its average is updated every 32 steps with a weight
    # of (1 - 0.99998) x 8 x 128 x 32 / 600, which is spread over the steps
    # here. Its sampler, which repeats each image four times an epoch, is left
    # out.
    "imagenet_modern": dataclasses.replace(
        _IMAGENET_PAPER,
        image_size=176,
        eval_image_size=224,
        crop_pct=224 / 232,
        batch_size=1024,
        epochs=600,
        learning_rate=0.5,
        schedule="cosine",
        milestones=(),
        warmup_epochs=5,
        weight_decay=2e-5,
        decay_all=False,
        ema_decay=1 - 2e-5 * 1024 / 600,
        label_smoothing=0.1,
        trivial_augment=True,
        random_erasing=0.1,
        mixup=0.2,
        cutmix=1.0,
    ),
    "cifar_paper": _CIFAR_PAPER,
    # As in the released code, which drops at 0.49 and 0.74 of the epochs.
    "cifar_released": dataclasses.replace(
        _CIFAR_PAPER, nesterov=True, milestones=(147, 222)
    ),
}
