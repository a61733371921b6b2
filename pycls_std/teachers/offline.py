"""What teachers say of the plain training images, computed once and cut as the views of the images are.

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
    """Says of each view what the teachers said of its image, features cropped and mirrored as the view is.

    Heads are those of the whole image. specs: one for each teacher, each with a file of N entries, in `offline_order`.
    Source: Li et al., ECCV 2022 (the offline variant of locality guidance).
    """

    def __init__(self, specs: list[CacheSpec], *, images: int):
        self.specs = specs
        self.places = np.argsort(offline_order(images))  # of each training image in the files
        self.entries = [read_entries(precomputed_file(spec.folder), images, spec.kind) for spec in specs]

    def __call__(self, batch: Batch, progress: Progress) -> list[Output]:
        """Return what each teacher says; the batch must say which images it has, and what part of each is seen."""
        places, crop = self.places[batch.loaded.places], batch.loaded.crop
        assert isinstance(batch.images, Tensor) and crop is not None, "the views are crops, and recorded"
        outputs = []
        for spec, entries in zip(self.specs, self.entries, strict=True):
            whole = unpack(np.array(entries[places]), spec.shapes, batch.images.device)
            maps = {name: f if f.ndim < 4 else crop_features(f, crop) for name, f in whole.features.items()}
            outputs.append(Output(whole.heads, maps))
        return outputs

    def close(self) -> None:
        """Leave nothing unfinished: everything is there before the first step."""


def offline_order(images: int) -> list[int]:
    """Return the positions of all training images, permuted, always alike.

    In this order they are given to the teachers: many datasets are sorted by class, and a batch norm that takes the
    statistics of each batch (TEACHER_BN) must not see one class alone.
    """
    return np.random.default_rng(0).permutation(images).tolist()


def precomputed_file(folder: Path) -> Path:
    """Return the file of a teacher's entries, in `offline_order`."""
    return folder / "images.npy"


def precompute_outputs(
    spec: CacheSpec, teacher: Teacher, request: Request, batches: Iterable[Tensor], images: int, context: Callable
) -> None:
    """Write what a teacher says of all training images, if it is not there already.

    batches: of plain images (B, 3, H, W), in `offline_order`. context: makes that of a forward pass.
    Raises OSError that names the file if it cannot be written; nothing of it is then left.
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
    """Return the parts of feature maps that crops of their images show, at the maps' own size.

    features: (B, C, H, W). crop: (B, 5), see `datasets.crops`. Where a crop falls on whole places of the map, this is
    the crop of the map, bilinearly resized. What a crop shows beyond its image is 0.
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
    """Return where the places of a cut map lie, (B, size), as shares of the whole; none sees beyond the crop."""
    steps = (torch.arange(size, device=start.device) + 0.5) / size
    half = torch.full_like(length, 0.5 / size).minimum(length / 2)
    places = start[:, None] + length[:, None] * steps
    return places.maximum((start + half)[:, None]).minimum((start + length - half)[:, None])
