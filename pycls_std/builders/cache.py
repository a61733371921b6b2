"""Build the teacher cache from the options: what its files depend on decides where they lie."""

import hashlib
import json
from pathlib import Path

import timm
import torch

from pycls_std.builders.data import Data, data_seed
from pycls_std.datasets.memory.views import VERSION, MemoryViews
from pycls_std.engine.checkpoint import fingerprint
from pycls_std.engine.kept_logits import form
from pycls_std.engine.loop import Session
from pycls_std.engine.teacher_cache import TeacherCache

# Options that do not change the images that teachers see.
UNSEEN = ("LABEL_SMOOTHING",)


def build_cache(cfg, *, session: Session, data: Data) -> TeacherCache | None:
    """Return the cache of a session whose teachers are as they will teach; None if DISTILLATION.CACHE is off.

    Raises ValueError if the images are not in memory: only then is every pixel of them known, and so whether they are
    the same as those of another run.
    """
    options = cfg.DISTILLATION
    if not options.CACHE:
        return None
    views, teachers = session.train_loader.dataset, session.trainer.teachers
    if not isinstance(views, MemoryViews):
        raise ValueError(f"DISTILLATION.CACHE is {options.CACHE}, the images are not in memory (DATA.LOADER)")
    classes = len(data.info.classes)
    kind = form(options.CACHE_PRECISION, classes, options.CACHE_TOP)
    seen = {
        "version": VERSION,
        "images": views.fingerprint(),
        "normalization": data.normalization,
        "size": cfg.DATA.IMAGE_SIZE,
        "versions": [torch.__version__, timm.__version__],
        "device": session.runtime.device.type,
        "augmentation": {key: value for key, value in sorted(cfg.AUG.items()) if key not in UNSEEN},
        "seed": data_seed(cfg),
        "batch_size": cfg.TRAIN.BATCH_SIZE,
        "entries": str(kind),
    }
    folders = []
    for teacher in teachers:
        own = {
            "weights": fingerprint(teacher),
            "size": teacher.image_size,
            "resize": "bilinear",
            "modules": repr(teacher),
        }
        key = hashlib.sha256(json.dumps([seen, own]).encode()).hexdigest()[:16]
        folders.append(Path(options.CACHE) / f"{teacher.name}-{key}")
    images = len(session.train_loader) * session.train_loader.batch_size
    return TeacherCache(teachers, folders, views=images, kind=kind, runtime=session.runtime)
