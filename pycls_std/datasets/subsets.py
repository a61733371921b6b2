"""Parts of a training split: what is held out to choose an epoch by, and the first images, of each class or of all."""

import numpy as np
from torch.utils.data import Subset

from pycls_std.core.structures import ImageSet

SEED = 0  # of what is held out: the same images whatever the seed of a run


def known(dataset: ImageSet, name: str) -> np.ndarray | None:
    """Return what a dataset knows of each image without reading it, by the name of the attribute; None if nothing."""
    if isinstance(dataset, Subset):
        of_all = known(dataset.dataset, name)  # type: ignore[arg-type]  # see `_subset`
        return None if of_all is None else of_all[dataset.indices]
    found = getattr(dataset, name, None)
    return None if found is None else np.asarray(found)


def training_parts(
    dataset: ImageSet, *, val_fraction: float = 0.0, per_class: int = 0, images: int = 0
) -> tuple[ImageSet, ImageSet | None]:
    """Return what is trained on, and what is held out, None if nothing is; each in the dataset's order.

    val_fraction: share of each class that is held out, drawn once for all runs; at least one image. Of a dataset whose
    targets are no classes, that share of all images. per_class: images of each class to train on, the first ones that
    are not held out; 0 = all. images: likewise, without regard to class. So a run on few images holds out the same ones
    as a run on all of them.
    Raises ValueError if nothing of a class is left to train on, and for more images than there are.
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
    return Subset(dataset, places)  # type: ignore[arg-type]  # it asks for no more than images by their index


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
    """Return the classes that a dataset knows without reading its images, [] if it knows none, or has no classes."""
    if hasattr(dataset, "samples"):
        known = [label for _, label in dataset.samples]
    else:
        given = next((own for name in ("targets", "labels") if (own := getattr(dataset, name, None)) is not None), ())
        known = np.asarray(given).tolist() if hasattr(given, "dtype") else list(given)  # torchvision has tensors, too
    return known if all(isinstance(label, (int, np.integer)) for label in known) else []
