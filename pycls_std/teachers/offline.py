"""Teacher outputs for the unaugmented training images, computed once; features are cropped as the views are.

Shapes: B views of a batch, N training images, C channels, H height, W width.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from pycls_std.core.structures import Batch, Output, Progress
from pycls_std.teachers.cache import CacheSpec
from pycls_std.teachers.entries import EntryWriter, read_entries, remove_stale
from pycls_std.teachers.packing import pack, unpack
from pycls_std.teachers.teacher import Request, Teacher


class OfflineTeachers:
    """Precomputed teacher outputs of each view's image, with features cropped and flipped as the view is.

    Heads are those of the whole image. specs: one for each teacher, each with a file of N entries, in `offline_order`.
    Source: Li et al., ECCV 2022 (the offline variant of locality guidance).
    """

    def __init__(self, specs: list[CacheSpec], *, images: int):
        self.specs = specs
        self.places = np.argsort(offline_order(images))  # position of each training image in the files
        self.entries = [read_entries(precomputed_file(spec.folder), images, spec.kind) for spec in specs]

    def __call__(self, batch: Batch, progress: Progress) -> list[Output]:
        """Return each teacher's outputs; the batch must have the index and the crop of each image."""
        places, crop = self.places[batch.loaded.places], batch.loaded.crop
        assert isinstance(batch.images, Tensor) and crop is not None, "the views are crops, and recorded"
        outputs = []
        for spec, entries in zip(self.specs, self.entries, strict=True):
            whole = unpack(np.array(entries[places]), spec.shapes, batch.images.device)
            maps = {name: f if f.ndim < 4 else crop_features(f, crop) for name, f in whole.features.items()}
            outputs.append(Output(whole.heads, maps))
        return outputs

    def close(self) -> None:
        """Do nothing: the files are complete before the first step."""


def offline_order(images: int) -> list[int]:
    """Return a fixed permutation of the positions of all training images.

    The teachers process the images in this order: many datasets are sorted by class, and a batch norm that uses batch
    statistics (TEACHER_BN) must not see a single class.
    """
    return np.random.default_rng(0).permutation(images).tolist()


def precomputed_file(folder: Path) -> Path:
    """Return the file of a teacher's entries, in `offline_order`."""
    return folder / "images.npy"


def precompute_outputs(
    spec: CacheSpec, teacher: Teacher, request: Request, batches: Iterable[Tensor], images: int, context: Callable
) -> None:
    """Write a teacher's outputs for all training images, unless the file exists.

    batches: of unaugmented images (B, 3, H, W), in `offline_order`. context: makes the context of a forward pass.
    Raises OSError that names the file if it cannot be written; no partial file is left.
    """
    remove_stale(spec.folder)
    path = precomputed_file(spec.folder)
    if path.exists():
        return
    writer = EntryWriter(path, images, spec.kind)
    try:
        for plain in batches:
            with context():
                writer.write(pack(teacher(plain, request), spec.kind))
    finally:
        writer.abandon()


def crop_features(features: Tensor, crop: Tensor) -> Tensor:
    """Return the parts of feature maps that crops of their images cover, resized to the maps' size.

    features: (B, C, H, W). crop: (B, 5), see `datasets.crops`. If a crop is aligned with the map's grid, this is the
    crop of the map, bilinearly resized. What lies outside the image is 0.
    """
    top, left, height, width, mirrored = crop.float().unbind(dim=1)
    y = _places(top, height, features.shape[2])
    x = _places(left, width, features.shape[3])
    x = torch.where(mirrored[:, None] > 0.5, x.flip(1), x)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
    inside = ((grid >= 0) & (grid <= 1)).all(dim=3)
    cut = grid_sample(features.float(), 2 * grid - 1, padding_mode="border", align_corners=False)
    return cut * inside.unsqueeze(1)


def _places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return the positions of a cropped map, (B, size), as fractions of the whole; none reads beyond the crop."""
    steps = (torch.arange(size, device=start.device) + 0.5) / size
    half = torch.full_like(length, 0.5 / size).minimum(length / 2)
    places = start[:, None] + length[:, None] * steps
    return places.maximum((start + half)[:, None]).minimum((start + length - half)[:, None])
