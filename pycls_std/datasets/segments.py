"""Segmentations of images: the class of each pixel, from the outlines of the objects.

Shapes: H height, W width, m annotations of an image.
"""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from torchvision.tv_tensors import Mask

from pycls_std.core.structures import ImageSet
from pycls_std.core.text import printable, shortened
from pycls_std.datasets.box_targets import trained_on
from pycls_std.datasets.coco_file import Annotations

BACKGROUND = 0  # of a segmentation; class k is k + 1


class Outlines:
    """The outlines of all annotations, run-length encoded. Raises ValueError for an annotation without one.

    segmentations: polygons or run-length encodings in COCO's format, None for none, in the order of the annotations;
    those of crowds are not needed.
    """

    def __init__(self, segmentations: list, annotations: Annotations):
        self.starts = annotations.starts
        self.counts = []
        for image, (height, width) in enumerate(annotations.sizes.tolist()):
            for row in range(annotations.starts[image], annotations.starts[image + 1]):
                try:
                    counts = None if annotations.crowd[row] else _counts(segmentations[row], height, width)
                except (ValueError, TypeError, KeyError, RuntimeError) as error:
                    name = printable(annotations.files[image])
                    raise ValueError(
                        f"an annotation of image {name} has no segmentation that can be read: {error}"
                    ) from error
                self.counts.append(counts)

    def masks(self, image: int, size: tuple[int, int]) -> list[np.ndarray | None]:
        """Return the mask of each object of an image, (H, W) of 0 and 1; None for a crowd."""
        runs = _runs()
        own = self.counts[self.starts[image] : self.starts[image + 1]]
        return [None if counts is None else runs.decode({"size": list(size), "counts": counts}) for counts in own]


def _counts(segmentation, height: int, width: int) -> bytes:
    """Return the run-length encoding of polygons, or of runs in another format. Raises some error if it is invalid."""
    runs = _runs()
    if segmentation is None:
        raise ValueError("there is none")
    if isinstance(segmentation, list) and all(isinstance(each, list) and len(each) >= 6 for each in segmentation):
        return runs.merge(runs.frPyObjects(segmentation, height, width))["counts"]
    if not isinstance(segmentation, dict):
        raise ValueError(f"it is {shortened(printable(str(segmentation)), 60)}")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"it is of {segmentation['size']} places, the image has {height} x {width} pixels")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return runs.frPyObjects(segmentation, height, width)["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def _runs():
    """Return the module that decodes outlines; its import is slow and rarely needed."""
    from faster_coco_eval import mask

    return mask


class Segmented(Dataset):
    """Images whose targets also have `segments` (1, H, W): BACKGROUND, or 1 + the class of the first object there.

    Raises ValueError for a dataset without outlines.
    """

    def __init__(self, dataset: ImageSet):
        self.dataset: Any = dataset  # one with outlines and sizes
        self.places = list(range(len(dataset)))
        if isinstance(dataset, Subset):
            self.dataset, self.places = dataset.dataset, list(dataset.indices)
        if not hasattr(self.dataset, "outlines"):
            raise ValueError(f"{type(self.dataset).__name__} has no outlines of objects")
        self.outlines = self.dataset.outlines()
        self.sizes = np.asarray(self.dataset.sizes)[self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int):
        """Return an image and its target, see `box_targets`, with `segments`."""
        place = self.places[index]
        image, target = self.dataset[place]
        size = (image.height, image.width)
        kept = trained_on(target["truth"], size).tolist()
        masks = [mask for mask, own in zip(self.outlines.masks(place, size), kept, strict=True) if own]
        return image, target | {"segments": Mask(segments_of(masks, target["labels"].tolist(), size)[None])}


def segments_of(masks: list[np.ndarray], labels: list[int], size: tuple[int, int]) -> torch.Tensor:
    """Return the segmentation (H, W) of masks (H, W) each and their classes, int32. The first mask wins overlaps."""
    found = np.full(size, BACKGROUND, dtype=np.int32)
    for mask, label in reversed(list(zip(masks, labels, strict=True))):
        found[mask != 0] = label + 1
    return torch.from_numpy(found)
