"""Spatial-channel token distillation (STD) for vision MLPs, and for any other backbone.

Shapes: B batch, K classes, M teachers, J distillation heads.
"""

import torch
from torch import Tensor

from pycls_std.core.registry import TRAINERS
from pycls_std.core.structures import Batch, Progress
from pycls_std.losses.classification import soft_target_cross_entropy
from pycls_std.models.std_student import STDStudent, TokenLayout, tap_positions
from pycls_std.trainers.base import BaseTrainer
from pycls_std.trainers.logit_term import LogitTerm
from pycls_std.trainers.mine import Mine


@TRAINERS.register("std")
class STD(BaseTrainer):
    """Class loss on the class head, and one distillation loss for each head from its teacher.

    L = (1 - alpha) CE(class head, labels) + alpha sum_m w_m mean_{heads j of m} D(head j, teacher m)
    where the weights w_m of an image sum to 1 over the teachers (DISTILLATION.WEIGHTING), and D is any form of section
    DISTILLATION, of raw or standardized logits.
    Source: Li et al., ICML 2022.
    """

    OPTIONS = {
        # Taps the tokens read, ascending: last, a position (5, -1) or a share of the depth (2/3 = int(depth * 2 / 3)).
        "TAPS": ["last"],
        # Teachers of each tap: all teach at all taps, or the first at the first tap, the second at the second, ...
        "ASSIGN": ("all", "one_each"),
        # Carry one set of tokens from tap to tap; False = each tap has its own tokens and heads (the paper).
        "PROPAGATE": False,
        # Kinds of tokens; none = plain heads on the mean of the patches.
        "TOKENS": ("both", "spatial", "channel", "none"),
        # Each token its own update, or one update shared by all tokens of a tap, as in the reference code.
        "UPDATE": ("own", "shared"),
        # Deviation of the tokens' initial values.
        "TOKEN_STD": 0.2,
        # Let weight decay act on the tokens, as in the reference code.
        "DECAY_TOKENS": False,
    }
    PREDICTIONS = ("avg", "cls", "dist")
    WEIGHED_BY = {"ce": "DISTILLATION.ALPHA", "distill": "DISTILLATION.ALPHA", "mine": "MINE.CRITIC_LR"}

    def __init__(self, student: STDStudent, teachers, term: LogitTerm, *, alpha: float, mine: Mine | None = None):
        super().__init__(student, teachers)
        self.term = term
        self.alpha = alpha
        self.mine = mine
        self.auxiliary_optimizers = mine.optimizers if mine else []
        self.head_teachers = student.layout.head_teachers
        self.head_shares = [1 / self.head_teachers.count(m) for m in self.head_teachers]

    @classmethod
    def from_cfg(cls, cfg, *, backbone, teachers):
        """Build from sections STD, DISTILLATION and MINE. Raises ValueError for options that contradict each other."""
        student = STDStudent(
            backbone,
            _layout(cfg.STD, depth=len(backbone.feature_info), teachers=len(teachers)),
            image_size=cfg.DATA.IMAGE_SIZE,
            num_classes=backbone.num_classes,
        )
        return cls(
            student,
            teachers,
            LogitTerm.from_cfg(cfg),
            alpha=cfg.DISTILLATION.ALPHA,
            mine=Mine.from_cfg(cfg, student=student) if cfg.MINE.SAMPLES else None,
        )

    def modules(self):
        """Return all modules by name."""
        return super().modules() | ({"critics": self.mine.critics} if self.mine else {})

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"ce", "distill"}, weighted by 1 - alpha and alpha."""
        output = self.forward(batch.images)
        teacher_logits = torch.stack([teacher.logits for teacher in self.taught(batch)])
        weights = self.term.weighting(teacher_logits)
        of_heads = torch.stack([teacher_logits[m] for m in self.head_teachers])
        each = self.term.each(output.distillation, of_heads, batch.targets)  # (J, B)
        pairs = zip(self.head_teachers, self.head_shares, strict=True)
        shares = torch.stack([share * weights[:, m] for m, share in pairs])  # (J, B)
        self.watch(weights)
        return {
            "ce": (1 - self.alpha) * soft_target_cross_entropy(output.logits, batch.targets),
            "distill": self.alpha * (shares * each).sum(dim=0).mean(),
        }

    def auxiliary_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"mine"} when a MINE step is due."""
        images = self.mine.collect(batch, progress, self.world) if self.mine else None
        return {} if images is None else {"mine": self.mine.estimate(self.student(images).tokens)}

    def deployed_parameters(self) -> int:
        """Return the backbone's parameters if the class head alone predicts, all of the student's otherwise."""
        deployed = self.student.backbone if self.prediction == "cls" else self.student
        return sum(p.numel() for p in deployed.parameters())

    def state_dict(self) -> dict:
        """Return the state of MINE."""
        if not self.mine:
            return {}
        return {
            "critics": self.mine.critics.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.mine.optimizers],
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore the state of MINE."""
        if self.mine:
            self.mine.critics.load_state_dict(state["critics"])
            for optimizer, saved in zip(self.mine.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)


def _layout(options, *, depth: int, teachers: int) -> TokenLayout:
    if not teachers:
        raise ValueError("TRAINER std needs at least one teacher, DISTILLATION.TEACHERS is empty")
    taps = tap_positions(options.TAPS, depth)
    everyone = tuple(range(teachers))
    if options.PROPAGATE and options.ASSIGN == "one_each":
        raise ValueError("STD.PROPAGATE carries one token set for all teachers, STD.ASSIGN is one_each")
    if options.PROPAGATE and len(taps) == 1:
        raise ValueError(f"STD.PROPAGATE carries tokens from tap to tap, STD.TAPS {options.TAPS} is one tap")
    if options.ASSIGN == "one_each" and len(taps) != teachers:
        raise ValueError(f"STD.ASSIGN is one_each, STD.TAPS has {len(taps)} entries, DISTILLATION.TEACHERS {teachers}")
    if options.PROPAGATE:
        groups = (everyone,)
    else:
        groups = tuple((m,) for m in everyone) if options.ASSIGN == "one_each" else (everyone,) * len(taps)
    return TokenLayout(
        taps=taps,
        teachers=groups,
        kind=options.TOKENS,
        propagate=options.PROPAGATE,
        shared_update=options.UPDATE == "shared",
        init_std=options.TOKEN_STD,
        decay_tokens=options.DECAY_TOKENS,
    )
