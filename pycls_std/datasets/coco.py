"""Detection data in COCO's format: COCO 2017, or any other dataset in its layout.

Layout: root/annotations/instances_train2017.json and root/train2017/<image>; val2017 likewise, which is the test split.
Source: Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.core.text import first_of, printable
from pycls_std.datasets.box_targets import box_target, trained_on
from pycls_std.datasets.coco_file import Annotations, read_annotations, read_segmentations
from pycls_std.datasets.decoding import open_image
from pycls_std.datasets.folders import ending
from pycls_std.datasets.normalizations import NORMALIZATIONS
from pycls_std.datasets.segments import Outlines

FOLDERS = {"train": "train2017", "test": "val2017"}
MOST_IDS = 10_000  # maximum number of classes of `coco_ids`


class CocoImages(Dataset):
    """Pairs of an image, not decoded yet, and its target (`box_targets`), by ascending image id.

    ids: category ids of the classes, ascending. file: of the annotations. samples: pairs of a path and None, since an
    image has no single class. sizes: (N, 2) height and width, pixels. objects: (N,) number of objects of each image
    that are not crowds and, in training, have an extent within the image. left_out: text on what is not read or not
    trained on; "" for nothing.
    Raises ValueError that names images that are missing in the folder.
    """

    def __init__(self, folder: Path, annotations: Annotations, ids: tuple[int, ...], *, file: Path, train: bool):
        self.annotations = annotations
        self.file = file
        self.sizes = annotations.sizes
        owners = np.arange(len(self.sizes)).repeat(np.diff(annotations.starts))
        truth = {name: torch.from_numpy(getattr(annotations, name)) for name in ("boxes", "crowd")}
        learned = trained_on(truth, self.sizes[owners]).numpy() if train else ~annotations.crowd
        self.objects = np.bincount(owners[learned], minlength=len(self.sizes))
        self.labels_of_boxes = np.searchsorted(ids, annotations.category)
        self.samples = [(str(folder / name), None) for name in annotations.files]
        spare = _unnamed(folder, annotations.files)
        parts = [f"{spare} images that the annotations do not list"] if spare else []
        self.left_out = ", ".join(parts + (_not_trained_on(annotations.crowd, learned) if train else []))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        """Return an image and its target. Raises ValueError if its size is not that of the annotations."""
        known, path = self.annotations, self.samples[index][0]
        image, (height, width) = open_image(path), known.sizes[index].tolist()
        if image.size != (width, height):
            own = f"{image.width} x {image.height}"
            raise ValueError(f"image {printable(path)} has {own} pixels, its annotations say {width} x {height}")
        rows = slice(known.starts[index], known.starts[index + 1])
        names = {"boxes": known.boxes, "labels": self.labels_of_boxes, "area": known.area, "crowd": known.crowd}
        truth = {name: torch.tensor(values[rows]) for name, values in names.items()}  # copies, for other processes
        return image, box_target(truth, image_id=int(known.ids[index]), size=(height, width))

    def outlines(self) -> Outlines:
        """Return the outlines of the objects. Raises ValueError for an annotation without one."""
        return Outlines(read_segmentations(self.file), self.annotations)


@DATASETS.register("coco", TARGETS="boxes")
def coco(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return a split with a class for each category of its file, by ascending id."""
    return _load("coco", root, split, lambda categories, where: categories)


@DATASETS.register("coco_ids", TARGETS="boxes")
def coco_ids(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return a split whose class k is the category with id k, as for published heads with 91 outputs.

    Classes without a category are named after their id, such as `unused 12`.
    """
    return _load("coco_ids", root, split, _all_ids)


def _all_ids(categories: dict[int, str], where: str) -> range:
    least, most = min(categories), max(categories)
    if least < 0 or most >= MOST_IDS:
        raise ValueError(f"{where}: category ids go from {least} to {most}, coco_ids takes 0 to {MOST_IDS - 1}")
    return range(most + 1)


def _load(name: str, root: str, split: str, choose: Callable) -> tuple[ImageSet, DatasetInfo]:
    if not Path(root).is_dir():
        raise ValueError(f"{name}: there is no folder DATA.ROOT {printable(root)}")
    folder = Path(root) / FOLDERS[split]
    if not folder.is_dir():
        raise ValueError(f"{name}: DATA.ROOT {printable(root)} has no folder {folder.name}")
    annotations = _annotations(name, root, split)
    categories = annotations.categories
    if split == "train":  # here, since the test split's file is the smaller one to read twice
        _refuse_other_categories(name, root, categories, _annotations(name, root, "test").categories)
    ids = tuple(choose(categories, f"{name}: DATA.ROOT {printable(root)}"))
    file = _file(root, split)
    dataset = CocoImages(folder, annotations, ids, file=file, train=split == "train")
    left_out = f"{name}: {folder.name} has {dataset.left_out}" if dataset.left_out else ""
    classes = tuple(categories.get(number, f"unused {number}") for number in ids)
    return dataset, DatasetInfo(Path(os.path.abspath(root)).name, classes, NORMALIZATIONS["imagenet"], left_out, ids)


def _annotations(name: str, root: str, split: str) -> Annotations:
    file = _file(root, split)
    if not file.exists():
        raise ValueError(f"{name}: DATA.ROOT {printable(root)} has no file {file.relative_to(root)}")
    return read_annotations(file)


def _file(root: str, split: str) -> Path:
    return Path(root) / "annotations" / f"instances_{FOLDERS[split]}.json"


def _refuse_other_categories(name: str, root: str, train: dict[int, str], test: dict[int, str]) -> None:
    odd = sorted(train.items() ^ test.items())
    if odd:
        places = ["training" if train.get(number) == text else "test" for number, text in odd]
        which = [f"{number} {text} ({place} split only)" for (number, text), place in zip(odd, places, strict=True)]
        raise ValueError(f"{name}: DATA.ROOT {printable(root)}: the splits differ in categories: {first_of(which)}")


def _unnamed(folder: Path, files: list[str]) -> int:
    """Return the number of images in the folder that are not named. Raises ValueError if a named one is missing."""
    there: set[str] = set()
    for part in {os.path.dirname(name) for name in files}:
        if (folder / part).is_dir():
            there.update(os.path.join(part, name) for name in os.listdir(folder / part))
    absent = sorted(set(files) - there)
    if absent:
        raise ValueError(
            f"{len(absent)} images of the annotations are not in {printable(str(folder))}: {first_of(absent)}"
        )
    return sum(ending(name) in IMG_EXTENSIONS for name in there - set(files))


def _not_trained_on(crowd: np.ndarray, learned: np.ndarray) -> list[str]:
    """Return texts on the boxes that are not trained on."""
    crowds, empty = int(crowd.sum()), int((~learned & ~crowd).sum())
    parts = [f"{crowds} boxes of crowds that are not trained on"] if crowds else []
    return parts + ([f"{empty} boxes without extent in the image that are not trained on"] if empty else [])
