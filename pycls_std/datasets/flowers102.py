"""Oxford Flowers: 102 classes, 2,040 training and 6,149 test images, downloaded on first use.

Training uses the 1,020 images of its training split and the 1,020 of its validation split, in this order.
Source: Nilsback and Zisserman, Automated Flower Classification over a Large Number of Classes, ICVGIP 2008; the
splits are those of Li et al., ECCV 2022.
"""

import os
from pathlib import Path

from torchvision.datasets import Flowers102

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.datasets.downloads import downloading
from pycls_std.datasets.labelled_files import LabelledFiles
from pycls_std.datasets.normalizations import NORMALIZATIONS

URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FOLDER = "flowers-102"  # torchvision's


@DATASETS.register("flowers102")
def flowers102(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return Flowers from root/flowers-102 (jpg/, imagelabels.mat, setid.mat), downloaded if it is missing."""
    files = {Path(root) / FOLDER / name: md5 for name, md5 in Flowers102._file_dict.values()}
    names = ("train", "val") if split == "train" else ("test",)
    with downloading("flowers102", root, URL, files):
        parts = [Flowers102(root, split=name, download=True, loader=os.fspath) for name in names]
    samples = [part[index] for part in parts for index in range(len(part))]
    return LabelledFiles(samples), DatasetInfo("flowers102", tuple(Flowers102.classes), NORMALIZATIONS["imagenet"])
