"""Exit heads: classifiers at taps of the student, taught by teachers' logits or by the labels.

Shapes: B batch, K classes.
"""

from fractions import Fraction
from math import ceil

from torch import Tensor, nn

from pycls_std.core.option import Option
from pycls_std.core.registry import TERMS
from pycls_std.core.structures import Batch, Output, Progress, added
from pycls_std.layers.exit_heads import exit_heads
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.models.taps import TapShape, choose_taps
from pycls_std.terms.logits import LogitLoss, LogitTerm, need_logits

# Fractions of the depth at which the four stages end in a model without stages, 2 : 2 : 6 : 2 as in Swin.
STAGES = (Fraction(1, 6), Fraction(1, 3), Fraction(5, 6), Fraction(1))


@TERMS.register("exits")
class Exits(LogitTerm):
    """weight sum over exit heads of D(head, teachers), or of the cross-entropy with the labels.

    D is any form of section DISTILLATION; the paper's is `ofa`. The heads are trained with the student and are not
    deployed: intermediate features are supervised in logit space, so the teacher may be of any architecture family.
    Source: Hao et al., NeurIPS 2023 (OFA-KD). Two ablations that the paper does not report: heads without a teacher
    (EXITS.TAUGHT_BY labels), and a teacher without the heads (EXITS.WEIGHT 0).
    """

    OPTIONS = {
        # Weight of the sum over the exit heads; 0 = off. TRAINER ofa sets 1; the publication has 0.1 for CNNs.
        "WEIGHT": Option(0.0, least=0),
        # Taps that have an exit, ascending: last, a position, a share of the depth, or a name as --mode info shows it.
        # [] = four: the last four taps if the feature maps shrink with depth, otherwise those after 1/6, 1/3, 5/6 and
        # all of the depth.
        "TAPS": Option([], of=str, column="exits"),
        # Targets of the heads: the teachers' logits, or the labels.
        "TAUGHT_BY": Option(("teachers", "labels"), column="exits taught by"),
        # Layers of an exit before its classifier: the publication's blocks, or none (linear).
        "HEAD": Option(("blocks", "linear"), column="exit"),
    }
    READS = ("DISTILLATION.",)

    def __init__(self, loss: LogitLoss | None, taps: tuple[str, ...], exits: list[nn.Module], *, weight, teachers):
        super().__init__(weight, student_taps=taps)
        self.loss = loss  # None: the labels teach
        self.exits = nn.ModuleList(exits)
        self.teacher_heads = tuple(range(teachers)) if loss else ()

    @classmethod
    def from_cfg(cls, cfg, run, student):
        """Build from sections EXITS and DISTILLATION. Raises ValueError for unknown taps, and without a teacher."""
        options, sizes = cfg.EXITS, run.student.taps
        by_labels = options.TAUGHT_BY == "labels"
        need_logits("EXITS.WEIGHT", run, teachers=not by_labels)
        taps = choose_taps("EXITS.TAPS", options.TAPS, list(sizes)) if options.TAPS else _stages(sizes)
        width = max([run.student.pooled, *(teacher.pooled for teacher in run.teachers)])
        shapes = [tuple(sizes[tap]) for tap in taps]
        exits = exit_heads(shapes, kind=options.HEAD, width=width, num_classes=run.student.num_classes)
        loss = None if by_labels else LogitLoss.from_cfg(cfg, run.task.classes)
        return cls(loss, taps, exits, weight=options.WEIGHT, teachers=len(run.teachers))

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"exits"}."""
        values = []
        for tap, head in zip(self.student_taps, self.exits, strict=True):
            logits = head(student.features[tap])
            if self.loss is None:
                values.append(soft_target_cross_entropy(logits, batch.targets))
            else:
                values.append(self.loss.over_teachers(logits, teachers, batch.targets, progress)[0])
        self.monitors = self.loss.learned_values("exits") if self.loss else {}
        return {"exits": self.weight * added(values)}


def _stages(sizes: dict[str, TapShape]) -> tuple[str, ...]:
    names = list(sizes)
    if len(names) <= len(STAGES) or len({(shape.height, shape.width) for shape in sizes.values()}) > 1:
        return tuple(names[-len(STAGES) :])
    return tuple(dict.fromkeys(names[ceil(len(names) * share) - 1] for share in STAGES))
