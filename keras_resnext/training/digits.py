"""scikit-learn's handwritten digits as a TensorFlow Datasets builder."""

import tensorflow_datasets as tfds

from keras_resnext.extras import require


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 scans of handwritten digits, 8x8 pixels of 17 shades of grey.

    They come with scikit-learn, so nothing is downloaded. The split is fixed:
    1,437 images to train on and 360 to test on, stratified by digit. Shades
    are spread over [0, 255].

    Example:

    >>> import keras_resnext.training  # makes the name known to TFDS
    >>> tfds.load("digits", split="test", as_supervised=True)

    Reference:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
        Digits", UCI Machine Learning Repository, doi 10.24432/C50P49 (its
        test set, which scikit-learn carries).
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's handwritten digits, split 80/20.",
            homepage="https://doi.org/10.24432/C50P49",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(
                        names=[str(digit) for digit in range(10)]
                    ),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        require("sklearn", extra="train", purpose='The data set "digits"')
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = (digits.images * (255 / 16)).round().astype("uint8")
        train, test = train_test_split(
            range(len(images)),
            test_size=0.2,
            stratify=digits.target,
            random_state=0,
        )

        def examples(indices):
            for i in indices:
                image, label = images[i, :, :, None], int(digits.target[i])
                yield i, {"image": image, "label": label}

        return {"train": examples(train), "test": examples(test)}

    def _generate_examples(self):
        """Not used: `_split_generators` returns the examples themselves."""
