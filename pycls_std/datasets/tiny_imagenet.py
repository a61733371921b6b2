"""Tiny-ImageNet: 200 classes of 64x64 pixels, 100,000 training and 10,000 validation images, in the original layout.

Layout: root/tiny-imagenet-200/train/<wnid>/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt, wnids.txt.
The archive is at http://cs231n.stanford.edu/tiny-imagenet-200.zip; it is not downloaded, since no hash is published.
"""

from collections import Counter
from pathlib import Path

from pycls_std.core.registry import DATASETS
from pycls_std.core.regular import read_bytes
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.core.text import first_of, printable, shortened
from pycls_std.datasets import folders
from pycls_std.datasets.image_folder import ClassFolders
from pycls_std.datasets.labelled_files import LabelledFiles
from pycls_std.datasets.normalizations import NORMALIZATIONS

BOXES = ("_boxes.txt",)  # files next to the images of each class
CLASSES, IMAGES = 200, {"train": 100_000, "val": 10_000}  # of the original


class TinyImageNet(LabelledFiles):
    """Pairs of an image, not decoded yet, and a label, the position of its class among the sorted wnids.

    split: train or val. left_out: text on files that are not read, and on what is missing compared with the original.
    Raises ValueError for invalid lists, class folders that do not match them, and what `ClassFolders` refuses; OSError
    for files that cannot be read.
    """

    def __init__(self, folder: Path, split: str):
        names = folder / "wnids.txt"
        wnids = [line.strip() for line in _lines(names)]
        _refuse_twice(names, wnids)
        for wnid in wnids:
            if not _is_plain(wnid):
                raise ValueError(f"tiny_imagenet: {names} has {_shown(wnid)}, expected the name of a folder")
        if len(wnids) < 2:
            raise ValueError(f"tiny_imagenet: {names} has {len(wnids)} classes, expected {CLASSES}")
        self.classes = sorted(wnids)
        super().__init__([])
        if split == "train":
            train = ClassFolders(folder / split, untold=BOXES)
            if odd := set(train.classes) ^ set(wnids):
                raise ValueError(f"tiny_imagenet: {folder / split} and {names} differ in {first_of(sorted(odd))}")
            self.samples, parts = train.samples, [train.left_out] if train.left_out else []
        else:
            parts = self._read_val(folder / split)
        images, classes = len(self.samples), len(self.classes)
        if (images, classes) != (IMAGES[split], CLASSES):
            parts.append(f"{images} images of {classes} classes, the original has {IMAGES[split]} of {CLASSES}")
        self.left_out = "; ".join(parts)

    def _read_val(self, folder: Path) -> list[str]:
        """Fill the samples; return texts on what is left out."""
        label = {wnid: index for index, wnid in enumerate(self.classes)}
        annotations = folder / "val_annotations.txt"
        pairs = [line.split("\t")[:2] for line in _lines(annotations)]
        for pair in pairs:
            if len(pair) != 2 or pair[1] not in label or not _is_plain(pair[0]):
                raise ValueError(
                    f"tiny_imagenet: {annotations} has {_shown(pair)}, expected an image and a class of wnids.txt"
                )
        names = [name for name, _ in pairs]
        _refuse_twice(annotations, names)
        if not names:
            raise ValueError(f"tiny_imagenet: {annotations} has no images")
        self.samples = [(str(folder / "images" / name), label[wnid]) for name, wnid in sorted(pairs)]
        empty = sorted(label.keys() - {wnid for _, wnid in pairs})
        others = {entry.name for entry in folders.entries(str(folder / "images"))} - set(names)
        parts = [f"no image of {first_of(empty)}"] if empty else []
        return parts + ([f"{len(others)} files that {annotations.name} does not name"] if others else [])


def _lines(path: Path) -> list[str]:
    """Return the non-empty lines of a file."""
    try:
        return [line for line in read_bytes(path).decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"tiny_imagenet: {path} is no text") from error


def _refuse_twice(path: Path, names: list[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"tiny_imagenet: {path} has {_shown(twice[0])} twice")


def _is_plain(name: str) -> bool:
    return "/" not in name and not name.startswith(".") and name.isprintable()


def _shown(value) -> str:
    return shortened(printable(str(value)), 100)


@DATASETS.register("tiny_imagenet")
def tiny_imagenet(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return the training split, or the validation split as test. Raises ValueError if the folder is missing."""
    folder = Path(root) / "tiny-imagenet-200"
    if not (folder / "wnids.txt").exists():
        raise ValueError(
            f"tiny_imagenet: there is no {folder / 'wnids.txt'}; unpack "
            f"http://cs231n.stanford.edu/tiny-imagenet-200.zip into DATA.ROOT {root}"
        )
    name = "train" if split == "train" else "val"
    dataset = TinyImageNet(folder, name)
    left_out = f"tiny_imagenet: {name} has {dataset.left_out}" if dataset.left_out else ""
    return dataset, DatasetInfo(
        "tiny_imagenet", tuple(dataset.classes), NORMALIZATIONS["tiny_imagenet"], left_out=left_out
    )
