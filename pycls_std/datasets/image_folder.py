"""Folders of images, one for each class: ImageNet, or any data of your own.

Layout: root/train/<class>/<image> and root/val/<class>/<image> (or root/test). Hidden files are skipped.
Class folders and images may be links, but not folders within a class, see `folders`.
"""

import os
from collections import Counter
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.core.text import counted, first_of, printable
from pycls_std.datasets import folders
from pycls_std.datasets.labelled_files import LabelledFiles
from pycls_std.datasets.normalizations import NORMALIZATIONS

SPLITS = ("train", "val", "test")


class ClassFolders(LabelledFiles):
    """Pairs of an image, not decoded yet, and a label; classes and images in the order of torchvision's ImageFolder.

    left_out: text on files that are not read; "" for none. untold: suffixes of expected files other than images, which
    are not reported.
    Raises ValueError that names classes without images, and links by which images of one class are in another.
    """

    def __init__(self, folder: Path, *, untold: tuple[str, ...] = ()):
        found = folders.entries(str(folder))
        for entry in found:
            folders.refuse_dangling(entry)  # it may have been meant as a class
        own = {entry.name: entry.path for entry in found if entry.is_dir()}
        if len(own) < 2:
            one = f"only one class folder, {first_of(own)}: there is nothing to tell apart"
            raise ValueError(f"{printable(str(folder))} has {one if own else 'no class folders'}")
        super().__init__([])
        self.classes = list(own)
        linked, unread = self._read(own, untold)
        empty = own.keys() - {self.classes[label] for _, label in self.samples}
        if empty:
            others = folders.unread(sum((unread[name] for name in empty), Counter()))
            which = first_of(sorted(empty)) + (f" ({others})" if others else "")
            raise ValueError(f"image folder {printable(str(folder))}: no image of {which}")
        if linked or any(entry.is_symlink() for entry in found):
            splits = [
                folder.parent / name for name in SPLITS if name != folder.name and (folder.parent / name).is_dir()
            ]
            beside = [each for split in splits for each in folders.entries(str(split))]
            folders.refuse_shared(own, linked, [each.path for each in beside if each.is_dir()])
        loose = sum(not entry.is_dir() and folders.ending(entry.name) in IMG_EXTENSIONS for entry in found)
        parts = [folders.unread(sum(unread.values(), Counter()))]
        parts += [f"{counted(loose, 'image that lies', 'images that lie')} in no class folder"] if loose else []
        self.left_out = "; ".join(filter(None, parts))

    def _read(self, own: dict[str, str], untold: tuple[str, ...]) -> tuple[list[tuple[str, str]], dict[str, Counter]]:
        """Fill the samples; return links to images, with their classes, and counts of other extensions by class."""
        linked: list[tuple[str, str]] = []
        unread: dict[str, Counter] = {name: Counter() for name in own}
        for label, (name, path) in enumerate(own.items()):
            for file in folders.files_below(path):
                if file.ending in IMG_EXTENSIONS:
                    self.samples.append((file.path, label))
                    linked += [(file.path, name)] if file.is_link else []
                elif not file.path.endswith(untold):
                    unread[name][file.ending] += 1
        return linked, unread


@DATASETS.register("image_folder")
def image_folder(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return root/train, or for the test split root/val, or root/test if there is no val."""
    names = ("train",) if split == "train" else ("val", "test")
    name = next((name for name in names if os.path.lexists(Path(root) / name)), None)
    if not Path(root).is_dir():
        raise ValueError(f"image_folder: there is no folder DATA.ROOT {printable(root)}")
    there = [entry.name for entry in folders.entries(root) if entry.is_dir()]
    if name is None:
        has = f"it has {first_of(there)}" if there else "there is none in it"
        raise ValueError(f"image_folder: DATA.ROOT {printable(root)} has no folder {' or '.join(names)}; {has}")
    folder = Path(root) / name
    if not folder.is_dir():
        raise ValueError(f"image_folder: DATA.ROOT {printable(root)}: {name} is no folder")
    dataset = ClassFolders(folder)
    left_out = f"image_folder: {name} has {dataset.left_out}" if dataset.left_out else ""
    used = {"train": "trained on"}.get(split, "tested on")
    spare = [other for other in names if other != name and other in there]
    unused = f"; {spare[0]} is there, too, and not read" if spare else ""
    origin = f"image_folder: {printable(str(folder))} is {used}: {len(dataset)} images{unused}"
    classes, normalization = tuple(dataset.classes), NORMALIZATIONS["imagenet"]
    return dataset, DatasetInfo(Path(root).name, classes, normalization, left_out, origin=origin)
