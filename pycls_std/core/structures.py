"""What passes between the floors: a batch, a student's output, a teacher's output, the progress, a trainer.

Shapes: B batch, H height, W width, K classes, J distillation heads, M tokens, N channels, P patches.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Batch(NamedTuple):
    """One training batch on the device."""

    images: Tensor  # (B, 3, H, W), normalised, mixed if mixup or cutmix is on
    labels: Tensor  # (B,) class of each image before mixing
    targets: Tensor  # (B, K) probabilities, after mixing and label smoothing
    unmixed: Tensor  # (B, 3, H, W) the images before mixing
    taught: tuple[Tensor, ...] = ()  # (B, K) logits of each teacher on the images, if they are known already


class StudentOutput(NamedTuple):
    """What a student returns in training and at test."""

    logits: Tensor  # (B, K) class head
    distillation: Tensor | None = None  # (J, B, K) distillation heads
    tokens: tuple[tuple[Tensor, Tensor], ...] = ()  # per token set: spatial (B, M, N), channel (B, P, M)


class TeacherOutput(NamedTuple):
    """What a teacher returns, without gradient."""

    logits: Tensor  # (B, K)


class Normalization(NamedTuple):
    """Channel mean and deviation of an input, in units of pixels from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset says of itself."""

    name: str
    classes: tuple[str, ...]
    normalization: Normalization


@dataclass(frozen=True)
class Progress:
    """Where a run stands: iteration `iteration` of `iterations` in epoch `epoch` of `epochs`, counted from 0."""

    epoch: int
    iteration: int
    iterations: int
    epochs: int

    @property
    def step(self) -> int:
        """Iterations done since the start of the run."""
        return self.epoch * self.iterations + self.iteration

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / (self.epochs * self.iterations)


class World:
    """The processes that train one student together, as a method sees them; here this one alone.

    The engine gives a trainer its own (`engine/distributed.py`).
    """

    rank = 0  # of this process, counted from 0
    size = 1  # processes

    def positions(self, batch_size: int) -> list[int]:
        """Return the places of this process's images in a batch of all processes, ascending."""
        return list(range(batch_size))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, without gradient."""
        return tensor


class Trainer(Protocol):
    """What the engine and the builders ask of a method; `trainers/base.py` answers most of it."""

    PREDICTIONS: tuple[str, ...]  # names that `predictions` returns, the method's own choice first
    WEIGHED_BY: dict[str, str]  # term of the losses -> option that weighs it
    student: nn.Module  # all that is trained by the main objective, unwrapped
    forward: nn.Module  # the student as training must call it: wrapped, where the engine wraps it
    teachers: nn.ModuleList  # frozen
    monitors: dict[str, Tensor]  # values of the last step worth a curve, not optimised
    prediction: str  # key of `predictions` that counts as the result
    auxiliary_optimizers: list[Optimizer]  # those that step on `auxiliary_losses`
    world: World  # the processes that share each batch

    def modules(self) -> dict[str, nn.Module]:
        """Return all modules by name, to be placed on the device; `teachers` are not trained, the others are."""

    def deployed_parameters(self) -> int:
        """Return how many parameters `prediction` needs; the others serve training only."""

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted scalars; their sum is the objective."""

    def auxiliary_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return a second objective, stepped by `auxiliary_optimizers` right after the first; {} for none now.

        It calls modules unwrapped: its gradients are averaged over the processes by the engine.
        """

    def predictions(self, output: StudentOutput) -> dict[str, Tensor]:
        """Return (B, K) logits by the name of the prediction."""

    def state_dict(self) -> dict:
        """Return the training state that is not in the student."""

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
