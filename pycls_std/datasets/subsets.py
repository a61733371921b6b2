"""Subsets of a training split: held-out (validation) images, and the first images, per class or in total."""

import numpy as np
from torch.utils.data import Subset

from pycls_std.core.structures import ImageSet

SEED = 0  # of the held-out images, which are the same for all seeds of a run


def known(dataset: ImageSet, name: str) -> np.ndarray | None:
    """Return a dataset's attribute with a value for each image, known without reading it; None if it has none."""
    if isinstance(dataset, Subset):
        of_all = known(dataset.dataset, name)  # type: ignore[arg-type]  # see `_subset`
        return None if of_all is None else of_all[dataset.indices]
    found = getattr(dataset, name, None)
    return None if found is None else np.asarray(found)


def training_parts(
    dataset: ImageSet, *, val_fraction: float = 0.0, per_class: int = 0, images: int = 0
) -> tuple[ImageSet, ImageSet | None]:
    """Return the training images and the held-out ones, None without; each in the dataset's order.

    val_fraction: fraction of each class that is held out, the same images for all runs; at least one per class. If
    targets are not classes, that fraction of all images. per_class: number of training images of each class, the first
    ones that are not held out; 0 = all. images: likewise, regardless of class. So a run on few images has the same
    held-out images as a run on all.
    Raises ValueError if no training image of a class is left, and if more images are requested than there are.
    """
    kept: list[int] = list(range(len(dataset)))
    held = None
    if val_fraction:
        chosen = _held_out(dataset, val_fraction)
        kept, held = [index for index in kept if index not in chosen], _subset(dataset, sorted(chosen))
    if per_class:
        kept = _first_of_each_class(_labels(dataset), kept, per_class)
    if images > len(kept):
        raise ValueError(f"DATA.IMAGES is {images}, there are {len(kept)} images to train on")
    kept = kept[: images or None]
    return (_subset(dataset, kept) if held or per_class or images else dataset), held


def _subset(dataset: ImageSet, places: list[int]) -> Subset:
    return Subset(dataset, places)  # type: ignore[arg-type]  # it only accesses images by index


def _held_out(dataset: ImageSet, fraction: float) -> set[int]:
    labels = np.asarray(known_labels(dataset) or [0] * len(dataset))
    draws, chosen = np.random.default_rng(SEED), set()
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = max(1, round(fraction * len(own)))
        if count >= len(own):
            raise ValueError(
                f"DATA.VAL_FRACTION is {fraction}, which leaves nothing of the {len(own)} images of class {label} to "
                "train on"
            )
        chosen.update(draws.permutation(own)[:count].tolist())
    return chosen


def _first_of_each_class(labels: list, kept: list[int], count: int) -> list[int]:
    taken, chosen = dict.fromkeys(labels, 0), []
    for index in kept:
        if taken[labels[index]] < count:
            taken[labels[index]] += 1
            chosen.append(index)
    short = [label for label, number in taken.items() if number < count]
    if short:
        raise ValueError(f"DATA.PER_CLASS is {count}, class {short[0]} has {taken[short[0]]} training images")
    return chosen


def _labels(dataset: ImageSet) -> list:
    return known_labels(dataset) or [dataset[index][1] for index in range(len(dataset))]


def known_labels(dataset: ImageSet) -> list:
    """Return the labels that a dataset knows without reading its images, [] if none, or if they are not classes."""
    if hasattr(dataset, "samples"):
        known = [label for _, label in dataset.samples]
    else:
        given = next((own for name in ("targets", "labels") if (own := getattr(dataset, name, None)) is not None), ())
        known = np.asarray(given).tolist() if hasattr(given, "dtype") else list(given)  # torchvision has tensors, too
    return known if all(isinstance(label, (int, np.integer)) for label in known) else []
