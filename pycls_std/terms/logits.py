"""The logit distillation loss that section DISTILLATION configures, shared by all terms on teacher logits.

Shapes: ... any leading dimensions, B batch, K classes, M teachers.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import pycls_std.losses  # noqa: F401  (registers the forms)
from pycls_std.core.registry import LOGIT_LOSSES, WEIGHTINGS
from pycls_std.core.structures import Output, Progress
from pycls_std.losses.logit import standardized
from pycls_std.models.create import randomize_zero_heads
from pycls_std.models.describe import Description
from pycls_std.terms.base import RunDescription, Term


class LogitTerm(Term):
    """Base of the terms on teacher logits.

    It reads all of section DISTILLATION: such a term has READS = ("DISTILLATION.",).
    """

    @classmethod
    def prepare(cls, cfg, backbone):
        """Give a zero-initialized classifier small random weights, if logits are standardized or correlated.

        Neither is defined for constant logits.
        """
        form = LOGIT_LOSSES.get(cfg.DISTILLATION.TYPE)
        if cfg.DISTILLATION.LOGIT_STANDARD or getattr(form, "needs_spread", False):
            randomize_zero_heads(backbone)


class LogitLoss(nn.Module):
    """A logit distillation loss, on raw or standardized logits, and the weighting of several teachers.

    form(student_logits, teacher_logits, ...) returns one value per image; options: those of section DISTILLATION, of
    which it is passed those that it names in lower case, and `targets` (B, K), `labels` (B,) or `progress` if it names
    them. Its learned scalars are parameters of this module, so that they are trained and saved with the term.
    weighting(teacher_logits) returns (B, M). standardize: both sides; the values are then multiplied by extra_weight.
    """

    def __init__(
        self,
        form: Callable[..., Tensor],
        weighting: Callable[[Tensor], Tensor],
        *,
        options: dict[str, object],
        standardize: bool = False,
        extra_weight: float = 1.0,
    ):
        super().__init__()
        names = inspect.signature(form).parameters
        learned = getattr(form, "learned", {})
        known = {
            "student_logits",
            "teacher_logits",
            "targets",
            "labels",
            "progress",
            *map(str.lower, options),
            *learned,
        }
        unknown = [name for name, each in names.items() if name not in known and each.default is each.empty]
        if unknown:
            raise ValueError(f"{form.__name__} asks for {', '.join(unknown)}, no option of section DISTILLATION")
        self.form = form
        self.options = {name: options[name.upper()] for name in names if name.upper() in options}
        self.of_targets = {"targets": lambda t: t, "labels": lambda t: t.argmax(dim=-1)}
        self.of_targets = {name: make for name, make in self.of_targets.items() if name in names}
        self.of_progress = "progress" in names
        self.no_graph = (
            f"DISTILLATION.TYPE {options['TYPE']}, whose weight changes every epoch" if self.of_progress else ""
        )
        self.learned = nn.ParameterDict({name: nn.Parameter(torch.tensor(value)) for name, value in learned.items()})
        self.weighting = weighting
        self.standardize = standardize
        self.extra_weight = extra_weight

    @classmethod
    def from_cfg(cls, cfg, classes: int):
        """Build from section DISTILLATION. Raises ValueError if logits of only two classes are to be standardized."""
        options = cfg.DISTILLATION
        if options.LOGIT_STANDARD and classes < 3:
            raise ValueError(
                f"DISTILLATION.LOGIT_STANDARD needs at least 3 classes, the data has {classes}: of two logits, one is "
                "always 0.71 then and the other -0.71, so nothing but their order is taught"
            )
        return cls(
            LOGIT_LOSSES.get(options.TYPE),
            WEIGHTINGS.get(options.WEIGHTING),
            options=dict(options),
            standardize=options.LOGIT_STANDARD,
            extra_weight=options.EXTRA_WEIGHT,
        )

    def each(
        self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, progress: Progress | None = None
    ) -> Tensor:
        """Return one value in nats for each image of (..., B, K) logits.

        targets: (B, K) probabilities; a form that asks for labels gets the most probable class of a mixed image.
        progress: of the run, for a form that asks for it.
        """
        given = self.options | {name: make(targets) for name, make in self.of_targets.items()} | {**self.learned}
        given |= {"progress": progress} if self.of_progress else {}
        if not self.standardize:
            return self.form(student_logits, teacher_logits, **given)
        return self.extra_weight * self.form(standardized(student_logits), standardized(teacher_logits), **given)

    def over_teachers(
        self, student_logits: Tensor, teachers: list[Output], targets: Tensor, progress: Progress | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean over the batch of the weighted sum over all teachers, and the weights (B, M).

        student_logits: (B, K), compared with every teacher.
        """
        teacher_logits = torch.stack([teacher.heads["cls"] for teacher in teachers])
        weights = self.weighting(teacher_logits)
        each = self.each(student_logits.expand_as(teacher_logits), teacher_logits, targets, progress)  # (M, B)
        return (weights.T * each).sum(dim=0).mean(), weights

    def learned_values(self, term: str) -> dict[str, Tensor]:
        """Return the form's learned scalars, to be logged. term: the name of the term that owns it."""
        return {f"{term}_{name}": value.detach() for name, value in self.learned.items()}


def mean_weights(weights: Tensor, teachers: Sequence[Description]) -> dict[str, Tensor]:
    """Return the mean weight of each teacher, to be logged. weights: (B, M), of each image."""
    return {
        f"teacher_weight/{index}_{teacher.name}": weights[:, index].mean() for index, teacher in enumerate(teachers)
    }


def need_logits(name: str, run: RunDescription, *, teachers: bool = True) -> None:
    """Raise ValueError if there is no teacher, or if the task has no class logits. name: of the term's weight.

    teachers: False = no teacher is needed.
    """
    if teachers and not run.teachers:
        raise ValueError(f"{name} needs at least one teacher, DISTILLATION.TEACHERS is empty")
    task = run.task
    if "cls" not in task.HEADS:
        raise ValueError(f"{name} needs class logits, the task has the heads {', '.join(task.HEADS)} (TASK.NAME)")
