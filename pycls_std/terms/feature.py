"""Classic feature distillation: features of the student are trained to match a teacher's.

Shapes: B batch, C channels, H height, W width.
"""

import inspect

from torch import Tensor

import pycls_std.terms.feature_losses  # noqa: F401  (registers the forms)
from pycls_std.core.option import Option
from pycls_std.core.registry import FEATURE_LOSSES, TERMS
from pycls_std.core.structures import Batch, Output, Progress
from pycls_std.core.text import counted
from pycls_std.models.describe import Description
from pycls_std.models.taps import POOLED, TapShape, choose_taps
from pycls_std.terms.base import Term
from pycls_std.terms.feature_losses import FeatureLoss, as_given


@TERMS.register("feature")
class Feature(Term):
    """weight times the loss FEATURE.LOSS of the features at pairs of taps, one of the student and one of the teacher.

    Each loss has its own adapters, which are trained with the student. If two maps differ in size, the larger one is
    average-pooled to the smaller.
    Sources: see each loss; weights, taps and hyperparameters as in HobbitLong/RepDistiller and
    megvii-research/mdistiller.
    """

    OPTIONS = {
        # Weight of feature distillation; 0 = off. TRAINER feature sets that of each form's publication.
        "WEIGHT": Option(0.0, least=0),
        # Form: maps at taps (fitnet, at, nst, vid, reviewkd, sp), or what the classifier reads (pkt, rkd, crd, rsd).
        "LOSS": Option("fitnet", registry="FEATURE_LOSSES", column="features"),
        # Position of the teacher in DISTILLATION.TEACHERS.
        "TEACHER": Option(0, least=0),
        # Taps of the student, ascending: last, a position, a share of the depth, a name as --mode info shows it, or
        # pooled, what the classifier reads. [] = those of the publication: fitnet 1/2; sp last; pkt, rkd, crd, rsd
        # pooled; the others every stage, evenly chosen where the student has more than the teacher.
        "STUDENT_TAPS": Option([], of=str, column="feature taps"),
        # Taps of the teacher, one each, in the same form.
        "TEACHER_TAPS": Option([], of=str),
        # Epochs of linear warm-up of the weight, constant within an epoch, at most OPTIM.MAX_EPOCH; 0 = off.
        "WARMUP_EPOCHS": Option(0, least=0, within="OPTIM.MAX_EPOCH"),
        # rkd: weight of the distances of pairs of images.
        "RKD_DISTANCE": Option(25.0, least=0, when="FEATURE.LOSS=rkd"),
        # rkd: weight of the angles of triples of images.
        "RKD_ANGLE": Option(50.0, least=0, when="FEATURE.LOSS=rkd"),
        # vid: initial variance of the teacher's maps.
        "VID_VARIANCE": Option(5.0, least=0.001, greatest=80, when="FEATURE.LOSS=vid"),
        # crd: dimension of the embeddings.
        "CRD_CHANNELS": Option(128, least=1, greatest=65536, when="FEATURE.LOSS=crd"),
        # crd: number of negatives of each image, embeddings of images of other classes.
        "CRD_NEGATIVES": Option(16384, least=1, when="FEATURE.LOSS=crd"),
        # crd: temperature by which cosine similarities of embeddings are divided.
        "CRD_TEMPERATURE": Option(0.07, least=0.01, when="FEATURE.LOSS=crd"),
        # crd: momentum of the memory bank, the share of the old embedding in the new one; 0 = keep the newest only.
        "CRD_MOMENTUM": Option(0.5, least=0, greatest=1, when="FEATURE.LOSS=crd"),
        # rsd: weight of the correlations between different channels (off the diagonal).
        "RSD_KAPPA": Option(0.01, least=0, when="FEATURE.LOSS=rsd"),
    }

    def __init__(
        self,
        form: FeatureLoss,
        student_taps: tuple[str, ...],
        teacher_taps: tuple[str, ...],
        *,
        weight,
        teacher,
        warmup,
    ):
        super().__init__(weight, student_taps=student_taps, teacher_taps={teacher: teacher_taps})
        self.form = form
        self.teacher = teacher
        self.warmup = warmup
        self.no_graph = f"FEATURE.WARMUP_EPOCHS {warmup}, whose weight changes every epoch" if warmup else ""

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from section FEATURE. Raises ValueError for taps, teachers or images that the loss cannot use."""
        run.refuse_padding("FEATURE.WEIGHT")
        options = cfg.FEATURE
        kind, teacher = FEATURE_LOSSES.get(options.LOSS), run.teacher(options.TEACHER, "FEATURE.TEACHER")
        if kind.SINGLE_IMAGES and cfg.AUG.MIXUP + cfg.AUG.CUTMIX > 0:
            raise ValueError(f"FEATURE.LOSS {options.LOSS} remembers single images, AUG.MIXUP and AUG.CUTMIX must be 0")
        if kind.SINGLE_IMAGES and "cls" not in run.task.HEADS:
            raise ValueError(f"FEATURE.LOSS {options.LOSS} needs one class an image, which TASK.NAME has not")
        own, other = _choose(options, kind, run.student, teacher)
        given = {key.lower(): value for key, value in options.items()} | {"images": run.images or 1}
        named = list(inspect.signature(kind).parameters)[2:]  # after the shapes of both sides
        form = kind(
            [_shape(run.student, tap) for tap in own],
            [_shape(teacher, tap) for tap in other],
            **{name: value for name, value in given.items() if name in named},
        )
        return cls(form, own, other, weight=options.WEIGHT, teacher=options.TEACHER, warmup=options.WARMUP_EPOCHS)

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"feature"}. Raises ValueError for fewer images than the loss needs."""
        sides = ((student, self.student_taps), (teachers[self.teacher], self.teacher_taps[self.teacher]))
        own, other = (
            [as_given(output.features[tap], tap, vectors=self.form.VECTORS) for tap in taps] for output, taps in sides
        )
        if len(own[0]) < self.form.LEAST_IMAGES:
            form, least = type(self.form).__name__, self.form.LEAST_IMAGES
            raise ValueError(
                f"{form} (FEATURE.LOSS) needs {least} images in each process, TRAIN.BATCH_SIZE leaves {len(own[0])}"
            )
        weight = progress.warmed(self.warmup) * self.weight
        return {"feature": weight * self.form(own, other, batch, self.world)}


def _shape(model: Description, tap: str) -> TapShape:
    return TapShape(model.pooled, 1, 1) if tap == POOLED else model.taps[tap]


def _choose(options, kind, student: Description, teacher: Description) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the taps of both models. Raises ValueError for unknown taps and those that the loss cannot use."""
    given = {"STUDENT_TAPS": options.STUDENT_TAPS, "TEACHER_TAPS": options.TEACHER_TAPS}
    names = {key: list(model.taps) for key, model in zip(given, (student, teacher), strict=True)}
    count = min(len(given[key]) or len(names[key]) for key in given)
    chosen = []
    for key, choices in given.items():
        if choices or kind.TAPS != "all":
            found = _named(f"FEATURE.{key}", choices or [kind.TAPS], names[key], vectors=kind.VECTORS)
        else:
            found = tuple(names[key][(i + 1) * len(names[key]) // count - 1] for i in range(count))
        chosen.append(found + (POOLED,) * kind.WITH_POOLED)
    if len(chosen[0]) != len(chosen[1]):
        own, other = (len(taps) - kind.WITH_POOLED for taps in chosen)
        raise ValueError(f"FEATURE.STUDENT_TAPS has {counted(own, 'entry', 'entries')}, TEACHER_TAPS has {other}")
    return tuple(chosen)


def _named(key: str, choices: list[str], names: list[str], *, vectors: bool) -> tuple[str, ...]:
    maps = [choice for choice in choices if choice != POOLED]
    if len(maps) < len(choices) and not vectors:
        raise ValueError(f"{key} has {POOLED}, FEATURE.LOSS compares maps, of {', '.join(names)}")
    if choices.count(POOLED) > 1 or (POOLED in choices and choices[-1] != POOLED):
        raise ValueError(f"{key} {choices} has {POOLED}, expected once and last")
    return (choose_taps(key, maps, names) if maps else ()) + (POOLED,) * (len(maps) < len(choices))
