"""Make teachers fast, as far as they go on naming the same classes.

Shapes: B batch, H height, W width.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from pycls_std.engine.runtime import DTYPES, Runtime
from pycls_std.models.folding import fold_batch_norms
from pycls_std.models.teacher import Teacher
from pycls_std.process.errors import one_line

IMAGES = 1000  # of the test split that a teacher is tried on, by all processes together
LEAST = 99.0  # percent of them that it must name as it does in plain fp32


class Way(NamedTuple):
    """A way to compute a teacher."""

    backbone: nn.Module
    folded: int  # batch norms
    precision: str

    def __str__(self):
        return f"{self.folded} batch norms folded, {self.precision}"


def settle_teachers(
    cfg, teachers: list[Teacher], loader: DataLoader, runtime: Runtime, *, fall_back: bool = True
) -> list[str]:
    """Fold and convert teachers that are on the device, as the options ask; return a line on each.

    loader: of this process's share of the test split, on whose first images each teacher is compared with what it is in
    plain fp32. Where it names too many of them otherwise, and TEACHER_PRECISION is auto, it stays in fp32, and if that
    does not help as it is. fall_back: without, it is only said; for random weights, whose classes are near each other.
    All processes decide alike. Fingerprints are taken before: the weights are others afterwards.
    """
    options = cfg.DISTILLATION
    named = options.TEACHER_PRECISION != "auto"
    precision = options.TEACHER_PRECISION if named else cfg.PRECISION
    size = cfg.DATA.IMAGE_SIZE
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    lines = []
    for index, teacher in enumerate(teachers):
        plain = Way(teacher.backbone, 0, "fp32")
        ways = [plain]
        if options.TEACHER_FOLD and options.TEACHER_BN == "eval":
            own = teacher.own_input(*runtime.to_device((noise,)))
            backbone, folded = fold_batch_norms(plain.backbone, own)
            ways = [Way(runtime.place(backbone), folded, "fp32"), plain] if folded else ways
        if precision != "fp32":
            low = runtime.convert(copy.deepcopy(ways[0].backbone), precision)
            ways.insert(0, ways[0]._replace(backbone=low, precision=precision))
        choice = ways if fall_back and not named else ways[:1]
        way, found = _first_that_agrees(teacher, choice, plain, loader, runtime)
        _settle(teacher, way, runtime)
        lines.append(f"teacher {index} {teacher.name}: {way}{found}")
    return lines


def let_teach(cfg, teachers: list[Teacher]) -> None:
    """Let teachers, scored by the statistics they were trained with, teach by those that TEACHER_BN asks for."""
    if cfg.DISTILLATION.TEACHER_BN == "batch":
        for teacher in teachers:
            teacher.use_batch_statistics()


def _first_that_agrees(teacher, ways, plain, loader, runtime) -> tuple[Way, str]:
    """Return the first way that agrees with the plain one, or the last, and what was found of those tried."""
    rejected = ""
    for way in ways:
        if way is plain:
            break
        same, found = _agreement(teacher, way, plain, loader, runtime)
        if same >= LEAST or way is ways[-1]:
            return way, f"; {found}{rejected}"
        rejected += f"; not with {way}: {found}"
    return plain, rejected


def _agreement(teacher, way, plain, loader, runtime) -> tuple[float, str]:
    """Return for how many images, in percent, both ways name the same class, and that in words."""
    most = math.ceil(IMAGES / runtime.world.size)  # of this process
    same = count = 0
    failure = ""
    for images, *_ in loader:
        (images,) = runtime.to_device((images[: most - count],))
        count += len(images)
        try:
            same = same + (_classes(teacher, way, images, runtime) == _classes(teacher, plain, images, runtime)).sum()
        except (RuntimeError, TypeError) as error:  # such as an operation that there is not in this precision
            failure = f" ({one_line(error)})"  # the others wait below, so this process must come there too
        if count >= most:
            break
    same, count = runtime.world.sum(torch.tensor([float(same), float(count)])).tolist()
    same = 100 * same / count
    return same, f"same class as in fp32 for {same:.2f} % of {count:.0f} test images{failure}"


def _classes(teacher, way, images, runtime):
    _settle(teacher, way, runtime)
    return teacher(images).logits.argmax(dim=1)


def _settle(teacher, way, runtime):
    teacher.settle(way.backbone, dtype=DTYPES[way.precision], precision=runtime.full_precision)
