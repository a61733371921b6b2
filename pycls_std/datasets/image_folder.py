"""Folders of images, one for each class: ImageNet, or any data of your own.

Layout: root/train/<class>/<image> and root/val/<class>/<image> (or root/test). What is hidden is passed over.
"""

from functools import partial
from pathlib import Path

from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from pycls_std.core.registry import DATASETS
from pycls_std.core.structures import DatasetInfo
from pycls_std.datasets.decoding import open_image
from pycls_std.datasets.normalizations import NORMALIZATIONS


class VisibleFolders(ImageFolder):
    """torchvision's ImageFolder without hidden folders such as .ipynb_checkpoints, and hidden files such as ._1.png."""

    def __init__(self, folder: Path):
        super().__init__(folder, loader=open_image, is_valid_file=partial(_is_visible_image, folder))

    def find_classes(self, directory) -> tuple[list[str], dict[str, int]]:
        """Return the class folders in alphabetical order, and the number of each."""
        folders = sorted(f.name for f in Path(directory).iterdir() if f.is_dir() and not f.name.startswith("."))
        if not folders:
            raise ValueError(f"{directory} has no class folders")
        return folders, {name: index for index, name in enumerate(folders)}


def _is_visible_image(folder: Path, path: str) -> bool:
    hidden = any(part.startswith(".") for part in Path(path).relative_to(folder).parts)
    return not hidden and has_file_allowed_extension(path, IMG_EXTENSIONS)


def read_folders(folder: Path) -> ImageFolder:
    """Return the images of a folder of class folders. Raises ValueError that names the folder and the empty classes."""
    try:
        return VisibleFolders(folder)
    except FileNotFoundError as error:
        raise ValueError(f"image folder {folder}: {error}".splitlines()[0]) from error


@DATASETS.register("image_folder")
def image_folder(*, root: str, split: str) -> tuple[Dataset, DatasetInfo]:
    """Return root/train, or for the test split root/val, or root/test where there is no val."""
    names = ("train",) if split == "train" else ("val", "test")
    folder = next((Path(root) / name for name in names if (Path(root) / name).is_dir()), None)
    if folder is None:
        raise ValueError(f"image_folder: DATA.ROOT {root} has no folder {' or '.join(names)}")
    dataset = read_folders(folder)
    return dataset, DatasetInfo(Path(root).name, tuple(dataset.classes), NORMALIZATIONS["imagenet"])
