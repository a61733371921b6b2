"""The interface of the objective's terms, and the description of a run that they are built from.

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
    """What a term knows when it is built: sizes, but no weights."""

    task: Any  # see `tasks/contract.py`
    student: Description
    teachers: Sequence[Description]
    images: int | None = None  # number of training images; None where the data is not read
    epoch_images: int | None = None  # number of distinct images in an epoch, over all processes
    batch_images: int | None = None  # number of distinct images in a global batch (of all processes)

    def teacher(self, position: int, option: str) -> Description:
        """Return the description of a teacher. Raises ValueError that names the option if there is no such teacher."""
        if position >= len(self.teachers):
            count = counted(len(self.teachers), "entry", "entries")
            raise ValueError(f"{option} needs teacher {position}, DISTILLATION.TEACHERS has {count}")
        return self.teachers[position]

    def refuse_padding(self, option: str) -> None:
        """Raise ValueError, naming the option, if images are padded: for a term that reads whole feature maps."""
        if self.task.PADS:
            raise ValueError(f"{option} must be 0: TASK.NAME has padded images, whose features TOKENS.WEIGHT reads")


class _Part(nn.Module):
    """Base of what a config can turn on: a term of the objective, or an auxiliary term."""

    OPTIONS: dict[str, object] = {}  # private options, literals or `Option`s, by their key
    SWITCH = "WEIGHT"  # the key among them that turns it on
    WEIGHED_BY = ""  # the key among them to check if it has no effect; "" = SWITCH
    # READS = (...): shared options, or prefixes of their names, that it uses; they are refused if nothing uses them.
    # Without READS: the teachers' options. These four are parsed from the class's own source, so inherited ones do not
    # count.
    SPLITS_HEADS = False  # whether a backbone's distillation head is kept separate from its class head

    @classmethod
    def from_cfg(cls, cfg, run: RunDescription, student: Student):
        """Build from options. Raises ValueError for options that contradict each other."""
        raise NotImplementedError

    @classmethod
    def prepare(cls, cfg, backbone: nn.Module) -> None:
        """Modify the student's newly initialized backbone, before any weights are loaded."""

    @classmethod
    def branch(cls, cfg, run: RunDescription) -> Branch | None:
        """Return the branch that the term adds to the student, deployed with it; None for none."""
        return None


class Term(_Part):
    """A term of the objective: named, weighted loss scalars, computed from the student's and the teachers' outputs.

    Registered in TERMS under its name, which is also that of its section of options. Its own parameters (projectors,
    regressors, temperatures) are trained with the student: they are in the checkpoint, wrapped and compiled with it,
    but not part of the deployed or evaluated model. A term whose SWITCH is 0 is not built.
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
        self.student_taps = student_taps  # names of the taps it reads
        self.teacher_taps = teacher_taps or {}  # by the position of the teacher
        self.teacher_heads: tuple[int, ...] = ()  # positions of the teachers whose heads it reads
        self.heads: tuple[str, ...] = ()  # heads of the student that it trains
        self.monitors: dict[str, Tensor] = {}  # values of the last step to log, not optimised
        self.world = World()  # the processes that share each batch; buffers are local to each process

    def attach(self, teachers: list[nn.Module]) -> None:
        """Receive all teachers' modules; for a term that calls a submodule of one.

        It must not register them as its own submodules, and must look the part up in `teacher.backbone` at each call,
        since a teacher that is optimized for speed gets another backbone.
        """

    def forward(self, student: Output, teachers: list[Output], batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted losses; they are added to those of the other terms."""
        raise NotImplementedError


class AuxiliaryTerm(_Part):
    """A second objective, stepped right after the main one by its own torch optimizers.

    Registered in TERMS, with OPTIONS, SWITCH, WEIGHED_BY and READS, like a `Term`.
    """

    def __init__(self, optimizers: list[Optimizer]):
        super().__init__()
        self.optimizers = optimizers

    def losses(self, student: Student, batch: Batch, progress: Progress, world: World) -> dict[str, Tensor]:
        """Return the losses to step on; {} if no step is due.

        Modules are called without their DDP wrapper: the engine averages the gradients over the processes.
        """
        raise NotImplementedError

    def shrink(self, images: int) -> None:
        """Adapt to a batch of so many distinct images, for a trial run with small batches."""
