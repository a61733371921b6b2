"""Tiny-ImageNet: 200 classes of 64x64 pixels, 100,000 training and 10,000 validation images, in the original layout.

Layout: root/tiny-imagenet-200/train/<wnid>/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt, wnids.txt.
The archive is at http://cs231n.stanford.edu/tiny-imagenet-200.zip; it is not downloaded, for no hash is published.
"""

from pathlib import Path

from torch.utils.data import Dataset

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo
from pycls_std.datasets.decoding import open_image
from pycls_std.datasets.normalizations import NORMALIZATIONS


class TinyImageNet(Dataset):
    """Pairs of an image, not decoded yet, and a label, the position of its class among the sorted wnids."""

    def __init__(self, folder: Path, split: str):
        self.classes = sorted((folder / "wnids.txt").read_text().split())
        label = {wnid: index for index, wnid in enumerate(self.classes)}
        if split == "train":
            self.samples = [
                (path, label[wnid])
                for wnid in self.classes
                for path in sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
            ]
        else:
            annotations = folder / "val" / "val_annotations.txt"
            pairs = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
            strange = [pair for pair in pairs if len(pair) != 2 or pair[1] not in label]
            if strange:
                raise ValueError(
                    f"tiny_imagenet: {annotations} has {strange[0]}, expected an image and a class of wnids.txt"
                )
            self.samples = [(folder / "val" / "images" / name, label[wnid]) for name, wnid in sorted(pairs)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        return open_image(str(path)), label


@DATASETS.register("tiny_imagenet")
def tiny_imagenet(*, root: str, split: str) -> tuple[Dataset, DatasetInfo]:
    """Return the training split, or the validation split as test. Raises ValueError if the folder is not there."""
    folder = Path(root) / "tiny-imagenet-200"
    if not (folder / "wnids.txt").is_file():
        raise ValueError(
            f"tiny_imagenet: there is no {folder / 'wnids.txt'}; unpack "
            f"http://cs231n.stanford.edu/tiny-imagenet-200.zip into DATA.ROOT {root}"
        )
    dataset = TinyImageNet(folder, split)
    return dataset, DatasetInfo("tiny_imagenet", tuple(dataset.classes), NORMALIZATIONS["tiny_imagenet"])
