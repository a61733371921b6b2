"""The training objective: one student, its teachers, and the loss terms."""

from typing import cast

from torch import Tensor, nn
from torch.optim import Optimizer

from pycls_std.core.structures import Batch, Output, Progress, World
from pycls_std.core.text import first_of
from pycls_std.models.student import Student
from pycls_std.terms.base import AuxiliaryTerm, Term


class Preset:
    """A named method: default weights of terms, which a config may override.

    Registered in TRAINERS. Attributes in capitals must be literals, since they are read before torch is imported.
    """

    DEFAULTS: dict[str, object] = {}  # of shared options and of terms' options
    PRESETS: dict[str, dict[str, object]] = {}  # further defaults that apply if KEY=value
    OPTIONS: dict[str, object] = {}  # private options

    @classmethod
    def check(cls, cfg, backbone: nn.Module) -> None:
        """Raise ValueError for a backbone or options that the method cannot use."""


class Objective(nn.Module):
    """The student and its loss terms: everything with a gradient, in one forward pass.

    So DDP and the compiler see all of it.
    """

    def __init__(self, student: Student, terms: dict[str, Term]):
        super().__init__()
        self.student = student
        self.terms = nn.ModuleDict(terms)
        self.taps = tuple(dict.fromkeys(tap for term in terms.values() for tap in term.student_taps))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay spares: the student's own choice, and the terms'."""
        names = {f"student.{name}" for name in self.student.no_weight_decay()}
        for name, term in self.terms.items():
            names |= {f"terms.{name}.{own}" for own in getattr(term, "no_weight_decay", set)()}
        return names

    def by_term(self, batch: Batch, teachers: list[Output], progress: Progress) -> dict[str, dict[str, Tensor]]:
        """Return each term's losses, by its name. Raises ValueError for a term that returns no scalars by name."""
        output = self.student(batch.images, self.taps)
        terms = self.terms.items()
        return {name: _scalars(term(output, teachers, batch, progress), name, term) for name, term in terms}

    def forward(self, batch: Batch, teachers: list[Output], progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted scalars; their sum is the objective.

        Raises ValueError for a term that returns no scalars by name, or if two terms use the same name.
        """
        losses: dict[str, Tensor] = {}
        for name, own in self.by_term(batch, teachers, progress).items():
            if twice := losses.keys() & own.keys():
                raise ValueError(f"{_in_words(name, self.terms[name])} returns {first_of(twice)}, as another term does")
            losses |= own
        return losses


class Trainer:
    """What the engine trains. All methods share this class; they differ in their terms.

    teachers: frozen. prediction: name of the one whose scores are the result.
    """

    def __init__(
        self,
        student: Student,
        terms: dict[str, Term],
        auxiliary: dict[str, AuxiliaryTerm],
        teachers: nn.ModuleList,
        *,
        prediction: str,
        prediction_heads: dict[str, set[str]],
    ):
        self.student = student
        self.objective = Objective(student, terms)
        self.forward: nn.Module = self.objective  # what training calls: the objective, or the engine's wrapper of it
        self.auxiliary = nn.ModuleDict(auxiliary)
        self.teachers = teachers
        self.prediction = prediction
        self.prediction_heads = prediction_heads
        self.world = World()

    def share(self, world: World) -> None:
        """Set the processes that train the student and its terms."""
        self.world = world
        for term in self._terms():
            term.world = world

    @property
    def terms(self) -> nn.ModuleDict:
        """The terms of the objective, by name."""
        return self.objective.terms

    def _terms(self) -> list[Term]:
        return cast(list[Term], list(self.terms.values()))  # a ModuleDict is typed as holding plain modules

    def auxiliary_terms(self) -> list[AuxiliaryTerm]:
        """Return the auxiliary terms, which are stepped right after the objective."""
        return cast(list[AuxiliaryTerm], list(self.auxiliary.values()))

    @property
    def monitors(self) -> dict[str, Tensor]:
        """Values of the last step to log, not optimised."""
        return {name: value for term in self._terms() for name, value in term.monitors.items()}

    def describe(self) -> str:
        """Return the terms and their weights as text."""
        weighted = [f"{name} {term.weight:g}" for name, term in self.terms.items()]
        return " + ".join(weighted) + "".join(f"; auxiliary: {name}" for name in self.auxiliary)

    def copy_monitors(self) -> None:
        """Clone the monitors of this step, for when the next step overwrites their memory (CUDA graphs)."""
        for term in self._terms():
            term.monitors = {name: value.clone() for name, value in term.monitors.items()}

    def modules(self) -> dict[str, nn.Module]:
        """Return all modules by name, to be moved to the device; all but `teachers` are trained."""
        return {"objective": self.objective, "auxiliary": self.auxiliary, "teachers": self.teachers}

    def trained_parameters(self) -> int:
        """Return the number of trained parameters."""
        trained = (self.objective, self.auxiliary)
        return sum(p.numel() for module in trained for p in module.parameters())

    def deployed(self) -> Student:
        """Return the part of the student that `prediction` needs; it shares the modules."""
        return self.student.deployed(self.prediction_heads[self.prediction])

    def deployed_parameters(self) -> int:
        """Return the number of parameters that `prediction` needs; the others are for training only."""
        return self.student.parameters_of(self.prediction_heads[self.prediction])

    @property
    def auxiliary_optimizers(self) -> list[Optimizer]:
        """Those that step on `auxiliary_losses`."""
        return [optimizer for term in self.auxiliary_terms() for optimizer in term.optimizers]

    def losses(self, batch: Batch, teachers: list[Output], progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted scalars; their sum is the objective. teachers: their outputs for the batch."""
        return self.forward(batch, teachers, progress)

    def auxiliary_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the losses that `auxiliary_optimizers` step on, right after the objective; {} if no step is due."""
        found = self.auxiliary_by_term(batch, progress).values()
        return {name: value for own in found for name, value in own.items()}

    def auxiliary_by_term(self, batch: Batch, progress: Progress) -> dict[str, dict[str, Tensor]]:
        """Return each auxiliary term's losses, by its name. Raises ValueError as the objective does."""
        terms = zip(self.auxiliary, self.auxiliary_terms(), strict=True)
        given = (self.student, batch, progress, self.world)
        return {name: _scalars(term.losses(*given), name, term) for name, term in terms}

    def state_dict(self) -> dict:
        """Return the training state apart from the student's weights."""
        return {
            "terms": self.terms.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.auxiliary_optimizers],
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore the state that `state_dict` returned."""
        self.terms.load_state_dict(state["terms"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        for optimizer, saved in zip(self.auxiliary_optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _scalars(returned, name: str, term: nn.Module) -> dict[str, Tensor]:
    """Return a term's result unchanged. Raises ValueError that names the term if it is not a dictionary of scalars."""
    if not isinstance(returned, dict):
        odd = _kind(returned)
    else:
        odd = ", ".join(f"{key}: {_kind(each)}" for key, each in returned.items() if not _is_scalar(each))
    if odd:
        raise ValueError(
            f"{_in_words(name, term)} returns {odd}, expected a dictionary of scalars by name, tensors of shape ()"
        )
    return returned


def _is_scalar(value) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _in_words(name: str, term: nn.Module) -> str:
    return f"the term {name} ({type(term).__module__}.{type(term).__qualname__})"


def _kind(value) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{type(value).__name__}{shape}"
