"""What every term of an objective has, and what it is told of its run.

Shapes: B batch, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pycls_std.core.structures import Batch, Output, Progress, World
from pycls_std.core.text import counted
from pycls_std.models.describe import Description
from pycls_std.models.student import Branch, Student


@dataclass
class RunDescription:
    """What a term may know when it is built: sizes, and no weights."""

    task: Any  # see `tasks/contract.py`
    student: Description
    teachers: Sequence[Description]
    images: int | None = None  # of the training split; None where the data is not read
    epoch_images: int | None = None  # distinct ones that an epoch shows, all processes together
    batch_images: int | None = None  # distinct ones in a batch of all processes

    def teacher(self, position: int, option: str) -> Description:
        """Return what is known of a teacher. Raises ValueError that names the option if there are not so many."""
        if position >= len(self.teachers):
            count = counted(len(self.teachers), "entry", "entries")
            raise ValueError(f"{option} needs teacher {position}, DISTILLATION.TEACHERS has {count}")
        return self.teachers[position]

    def refuse_padding(self, option: str) -> None:
        """Raise ValueError that names the option of a term that reads whole maps, where a part of them is padding."""
        if self.task.PADS:
            raise ValueError(f"{option} must be 0: TASK.NAME has padded images, whose features TOKENS.WEIGHT reads")


class _Part(nn.Module):
    """What a config can turn on: a term of the objective, or an auxiliary one."""

    OPTIONS: dict[str, object] = {}  # private options, literals or `Option`s, by their key
    SWITCH = "WEIGHT"  # the key among them that turns it on
    WEIGHED_BY = ""  # the key among them to look at if it has no effect; "" = SWITCH
    # READS = (...): options of the page, or starts of their names, that are refused where nobody reads them; without,
    # those of the teachers. These four are read as text, from a class's own body: what it inherits is not seen.
    SPLITS_HEADS = False  # a distillation head that the backbone has is kept apart from its class head

    @classmethod
    def from_cfg(cls, cfg, run: RunDescription, student: Student):
        """Build from options. Raises ValueError for options that contradict each other."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, cfg, backbone: nn.Module) -> None:
        """Change the student's fresh backbone, before given weights are loaded."""

    @classmethod
    def branch(cls, cfg, run: RunDescription) -> Branch | None:
        """Return what the student needs beside its backbone, deployed with it; None for nothing."""
        return None


class Term(_Part):
    """A part of the objective: named, weighted scalars of what student and teachers say of a batch.

    Registered in TERMS under its name, which is that of its section of options, too. Its own parameters (projectors,
    regressors, temperatures) train with the student: they are in the checkpoint, wrapped and compiled with it, and no
    part of what is deployed or tested. A term whose SWITCH is 0 is not built.
    """

    def __init__(
        self,
        weight: float,
        *,
        student_taps: tuple[str, ...] = (),
        teacher_taps: dict[int, tuple[str, ...]] | None = None,
    ):
        super().__init__()
        self.weight = weight
        self.student_taps = student_taps  # names of those it reads
        self.teacher_taps = teacher_taps or {}  # by the position of the teacher
        self.teacher_heads: tuple[int, ...] = ()  # positions of the teachers whose heads it reads
        self.heads: tuple[str, ...] = ()  # of the student, that learn by it
        self.monitors: dict[str, Tensor] = {}  # values of the last step worth a curve, not optimised
        self.world = World()  # the processes that share each batch; buffers are each process's own

    def attach(self, teachers: list[nn.Module]) -> None:
        """Take the teachers' modules, all of them; for a term that calls a part of one.

        It must not register them as its own, and look up the part in `teacher.backbone` when it calls it, for a teacher
        that is made fast gets another backbone.
        """

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted scalars; they are added to those of the other terms."""
        raise NotImplementedError


class AuxiliaryTerm(_Part):
    """A second objective, stepped right after the first by optimizers of its own, which are torch's.

    Registered in TERMS, with OPTIONS, SWITCH, WEIGHED_BY and READS, like a `Term`.
    """

    def __init__(self, optimizers: list[Optimizer]):
        super().__init__()
        self.optimizers = optimizers

    def losses(self, student: Student, batch: Batch, progress: Progress, world: World) -> dict[str, Tensor]:
        """Return the losses to step on; {} for none now.

        It calls modules unwrapped: its gradients are averaged over the processes by the engine.
        """
        raise NotImplementedError

    def shrink(self, images: int) -> None:
        """Make do with so many distinct images in a batch, for a trial of a run in small."""
