"""CIFAR-10 and CIFAR-100, downloaded on first use and checked by their MD5.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.datasets.downloads import downloading
from pycls_std.datasets.normalizations import NORMALIZATIONS


@DATASETS.register("cifar10")
def cifar10(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return CIFAR-10 from root/cifar-10-batches-py, downloaded if it is missing."""
    return _load(CIFAR10, "cifar10", root, split)


@DATASETS.register("cifar100")
def cifar100(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return CIFAR-100 (fine labels) from root/cifar-100-python, downloaded if it is missing."""
    return _load(CIFAR100, "cifar100", root, split)


def _load(kind, name, root, split):
    names = [kind.meta["filename"], *(name for name, _ in kind.train_list + kind.test_list)]
    unpacked = [Path(root) / kind.base_folder / name for name in names]
    with downloading(name, root, kind.url, {Path(root) / kind.filename: kind.tgz_md5}, unpacked=unpacked):
        dataset = kind(root, train=split == "train", download=True)
    return dataset, DatasetInfo(name, tuple(dataset.classes), NORMALIZATIONS[name])
