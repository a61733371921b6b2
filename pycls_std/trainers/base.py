"""What is optimised: one student, its teachers, and the terms of the objective."""

from typing import cast

from torch import Tensor, nn
from torch.optim import Optimizer

from pycls_std.core.structures import Batch, Output, Progress, World
from pycls_std.core.text import first_of
from pycls_std.models.student import Student
from pycls_std.terms.base import AuxiliaryTerm, Term


class Preset:
    """A named method: the weights that it gives to terms, unless a config says otherwise.

    Registered in TRAINERS. What is in capitals must be literals, for they are read before torch is there.
    """

    DEFAULTS: dict[str, object] = {}  # of options of the page and of terms
    PRESETS: dict[str, dict[str, object]] = {}  # such defaults where another option has a value, by KEY=value
    OPTIONS: dict[str, object] = {}  # private ones

    @classmethod
    def check(cls, cfg, backbone: nn.Module) -> None:
        """Raise ValueError for a backbone or options that the method cannot use."""


class Objective(nn.Module):
    """The student and the terms it is trained by: everything with a gradient, in one forward pass.

    So what shares it between processes and what compiles it sees all of it.
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
        """Return what each term returns, by its name. Raises ValueError for one that returns no scalars by name."""
        output = self.student(batch.images, self.taps)
        terms = self.terms.items()
        return {name: _scalars(term(output, teachers, batch, progress), name, term) for name, term in terms}

    def forward(self, batch: Batch, teachers: list[Output], progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted scalars; their sum is the objective.

        Raises ValueError for a term that returns no scalars by name, or one by a name of another term's.
        """
        losses: dict[str, Tensor] = {}
        for name, own in self.by_term(batch, teachers, progress).items():
            if twice := losses.keys() & own.keys():
                raise ValueError(f"{_in_words(name, self.terms[name])} returns {first_of(twice)}, as another term does")
            losses |= own
        return losses


class Trainer:
    """What the engine steps. All methods are this one class; they differ in their terms.

    teachers: frozen. prediction: name of the one that counts as the result.
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
        self.forward: nn.Module = self.objective  # as training must call it: wrapped, where the engine wraps it
        self.auxiliary = nn.ModuleDict(auxiliary)
        self.teachers = teachers
        self.prediction = prediction
        self.prediction_heads = prediction_heads
        self.world = World()

    def share(self, world: World) -> None:
        """Let the student and its terms train in these processes."""
        self.world = world
        for term in self._terms():
            term.world = world

    @property
    def terms(self) -> nn.ModuleDict:
        """The terms of the objective, by name."""
        return self.objective.terms

    def _terms(self) -> list[Term]:
        return cast(list[Term], list(self.terms.values()))  # a ModuleDict says of what it holds that they are modules

    def auxiliary_terms(self) -> list[AuxiliaryTerm]:
        """Return those that are stepped right after the objective."""
        return cast(list[AuxiliaryTerm], list(self.auxiliary.values()))

    @property
    def monitors(self) -> dict[str, Tensor]:
        """Values of the last step worth a curve, not optimised."""
        return {name: value for term in self._terms() for name, value in term.monitors.items()}

    def describe(self) -> str:
        """Return the terms and their weights in words."""
        weighted = [f"{name} {term.weight:g}" for name, term in self.terms.items()]
        return " + ".join(weighted) + "".join(f"; auxiliary: {name}" for name in self.auxiliary)

    def copy_monitors(self) -> None:
        """Keep the monitors of this step, where the next one writes to the same memory."""
        for term in self._terms():
            term.monitors = {name: value.clone() for name, value in term.monitors.items()}

    def modules(self) -> dict[str, nn.Module]:
        """Return all modules by name, to be placed on the device; `teachers` are not trained, the others are."""
        return {"objective": self.objective, "auxiliary": self.auxiliary, "teachers": self.teachers}

    def trained_parameters(self) -> int:
        """Return how many parameters are trained."""
        trained = (self.objective, self.auxiliary)
        return sum(p.numel() for module in trained for p in module.parameters())

    def deployed(self) -> Student:
        """Return the student as `prediction` needs it; the same modules."""
        return self.student.deployed(self.prediction_heads[self.prediction])

    def deployed_parameters(self) -> int:
        """Return how many parameters `prediction` needs; the others serve training only."""
        return self.student.parameters_of(self.prediction_heads[self.prediction])

    @property
    def auxiliary_optimizers(self) -> list[Optimizer]:
        """Those that step on `auxiliary_losses`."""
        return [optimizer for term in self.auxiliary_terms() for optimizer in term.optimizers]

    def losses(self, batch: Batch, teachers: list[Output], progress: Progress) -> dict[str, Tensor]:
        """Return named, weighted scalars; their sum is the objective. teachers: what they say of the batch."""
        return self.forward(batch, teachers, progress)

    def auxiliary_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return a second objective, stepped by `auxiliary_optimizers` right after the first; {} for none now."""
        found = self.auxiliary_by_term(batch, progress).values()
        return {name: value for own in found for name, value in own.items()}

    def auxiliary_by_term(self, batch: Batch, progress: Progress) -> dict[str, dict[str, Tensor]]:
        """Return what each auxiliary term returns, by its name. Raises ValueError as the objective does."""
        terms = zip(self.auxiliary, self.auxiliary_terms(), strict=True)
        given = (self.student, batch, progress, self.world)
        return {name: _scalars(term.losses(*given), name, term) for name, term in terms}

    def state_dict(self) -> dict:
        """Return the training state that is not in the student."""
        return {
            "terms": self.terms.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.auxiliary_optimizers],
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.terms.load_state_dict(state["terms"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        for optimizer, saved in zip(self.auxiliary_optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _scalars(returned, name: str, term: nn.Module) -> dict[str, Tensor]:
    """Return what a term returned. Raises ValueError that names the term if it is no dictionary of scalars."""
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
