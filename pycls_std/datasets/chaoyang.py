"""Chaoyang: patches of colon slides in 4 classes, 512x512 pixels, 4,021 for training and 2,139 for testing.

Layout: root/chaoyang/train.json and test.json, each a list of {"name": "train/<image>.JPG", "label": 0}, names relative
to root/chaoyang; other keys, such as the labels of each pathologist, are not read.
Source: Zhu et al., Hard Sample Aware Noise Robust Learning for Histopathology Image Classification, TMI 2021. Its
licence forbids redistribution, so the images are not downloaded.
"""

import json
from pathlib import Path

from pycls_std.core.registry import DATASETS
from pycls_std.core.regular import read_bytes
from pycls_std.core.structures import DatasetInfo, ImageSet
from pycls_std.core.text import printable, shortened
from pycls_std.datasets.labelled_files import LabelledFiles
from pycls_std.datasets.normalizations import NORMALIZATIONS

PAGE = "https://bupt-ai-cz.github.io/HSA-NRL/"
CLASSES = ("normal", "serrated", "adenocarcinoma", "adenoma")  # by label
IMAGES = {"train": 4021, "test": 2139}  # of the original


@DATASETS.register("chaoyang")
def chaoyang(*, root: str, split: str) -> tuple[ImageSet, DatasetInfo]:
    """Return the images that root/chaoyang/<split>.json lists. Raises ValueError if it is missing or invalid."""
    path = Path(root) / "chaoyang" / f"{split}.json"
    if not path.exists():
        raise ValueError(
            f"chaoyang: there is no {printable(str(path))}; ask for the data at {PAGE} and unpack it into DATA.ROOT "
            f"{printable(root)}, as chaoyang"
        )
    try:
        samples = _samples(json.loads(read_bytes(path)), path.parent)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"chaoyang: {printable(str(path))}: {error}") from error
    number, original = len(samples), IMAGES[split]
    less = f"chaoyang: {path.name} lists {number} images, the original {original}" if number != original else ""
    return LabelledFiles(samples), DatasetInfo("chaoyang", CLASSES, NORMALIZATIONS["imagenet"], left_out=less)


def _samples(entries, folder: Path) -> list[tuple[str, int]]:
    """Return paths and labels. Raises ValueError that names the first invalid entry."""
    if not isinstance(entries, list) or not entries:
        raise ValueError("it is no list of images")
    samples = []
    for place, entry in enumerate(entries):
        name = _value(entry, place, "name", "a file below this folder", _is_below)
        samples.append((str(folder / name), _value(entry, place, "label", f"0 to {len(CLASSES) - 1}", _is_label)))
    return samples


def _value(entry, place: int, key: str, expected: str, is_one):
    """Return the value of an entry's key. Raises ValueError if it is missing or invalid."""
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"entry {place} has no {key}")
    if not is_one(entry[key]):
        shown = shortened(printable(json.dumps(entry[key])), 60)
        raise ValueError(f"entry {place} has the {key} {shown}, expected {expected}")
    return entry[key]


def _is_below(name) -> bool:
    return isinstance(name, str) and name.isprintable() and "" not in name.split("/") and ".." not in name.split("/")


def _is_label(label) -> bool:
    return type(label) is int and 0 <= label < len(CLASSES)
