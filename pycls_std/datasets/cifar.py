"""CIFAR-10 and CIFAR-100, downloaded on first use and checked by their MD5.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import http.client
from pathlib import Path

from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100

from pycls_std.core.network import patience
from pycls_std.core.registry import DATASETS
from pycls_std.core.regular import refuse_irregular
from pycls_std.core.structures import DatasetInfo
from pycls_std.datasets.normalizations import NORMALIZATIONS


@DATASETS.register("cifar10")
def cifar10(*, root: str, split: str) -> tuple[Dataset, DatasetInfo]:
    """Return CIFAR-10 from root/cifar-10-batches-py, downloaded if it is not there."""
    return _load(CIFAR10, "cifar10", root, split)


@DATASETS.register("cifar100")
def cifar100(*, root: str, split: str) -> tuple[Dataset, DatasetInfo]:
    """Return CIFAR-100 (fine labels) from root/cifar-100-python, downloaded if it is not there."""
    return _load(CIFAR100, "cifar100", root, split)


def _load(kind, name, root, split):
    archive = Path(root) / kind.filename
    was_there = archive.exists()
    names = [kind.meta["filename"], *(name for name, _ in kind.train_list + kind.test_list)]
    for path in (archive, *(Path(root) / kind.base_folder / name for name in names)):
        if path.exists():
            refuse_irregular(path)  # torchvision takes a pipe for an absent file, and writes to it for ever
    try:
        with patience():
            dataset = kind(root, train=split == "train", download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        if not was_there:
            archive.unlink(missing_ok=True)  # torchvision writes to its final name, and this is half of it
        raise ValueError(
            f"{name}: DATA.ROOT {root} has no whole copy and {kind.url} could not be downloaded ({error}); "
            f"put {kind.filename} (MD5 {kind.tgz_md5}) into {root} by hand"
        ) from error
    return dataset, DatasetInfo(name, tuple(dataset.classes), NORMALIZATIONS[name])
