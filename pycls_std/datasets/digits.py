"""Handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes, shipped with scikit-learn.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.datasets.normalizations import NORMALIZATIONS

TEST_IMAGES = 360


class Digits(Dataset):
    """Pairs of an RGB image of 8x8 pixels and a label from 0 to 9. The split is stratified and fixed."""

    def __init__(self, split: str):
        from sklearn.datasets import load_digits  # here, since the import takes seconds
        from sklearn.model_selection import train_test_split

        data = load_digits()
        train, test = train_test_split(
            np.arange(len(data.target)), test_size=TEST_IMAGES, random_state=0, stratify=data.target
        )
        chosen = train if split == "train" else test
        self.images = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)
        self.labels = data.target[chosen].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]).convert("RGB"), self.labels[index]


@DATASETS.register("digits")
def digits(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return the `train` (1,437 images) or `test` (360 images) split; nothing is read from root."""
    return Digits(split), DatasetInfo("digits", tuple("0123456789"), NORMALIZATIONS["digits"])
