"""The published weights: one record per file, data only.

One file is this package's own. The others were collected in 2026 from timm
1.0.31 (its pretrained configurations and its results-imagenet.csv), torchvision
0.28.0 (`models/resnet.py`) and keras-applications 1.0.8 (`resnext.py` and its
README).
"""

import dataclasses
import math

from keras_resnext import imagenet
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from keras_resnext.transforms import EvalTransform

IMAGENET, FASHION_MNIST = "ImageNet", "Fashion-MNIST"
APACHE = "apache-2.0"
BSD = "bsd-3-clause"
NON_COMMERCIAL = "cc-by-nc-4.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """A published file of weights.

    Attributes:
        model: The network in the paper's notation, such as
            `"resnext50_32x4d"`.
        tag: Its name in `weights=`.
        source: `"huggingface"`, a repository of timm's with
            `model.safetensors`; `"torchvision"`, a `.pth` file;
            `"keras-applications"`, a `.h5` file; or `"package"`, a file that
            is installed with this package.
        address: The repository's name, or the file's address or name.
        license: SPDX identifier, in lower case.
        image_size: Side of the evaluated square, in pixels.
        resize_size: Shorter side before the centre crop, in pixels.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
        top1: Top-1 accuracy on the validation images, in percent; on the test
            images of Fashion-MNIST, which has no others.
        top5: Top-5 accuracy, in percent.
        measured_by: Who published these accuracies, measured with exactly
            this transform.
        origin: Who trained it, and how.
        parameters: Number of trainable values, classifier included.
        dataset: What it was trained for, `"ImageNet"` (1K) or
            `"Fashion-MNIST"`.
        include_top: Whether the file contains the classifier.
        sha256: First digits of the file's SHA-256, if published.
        md5: The file's MD5, if published.
        revision: Branch, tag or commit of the Hub's repository. Defaults to
            `"main"`, as in all records here: timm does not say which commit
            has the accuracies, and `"main"` moves to whatever it uploads next.
            A file is compared with the SHA-256 that the Hub states for it,
            which is as new as the file. To stay with one, give its commit,
            `weights="a1h_in1k@<commit>"`: `Classifier.load` puts the one that
            it loaded into `record.revision`.
        mean: Mean of pixels in [0, 1], one number per channel.
        std: Their standard deviation.

    Example:

    >>> record = keras_resnext.get_weights("resnext50", "tv2_in1k")
    >>> record.top1, record.license
    (81.19, 'bsd-3-clause')
    """

    model: str
    tag: str
    source: str
    address: str
    license: str
    image_size: int
    resize_size: int
    interpolation: str
    top1: float | None
    top5: float | None
    measured_by: str
    origin: str
    parameters: int
    dataset: str = IMAGENET
    include_top: bool = True
    sha256: str | None = None
    md5: str | None = None
    revision: str = "main"
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @property
    def name(self) -> str:
        """Model and tag, as `keras-resnext list --weights` shows them."""
        return f"{self.model}.{self.tag}"

    @property
    def transform(self) -> EvalTransform:
        """The transform that the published accuracies were measured with."""
        return EvalTransform(
            image_size=self.image_size,
            resize_size=self.resize_size,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )

    @property
    def labels(self) -> list[str]:
        """Names of its classes, in the order of the model's outputs."""
        if self.dataset == IMAGENET:
            return imagenet.labels()
        return list(_FASHION_MNIST_LABELS)

    @property
    def size_mb(self) -> float:
        """Size of the file's arrays in megabytes (10^6 bytes), float32."""
        values = self.parameters + _STATISTICS[self.model]
        if not self.include_top:
            values -= (_FEATURES + 1) * _CLASSES
        return values * 4 / 1e6

    @property
    def commercial(self) -> bool:
        """Whether the licence allows commercial use."""
        return self.license != NON_COMMERCIAL


_FASHION_MNIST_LABELS = (  # as TensorFlow Datasets has them
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_PARAMETERS = {
    "resnext29_8x4d_f64": 359_898,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x8d": 88_791_336,
    "resnext101_32x16d": 194_026_792,
    "resnext101_32x32d": 468_530_472,
    "resnext101_32x48d": 828_411_176,
    "resnext101_64x4d": 83_455_272,
}
# Moving means and variances, which are in the files too.
_STATISTICS = {
    "resnext29_8x4d_f64": 6_304,
    "resnext50_32x4d": 68_224,
    "resnext101_32x4d": 137_856,
    "resnext101_32x8d": 202_880,
    "resnext101_32x16d": 332_928,
    "resnext101_32x32d": 593_024,
    "resnext101_32x48d": 853_120,
    "resnext101_64x4d": 202_880,
}
_FEATURES, _CLASSES = 2048, 1000

_RSB = "timm, 'ResNet strikes back' (arXiv 2110.00476), procedure "
_V1 = "torchvision, references/classification#resnext"
_V2 = "torchvision, issue 3995, the new recipe"
_V3 = "torchvision, pull request 5935"
# Tag -> licence, interpolation, origin.
_TAGS = {
    "a1_in1k": (APACHE, "bicubic", _RSB + "A1"),
    "a1h_in1k": (APACHE, "bicubic", _RSB + "A1h"),
    "a2_in1k": (APACHE, "bicubic", _RSB + "A2"),
    "a3_in1k": (APACHE, "bicubic", _RSB + "A3"),
    "c1_in1k": (APACHE, "bicubic", _RSB + "C1"),
    "ra_in1k": (APACHE, "bicubic", "timm, RandAugment"),
    "gluon_in1k": (APACHE, "bicubic", "GluonCV's model zoo"),
    "tv_in1k": (BSD, "bilinear", _V1),
    "tv2_in1k": (BSD, "bilinear", _V2),
    "fb_ssl_yfcc100m_ft_in1k": (
        NON_COMMERCIAL,
        "bilinear",
        "Facebook, semi-supervised on YFCC100M (arXiv 1905.00546)",
    ),
    "fb_swsl_ig1b_ft_in1k": (
        NON_COMMERCIAL,
        "bilinear",
        "Facebook, semi-weakly supervised on 1B photos (arXiv 1905.00546)",
    ),
    "fb_wsl_ig1b_ft_in1k": (
        NON_COMMERCIAL,
        "bilinear",
        "Facebook, weakly supervised on 1B photos (arXiv 1805.00932)",
    ),
}

# Model, tag, image size, crop_pct, top-1, top-5.
_TIMM = (
    ("resnext50_32x4d", "a1_in1k", 288, 1.0, 81.48, 95.152),
    ("resnext50_32x4d", "a1h_in1k", 288, 1.0, 82.016, 95.934),
    ("resnext50_32x4d", "a2_in1k", 288, 1.0, 81.304, 95.114),
    ("resnext50_32x4d", "a3_in1k", 224, 0.95, 79.258, 94.308),
    ("resnext50_32x4d", "fb_ssl_yfcc100m_ft_in1k", 224, 0.875, 80.316, 95.386),
    ("resnext50_32x4d", "fb_swsl_ig1b_ft_in1k", 224, 0.875, 82.162, 96.224),
    ("resnext50_32x4d", "gluon_in1k", 224, 0.875, 79.354, 94.424),
    ("resnext50_32x4d", "ra_in1k", 288, 0.95, 80.72, 95.344),
    ("resnext50_32x4d", "tv2_in1k", 224, 0.965, 81.19, 95.344),
    ("resnext50_32x4d", "tv_in1k", 224, 0.875, 77.632, 93.674),
    ("resnext101_32x4d", "fb_ssl_yfcc100m_ft_in1k", 224, 0.875, 80.936, 95.732),
    ("resnext101_32x4d", "fb_swsl_ig1b_ft_in1k", 224, 0.875, 83.268, 96.76),
    ("resnext101_32x4d", "gluon_in1k", 224, 0.875, 80.336, 94.908),
    ("resnext101_32x8d", "fb_ssl_yfcc100m_ft_in1k", 224, 0.875, 81.62, 96.036),
    ("resnext101_32x8d", "fb_swsl_ig1b_ft_in1k", 224, 0.875, 84.276, 97.188),
    ("resnext101_32x8d", "fb_wsl_ig1b_ft_in1k", 224, 0.875, 82.72, 96.624),
    ("resnext101_32x8d", "tv2_in1k", 224, 0.965, 82.832, 96.234),
    ("resnext101_32x8d", "tv_in1k", 224, 0.875, 79.308, 94.53),
    (
        "resnext101_32x16d",
        "fb_ssl_yfcc100m_ft_in1k",
        224,
        0.875,
        81.856,
        96.084,
    ),
    ("resnext101_32x16d", "fb_swsl_ig1b_ft_in1k", 224, 0.875, 83.34, 96.844),
    ("resnext101_32x16d", "fb_wsl_ig1b_ft_in1k", 224, 0.875, 84.166, 97.192),
    ("resnext101_32x32d", "fb_wsl_ig1b_ft_in1k", 224, 0.875, 85.09, 97.442),
    ("resnext101_64x4d", "c1_in1k", 288, 1.0, 83.158, 96.37),
    ("resnext101_64x4d", "gluon_in1k", 224, 0.875, 80.64, 95.0),
    ("resnext101_64x4d", "tv_in1k", 224, 0.875, 82.978, 96.252),
)

# Model, version, first digits of SHA-256, resize size, top-1, top-5, origin.
_TORCHVISION = (
    ("resnext50_32x4d", 1, "7cdf4587", 256, 77.618, 93.698, _V1),
    ("resnext50_32x4d", 2, "1a0047aa", 232, 81.198, 95.34, _V2),
    ("resnext101_32x8d", 1, "8ba56ff5", 256, 79.312, 94.526, _V1),
    ("resnext101_32x8d", 2, "110c445d", 232, 82.834, 96.228, _V2),
    ("resnext101_64x4d", 1, "173b62eb", 232, 83.246, 96.454, _V3),
)

# Model, its name there, MD5 with and without the classifier, top-1, top-5.
_KERAS = (
    (
        "resnext50_32x4d",
        "resnext50",
        "67a5b30d522ed92f75a1f16eef299d1a",
        "62527c363bdd9ec598bed41947b379fc",
        77.74,
        93.81,
    ),
    (
        "resnext101_32x4d",
        "resnext101",
        "34fb605428fcc7aa4d62f44404c11509",
        "0f678c91647380debd923963594981b3",
        78.73,
        94.294,
    ),
)
_KERAS_ORIGIN = (
    "the paper's authors, ported by keras-applications 1.0.8 (whose "
    "documentation says BSD; the authors license the weights CC BY-NC 4.0)"
)


def _records():
    for model, tag, size, crop_pct, top1, top5 in _TIMM:
        license, interpolation, origin = _TAGS[tag]
        # timm evaluates this file of torchvision's differently.
        if (model, tag) == ("resnext101_64x4d", "tv_in1k"):
            origin = _V3
        yield WeightsRecord(
            model=model,
            tag=tag,
            source="huggingface",
            address=f"timm/{model}.{tag}",
            license=license,
            image_size=size,
            resize_size=math.floor(size / crop_pct),
            interpolation=interpolation,
            top1=top1,
            top5=top5,
            measured_by="timm",
            origin=origin,
            parameters=_PARAMETERS[model],
        )
    for model, version, sha256, resize, top1, top5, origin in _TORCHVISION:
        yield WeightsRecord(
            model=model,
            tag=f"imagenet1k_v{version}",
            source="torchvision",
            address=f"https://download.pytorch.org/models/{model}-{sha256}.pth",
            license=BSD,
            image_size=224,
            resize_size=resize,
            interpolation="bilinear",
            top1=top1,
            top5=top5,
            measured_by="torchvision",
            origin=origin,
            parameters=_PARAMETERS[model],
            sha256=sha256,
        )
    yield WeightsRecord(
        model="resnext101_32x48d",
        tag="fb_wsl_ig1b_ft_in1k",
        source="torchvision",
        address="https://download.pytorch.org/models/"
        "ig_resnext101_32x48-3e41cc8a.pth",
        license=NON_COMMERCIAL,
        image_size=224,
        resize_size=256,
        interpolation="bilinear",
        top1=85.4,
        top5=97.6,
        measured_by="its authors",
        origin=_TAGS["fb_wsl_ig1b_ft_in1k"][2],
        parameters=_PARAMETERS["resnext101_32x48d"],
        sha256="3e41cc8a",
    )
    for model, name, md5, md5_without, top1, top5 in _KERAS:
        for include_top in (True, False):
            suffix = "" if include_top else "_notop"
            yield WeightsRecord(
                model=model,
                tag="keras",
                source="keras-applications",
                address="https://github.com/keras-team/keras-applications/"
                f"releases/download/resnet/{name}_weights_tf_dim_ordering_tf_"
                f"kernels{suffix}.h5",
                license=NON_COMMERCIAL,
                image_size=224,
                resize_size=256,
                # Not stated; what the authors' own evaluation uses.
                interpolation="bilinear",
                top1=top1,
                top5=top5,
                measured_by="keras-applications",
                origin=_KERAS_ORIGIN,
                parameters=_PARAMETERS[model],
                include_top=include_top,
                md5=md5 if include_top else md5_without,
            )
    # The first of three seeds, which have 94.99, 95.17 and 95.21 %
    # (benchmarks/results/fashion_mnist.jsonl).
    yield WeightsRecord(
        model="resnext29_8x4d_f64",
        tag="fashion_mnist",
        source="package",
        address="resnext29_8x4d_f64.fashion_mnist.weights.h5",
        license=APACHE,
        image_size=28,
        resize_size=28,
        interpolation="bilinear",
        top1=94.98,
        top5=99.91,
        measured_by="this package",
        origin="keras_resnext, recipe fashion_mnist (images: Zalando SE, "
        "MIT licence)",
        parameters=_PARAMETERS["resnext29_8x4d_f64"],
        dataset=FASHION_MNIST,
        sha256="ac4d79fdf2d1deb65cfe2346b15676f390e3c5644a81af4af6af2e6f9b5d7c2f",
    )


PUBLISHED = tuple(_records())
