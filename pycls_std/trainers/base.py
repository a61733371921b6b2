"""What every method has: a student, its teachers, and no more than a method asks for."""

from torch import Tensor, nn
from torch.optim import Optimizer

from pycls_std.core.structures import Batch, Progress, StudentOutput, TeacherOutput, World


class BaseTrainer:
    """Holds what is optimised. A method overrides `losses`, and what else it needs.

    student: all that the main objective trains; everything with a gradient runs in its forward.
    teachers: frozen.
    See `structures.Trainer` for the meaning of each attribute and method.
    """

    PREDICTIONS = ("cls",)  # names `predictions` returns, the method's own choice first
    WEIGHED_BY: dict[str, str] = {}  # term of the losses -> option that weighs it, for --mode check to name

    def __init__(self, student: nn.Module, teachers: list[nn.Module] = ()):
        self.student = student
        self.forward = student
        self.prediction = self.PREDICTIONS[0]
        self.teachers = nn.ModuleList(teachers)
        self.monitors: dict[str, Tensor] = {}
        self.auxiliary_optimizers: list[Optimizer] = []
        self.world = World()

    def modules(self) -> dict[str, nn.Module]:
        """Return all modules by name, for the engine to place on the device."""
        return {"student": self.student, "teachers": self.teachers}

    def taught(self, batch: Batch) -> list[TeacherOutput]:
        """Return what each teacher says of the batch's images. A method asks here, for it may be known already."""
        if batch.taught:
            return [TeacherOutput(logits=logits) for logits in batch.taught]
        return [teacher(batch.images) for teacher in self.teachers]

    def watch(self, weights: Tensor) -> None:
        """Have the mean weight of each teacher logged. weights: (B, M), of each image."""
        self.monitors = {
            f"teacher_weight/{index}_{teacher.name}": weights[:, index].mean()
            for index, teacher in enumerate(self.teachers)
        }

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted scalars; their sum is the objective. Every method has its own; there is no default."""
        raise NotImplementedError

    def auxiliary_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return a second objective, stepped by `auxiliary_optimizers` right after the first; {} for none now."""
        return {}

    def predictions(self, output: StudentOutput) -> dict[str, Tensor]:
        """Return (B, K) logits by the name of the prediction.

        Those of the class head, the mean of the distillation heads, and the average of the two; the first alone where
        there are no distillation heads.
        """
        if output.distillation is None:
            return {"cls": output.logits}
        logits, distillation = output.logits.float(), output.distillation.float().mean(dim=0)
        return {"avg": (logits + distillation) / 2, "cls": logits, "dist": distillation}

    def deployed_parameters(self) -> int:
        """Return how many parameters `prediction` needs; the others serve training only."""
        return sum(p.numel() for p in self.student.parameters())

    def state_dict(self) -> dict:
        """Return the training state that is not in the student."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
