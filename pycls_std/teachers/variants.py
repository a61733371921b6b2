"""Speed up teachers, as long as their outputs stay the same.

Shapes: B batch, H height, W width.
"""

import copy
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from pycls_std.core.structures import Loaded, Output, take
from pycls_std.engine.runtime import DTYPES
from pycls_std.models.contract import Backbone
from pycls_std.process.errors import one_line
from pycls_std.teachers.folding import fold_batch_norms
from pycls_std.teachers.teacher import Request, Teacher

IMAGES = 1000  # test images that a teacher is compared on, over all processes
LEAST_AGREEMENT = 99.0  # percent of these images on which it must agree with plain fp32
GREATEST_ERROR = 5.0  # of its features, percent of their norm in plain fp32


class TeacherVariant(NamedTuple):
    """A way to compute a teacher."""

    backbone: Backbone
    folded: int  # number of folded batch norms
    precision: str

    def __str__(self):
        return f"{self.folded} batch norms folded, {self.precision}"


class Comparison(NamedTuple):
    """How a variant differs from the plain teacher."""

    agreement: float  # percent of images on which both agree
    error: float  # of the features, percent of their norm; 0 if none are read
    text: str

    @property
    def good(self) -> bool:
        """Whether the variant may replace the plain teacher."""
        return self.agreement >= LEAST_AGREEMENT and self.error <= GREATEST_ERROR


def optimize(
    session, *, image_size: int, precision: str, fold: bool, fixed: bool, loader: Iterable[Loaded] | None = None
) -> list[str]:
    """Fold batch norms of a session's teachers and convert their precision; return a log line for each.

    image_size: of the student. precision: to convert to. fold: whether to fold. loader: of this process's share of the
    test split, by default the session's. On its first images each teacher is compared with itself in plain fp32: its
    predictions, by the task's `agreement`, and the features requested of it. If they differ too much, it stays in fp32,
    and if that is not enough, unfolded too. fixed: differences are only reported.
    All processes make the same decision. Fingerprints must be taken before, since this changes the weights.
    """
    live, runtime = session.teacher_outputs, session.runtime
    loader = loader or session.test_loader
    lines = []
    for index, (teacher, request) in enumerate(zip(live.teachers, live.requests, strict=True)):
        plain = TeacherVariant(teacher.backbone, 0, "fp32")
        variants = [plain]
        if fold:
            noise = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
            own = teacher.own_input(runtime.to_device(noise))
            backbone, folded = fold_batch_norms(plain.backbone, own, request.taps)
            variants = [TeacherVariant(runtime.place(backbone), folded, "fp32"), plain] if folded else variants
        if precision != "fp32":
            low = runtime.convert(copy.deepcopy(variants[0].backbone), precision)
            variants.insert(0, variants[0]._replace(backbone=low, precision=precision))
        trial = Trial(teacher, request._replace(head=True), loader, session)
        chosen, found = _first_good(trial, variants[:1] if fixed else variants, plain)
        trial.use(chosen)
        lines.append(f"teacher {index} {teacher.name}: {chosen}{found}")
    return lines


def _first_good(trial, variants, plain) -> tuple[TeacherVariant, str]:
    """Return the first variant that is as good as the plain one, or the last, and a text on those tried."""
    rejected = ""
    for variant in variants:
        if variant is plain:
            break
        comparison = trial.compare(variant, plain)
        if comparison.good or variant is variants[-1]:
            return variant, f"; {comparison.text}{rejected}"
        rejected += f"; not used, as it is too different: {variant}, {comparison.text}"
    return plain, rejected


class Trial:
    """Compares variants of one teacher on the same images."""

    def __init__(self, teacher: Teacher, request: Request, loader: Iterable[Loaded], session):
        self.teacher = teacher
        self.request = request
        self.loader = loader
        self.runtime = session.runtime
        self.agreement = session.task.agreement

    def use(self, variant: TeacherVariant) -> None:
        """Switch the teacher to a variant."""
        self.teacher.use(variant.backbone, dtype=DTYPES[variant.precision], precision=self.runtime.full_precision)

    def compare(self, variant: TeacherVariant, plain: TeacherVariant) -> Comparison:
        """Return how two variants differ on the images of all processes."""
        world, taps = self.runtime.world, self.request.taps
        most = math.ceil(IMAGES / world.size)  # of this process
        same = count = 0
        errors, sizes = torch.zeros(len(taps)), torch.zeros(len(taps))
        failure = ""
        for loaded in self.loader:
            loaded = take(loaded, slice(most - count))
            images = self.runtime.to_device(loaded.images)
            count += len(loaded.index)
            try:
                expected, found = self._output(plain, images), self._output(variant, images)
                same = same + self.agreement(found, expected).sum()
                for place, tap in enumerate(taps):
                    difference = found.features[tap] - expected.features[tap]
                    errors[place] += difference.double().square().sum().cpu()
                    sizes[place] += expected.features[tap].double().square().sum().cpu()
            except (RuntimeError, TypeError) as error:  # such as an operation that lacks this precision
                failure = f" ({one_line(error)})"  # the other processes wait in the sum below, so go on
            if count >= most:
                break
        same, count, *rest = world.sum(torch.cat([torch.tensor([float(same), count]), errors, sizes])).tolist()
        pairs = zip(rest[: len(taps)], rest[len(taps) :], strict=True)
        each = [100 * math.sqrt(square / size) if size else 0.0 for square, size in pairs]
        worst = float(torch.tensor([0.0, *each]).max())  # NaN if one is NaN
        agreement = 100 * same / count
        features = f", features within {worst:.2g} %" if taps else ""
        text = f"same prediction as the original for {agreement:.2f} % of {count:.0f} test images{features}{failure}"
        return Comparison(agreement, worst, text)

    def _output(self, variant, images) -> Output:
        self.use(variant)
        return self.teacher(images, self.request)
