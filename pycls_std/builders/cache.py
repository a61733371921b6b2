"""Build the cache of teacher outputs from the options; its folders are named by a hash of all they depend on."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision
from torch.utils.data import Subset

from pycls_std.builders.data import PLAIN_BATCH, Data, plain_batches, training_images
from pycls_std.builders.models import DescribedTeacher, describe_teachers
from pycls_std.builders.views import data_seed
from pycls_std.builders.weights import Weights
from pycls_std.datasets.memory.views import VERSION, MemoryViews
from pycls_std.engine.checkpoint import fingerprint
from pycls_std.engine.loop import Session
from pycls_std.models.describe import Description
from pycls_std.teachers.cache import CachedTeachers, CacheSpec, free_space
from pycls_std.teachers.offline import OfflineTeachers, offline_order, precompute_outputs, precomputed_file
from pycls_std.teachers.outputs import LiveTeachers
from pycls_std.teachers.packing import entry_type
from pycls_std.teachers.teacher import Request

LOG = logging.getLogger("pycls_std")
# Options of AUG that do not change the images that teachers see.
UNSEEN = ("LABEL_SMOOTHING",)
WRITE_LAG = 3  # steps by which writing lags behind CUDA; each keeps the teacher outputs of a batch in pinned memory


def check_cache(cfg, live: LiveTeachers, *, data: Data, in_memory: bool, weights: list[Weights]) -> None:
    """Check whether the outputs of these teachers can be cached, as far as is known before they are run.

    in_memory: whether the training images are. Raises ValueError that names the options, and OSError that names the
    folder if it is not writable.
    """
    options = cfg.DISTILLATION
    if not options.CACHE:
        return
    if not options.OFFLINE and not in_memory:
        raise ValueError(f"DISTILLATION.CACHE is {options.CACHE}, the images are not in memory (DATA.LOADER)")
    if options.OFFLINE and not data.task.pipeline(normalization=data.normalization).batched:
        raise ValueError(f"DISTILLATION.OFFLINE is True, views of TASK.NAME {cfg.TASK.NAME} are no crops of one size")
    _entries(cfg, live, data.task, weights)
    free_space(Path(options.CACHE))


def build_cache(
    cfg, *, session: Session, data: Data, weights: list[Weights], epochs: range
) -> CachedTeachers | OfflineTeachers | None:
    """Return the cache of the teachers' outputs, None if DISTILLATION.CACHE is off.

    session: with teachers that are already optimized and in their batch norm mode. epochs: those to come, counted from
    0. The log says what is in the cache and what will be written.
    Raises ValueError if there is not enough disk space, and, without OFFLINE, for images that are not in memory: only
    for images in memory are all pixels known, and so whether another run sees the same views.
    """
    options = cfg.DISTILLATION
    if not options.CACHE:
        return None
    check_cache(cfg, session.teacher_outputs, data=data, in_memory=data.in_memory, weights=weights)
    if options.OFFLINE:
        return _offline(cfg, session, data, weights)
    views = session.train_loader.dataset
    assert isinstance(views, MemoryViews), "see check_cache"
    seen = {
        "images": views.fingerprint(),
        "normalization": data.normalization,
        "size": cfg.DATA.IMAGE_SIZE,
        "augmentation": {key: value for key, value in sorted(cfg.AUG.items()) if key not in UNSEEN},
        "seed": data_seed(cfg),
        "batch_size": cfg.TRAIN.BATCH_SIZE,
    }
    world = session.runtime.world
    if world.size > 1:  # which views are in which rank's files
        seen["shares"] = world.gather(world.positions(cfg.TRAIN.BATCH_SIZE))
    specs = _specs(cfg, seen, session, data, weights)
    images = len(session.train_loader) * session.train_loader.batch_size
    lag = WRITE_LAG if session.runtime.device.type == "cuda" else 0
    cached = CachedTeachers(session.teacher_outputs, specs, views=images, world=world, lag=lag)
    LOG.info("DISTILLATION.CACHE %s: %s", options.CACHE, cached.check_room(epochs))
    return cached


def _offline(cfg, session, data, weights) -> OfflineTeachers:
    """Return precomputed outputs of the teachers for the plain images, from which those of each view are derived.

    Missing files are computed and written first, by rank 0. Images that are not in memory are identified as in
    `_contents`.
    """
    folder, live, runtime = cfg.DISTILLATION.CACHE, session.teacher_outputs, session.runtime
    pipeline = data.task.pipeline(normalization=data.normalization)
    views = session.train_loader.dataset
    seen = {
        "images": views.fingerprint() if isinstance(views, MemoryViews) else _contents(cfg, data),
        "number": data.images,
        "interpolation": cfg.DATA.INTERPOLATION,
        "fit": pipeline.whole_fit,
        "normalization": data.normalization,
        "batch": [PLAIN_BATCH, "permuted"],  # whose statistics batch norms use with TEACHER_BN batch
        "decoded by": [torchvision.__version__, PIL.__version__],
    }
    specs = _specs(cfg, seen, session, data, weights)

    def keep():
        """Write the missing files, if there is enough disk space."""
        missing = [spec for spec in specs if not precomputed_file(spec.folder).exists()]
        needed = sum(data.images * spec.kind.itemsize for spec in missing) / 2**20
        free = free_space(specs[0].folder) / 2**20
        if needed > free:
            raise ValueError(f"DISTILLATION.CACHE {folder} has {free:.1f} MiB free, {needed:.1f} are needed")
        there = f"{len(specs) - len(missing)} of {len(specs)} files are there and will be read (one for each teacher)"
        written = f", {len(missing)} will be written, of {data.images} images each, {needed:.1f} MiB in all"
        LOG.info("DISTILLATION.CACHE %s: %s%s", folder, there, written if missing else "")
        for spec, teacher, request in zip(specs, live.teachers, live.requests, strict=True):
            plain = plain_batches(cfg, data, teacher.image_size, offline_order(data.images))
            images = (runtime.to_device(loaded.images) for loaded in plain)
            precompute_outputs(spec, teacher, request, images, data.images, runtime.autocast)

    runtime.world.rank_zero_first(keep)
    return OfflineTeachers(specs, images=data.images)


def _contents(cfg, data: Data) -> list:
    """Return what identifies the training images: names, labels and sizes of their files, or a hash of their pixels."""
    dataset = training_images(cfg)
    whole: Any = dataset
    chosen: Sequence[int] = range(len(dataset))
    if isinstance(dataset, Subset):
        whole, chosen = dataset.dataset, dataset.indices
    images: list
    if hasattr(whole, "samples"):  # files, whose names and sizes are known without reading them
        pairs = [whole.samples[index] for index in chosen]
        images = [[*Path(path).parts[-2:], label, Path(path).stat().st_size] for path, label in pairs]
    else:
        digest = hashlib.sha256()
        for image, _ in (whole[index] for index in chosen):
            digest.update(f"{image.mode} {image.size}".encode())
            digest.update(image.tobytes())
        images = [digest.hexdigest()]
    return [data.info.name, *data.info.classes, *images]


def _specs(cfg, seen: dict, session, data, weights) -> list[CacheSpec]:
    """Return where the outputs of each teacher are cached; folder names have a hash of all that they depend on."""
    options, live = cfg.DISTILLATION, session.teacher_outputs
    seen |= {
        "version": VERSION,
        "versions": [torch.__version__, timm.__version__, np.__version__],  # numpy's permutations order the images
        "device": session.runtime.device_name() if session.runtime.device.type == "cuda" else "cpu",
        "threads": session.runtime.threads if session.runtime.device.type == "cpu" else 0,
    }
    if cfg.CUDA.TF32 and session.runtime.device.type == "cuda":
        seen["tf32"] = True
    if cfg.CUDA.DETERMINISTIC and session.runtime.device.type == "cuda":
        seen["deterministic"] = True
    if session.runtime.wide_attention and cfg.TRAIN.COMPILE in ("off", "auto"):
        seen["bf16"] = "products in fp32" if session.runtime.wide_products else "attention in fp32"
    specs = []
    entries = _entries(cfg, live, data.task, weights)
    for teacher, (description, shapes, kind) in zip(live.teachers, entries, strict=True):
        args = {name: value for name, value in description.args.items() if name != "norm_eps"}  # `modules` has it
        own = {
            "weights": fingerprint(teacher, args),
            "size": teacher.image_size,
            "resize": "bilinear",
            "modules": repr(teacher),
            "entries": str(kind),
        }
        key = hashlib.sha256(json.dumps([seen, own]).encode()).hexdigest()[:16]
        specs.append(CacheSpec(Path(options.CACHE) / f"{teacher.name}-{key}", shapes, kind))
    return specs


def _entries(cfg, live, task, weights) -> list[tuple[DescribedTeacher, dict[str, tuple[int, ...]], np.dtype]]:
    """Return for each teacher its description, the shapes of the requested outputs, and the type of a cache entry."""
    options = cfg.DISTILLATION
    if options.CACHE_TOP and not any(request.head for request in live.requests):
        raise ValueError(f"DISTILLATION.CACHE_TOP is {options.CACHE_TOP}, expected 0, for no term reads logits")
    found = []
    for request, description in zip(live.requests, describe_teachers(cfg, task.classes, weights), strict=True):
        shapes = output_shapes(description, request)
        found.append((description, shapes, entry_type(shapes, options.CACHE_PRECISION, options.CACHE_TOP)))
    return found


def output_shapes(description: Description, request: Request) -> dict[str, tuple[int, ...]]:
    """Return the shape of each requested output of a teacher, without the batch, see `packing.entry_type`."""
    shapes = {f"head:{name}": shape for name, shape in description.heads.items()} if request.head else {}
    for tap in request.taps:
        shapes[f"tap:{tap}"] = description.shape(tap)
    return shapes
