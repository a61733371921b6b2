"""Spatial-channel token distillation (STD) for vision MLPs, and for any other backbone.

Shapes: B batch, K classes, M teachers, J distillation heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pycls_std.core.option import Option
from pycls_std.core.registry import TERMS
from pycls_std.core.structures import Batch, Output, Progress
from pycls_std.core.text import counted
from pycls_std.layers.token_branches import TokenBranches, TokenLayout
from pycls_std.models.describe import Description
from pycls_std.models.taps import choose_taps
from pycls_std.terms.base import RunDescription
from pycls_std.terms.logits import LogitLoss, LogitTerm, mean_weights, need_logits


@TERMS.register("std")
class STD(LogitTerm):
    """One distillation loss per token head, with its teacher.

    weight sum_m w_m mean_{heads j of m} D(head j, teacher m)
    where the weights w_m of an image sum to 1 over the teachers (DISTILLATION.WEIGHTING), and D is any form of section
    DISTILLATION, of raw or standardized logits. The paper weights it by alpha and the labels by 1 - alpha.
    Source: Li et al., ICML 2022.
    """

    OPTIONS = {
        # Weight of the distillation on the tokens' heads; 0 = no tokens.
        "WEIGHT": Option(0.0, least=0, student=True),
        # Taps the tokens read, ascending: last, a position (5, -1), a share of the depth (2/3 = int(depth * 2 / 3)),
        # or a name as --mode info shows it.
        "TAPS": Option(["last"], student=True, column="taps"),
        # Teachers of each tap: all teachers at all taps, or the first at the first tap, the second at the second, ...
        "ASSIGN": Option(("all", "one_each"), student=True),
        # Carry one set of tokens from tap to tap; False = each tap has its own tokens and heads (the paper).
        "PROPAGATE": Option(False, student=True, column="propagated"),
        # Kinds of tokens; none = plain heads on the mean-pooled patches.
        "TOKENS": Option(("both", "spatial", "channel", "none"), student=True, column="tokens"),
        # Each token its own update, or one update shared by all tokens of a tap, as in the reference code.
        "UPDATE": Option(("own", "shared"), student=True),
        # Standard deviation of the tokens' initial values.
        "TOKEN_STD": Option(0.2, least=0, student=True),
        # Apply weight decay to the tokens, as in the reference code.
        "DECAY_TOKENS": Option(False, student=True),
    }
    READS = ("DISTILLATION.",)

    def __init__(self, loss: LogitLoss, branch: TokenBranches, teachers: Sequence[Description], *, weight: float):
        super().__init__(weight)
        self.loss = loss
        self.described = teachers
        self.teacher_heads = tuple(range(len(teachers)))
        self.heads = branch.heads
        self.head_teachers = branch.layout.head_teachers
        self.head_shares = [1 / self.head_teachers.count(m) for m in self.head_teachers]

    @classmethod
    def branch(cls, cfg, run):
        """Return the tokens and their heads. Raises ValueError for options that contradict each other."""
        need_logits("STD.WEIGHT", run)
        sizes = run.student.taps
        layout = _layout(cfg.STD, list(sizes), teachers=len(run.teachers))
        own = [(sizes[tap].channels, sizes[tap].patches) for tap in layout.taps]
        return TokenBranches(layout, own, num_classes=run.student.num_classes)

    @classmethod
    def from_cfg(cls, cfg, run: RunDescription, student):
        """Build from sections STD and DISTILLATION."""
        branch = student.branches["std"]
        return cls(LogitLoss.from_cfg(cfg, run.task.classes), branch, run.teachers, weight=cfg.STD.WEIGHT)

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return {"std"}."""
        teacher_logits = torch.stack([teacher.heads["cls"] for teacher in teachers])
        weights = self.loss.weighting(teacher_logits)
        of_heads = torch.stack([teacher_logits[m] for m in self.head_teachers])
        own = torch.stack([student.heads[head] for head in self.heads])
        each = self.loss.each(own, of_heads, batch.targets, progress)  # (J, B)
        pairs = zip(self.head_teachers, self.head_shares, strict=True)
        shares = torch.stack([share * weights[:, m] for m, share in pairs])  # (J, B)
        self.monitors = mean_weights(weights, self.described) | self.loss.learned_values("std")
        return {"std": self.weight * (shares * each).sum(dim=0).mean()}


def _layout(options, names: list[str], *, teachers: int) -> TokenLayout:
    taps = choose_taps("STD.TAPS", options.TAPS, names)
    everyone = tuple(range(teachers))
    if options.PROPAGATE and options.ASSIGN == "one_each":
        raise ValueError("STD.PROPAGATE carries one token set for all teachers, STD.ASSIGN is one_each")
    if options.PROPAGATE and len(taps) == 1:
        raise ValueError(f"STD.PROPAGATE carries tokens from tap to tap, STD.TAPS {options.TAPS} is one tap")
    if options.ASSIGN == "one_each" and len(taps) != teachers:
        own = counted(len(taps), "entry", "entries")
        raise ValueError(f"STD.ASSIGN is one_each, STD.TAPS has {own}, DISTILLATION.TEACHERS {teachers}")
    groups: tuple[tuple[int, ...], ...]
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
