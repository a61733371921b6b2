"""What terms to come will ask of the contract: heads at taps, statistics of a batch, a teacher's last stage.

One of each, as small as it gets; published methods of these kinds are OFA-KD (exit heads), RSD (correlations over the
batch) and ScaleKD (the teacher's frozen stage).
"""

import copy

import pytest
import torch
from methods import CAPTURES, START, batch, make
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from pycls_std.builders.method import teacher_requests
from pycls_std.builders.training import build_described_trainer
from pycls_std.core.structures import Output
from pycls_std.engine.optim import create_optimizer
from pycls_std.engine.runtime import Runtime
from pycls_std.models.taps import POOLED
from pycls_std.teachers.folding import fold_batch_norms
from pycls_std.teachers.outputs import LiveTeachers
from pycls_std.terms.base import Term
from pycls_std.trainers.base import Trainer

TAPS = ("blocks.0", "blocks.3")
WIDTH, STAGE = 16, 32  # channels of the student's taps, of what the teacher's last stage takes


class ExitHeads(Term):
    """Classifiers at taps, which learn the teacher's labels."""

    def __init__(self):
        super().__init__(1.0, student_taps=TAPS)
        self.teacher_heads = (0,)
        self.exits = nn.ModuleList(nn.Linear(WIDTH, 10) for _ in TAPS)

    def forward(self, student, teachers, batch, progress):
        labels = teachers[0].heads["cls"].argmax(dim=1)
        logits = [head(student.features[tap].mean(dim=(2, 3))) for head, tap in zip(self.exits, TAPS, strict=True)]
        return {f"exit{i}": self.weight * cross_entropy(each.float(), labels) for i, each in enumerate(logits)}


class Correlations(Term):
    """The cross-correlation over a batch of what both classifiers read, to be the identity."""

    def __init__(self):
        super().__init__(0.5, student_taps=(POOLED,), teacher_taps={0: (POOLED,)})
        self.projector = nn.Linear(WIDTH, 64)

    def forward(self, student, teachers, batch, progress):
        pair = self.projector(student.features[POOLED]).float(), teachers[0].features[POOLED]
        first, second = ((x - x.mean(dim=0)) / (x.std(dim=0) + 1e-6) for x in pair)
        correlation = first.T @ second / len(first)
        return {"correlation": self.weight * (correlation - torch.eye(64)).square().mean()}


class LastStage(Term):
    """The student's last map goes through the teacher's frozen last stage, and should be what the teacher's becomes."""

    def __init__(self):
        super().__init__(1.0, student_taps=TAPS[1:], teacher_taps={0: ("layer3",)})
        self.projector = nn.Conv2d(WIDTH, STAGE, 1)

    def attach(self, teachers):
        self.teachers = teachers  # a list is no module, so they are not this term's to train or save

    def forward(self, student, teachers, batch, progress):
        features = interpolate(self.projector(student.features[TAPS[1]]), 16)
        teacher = self.teachers[0]
        with teacher.precision():
            final = teacher.backbone.get_submodule("layer3")(features.to(teacher.dtype))
        return {"stage": self.weight * (final.float() - teachers[0].features["layer3"]).square().mean()}


def trainer_of(load, kinds):
    """A mixer with the baseline's term and these, and one untrained ResNet-8; and what asks the teacher."""
    method = make(load, "baseline")
    teachers = make(load, "kd", teachers=1).teachers
    terms = {"task": method.trainer.terms["task"]} | {kind.__name__: kind() for kind in kinds}
    for term in terms.values():
        term.attach(list(teachers))
    heads = {"cls": {"cls"}}
    trainer = Trainer(method.student, terms, {}, teachers, prediction="cls", prediction_heads=heads)
    return trainer, LiveTeachers(teachers, teacher_requests(terms, 1))


KINDS = [(ExitHeads,), (Correlations,), (LastStage,), (ExitHeads, Correlations, LastStage)]


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "+".join(kind.__name__ for kind in kinds))
@pytest.mark.parametrize("way", ["fp32", "bf16", "folded", "compiled"])
def test_it_trains_student_and_adapters_and_no_teacher(load, kinds, way):
    trainer, live = trainer_of(load, kinds)
    runtime, (teacher,) = Runtime(device="cpu", precision="bf16" if way == "bf16" else "fp32"), live.teachers
    if way == "folded":
        (request,) = live.requests
        folded, count = fold_batch_norms(teacher.backbone, torch.randn(2, 3, 32, 32), request.taps)
        assert count == 9
        teacher.use(folded, dtype=torch.float32, precision=runtime.full_precision)
    if way == "bf16":
        low = runtime.convert(copy.deepcopy(teacher.backbone), "bf16")
        teacher.use(low, dtype=torch.bfloat16, precision=runtime.full_precision)
    losses = torch.compile(trainer.losses, backend=CAPTURES) if way == "compiled" else trainer.losses
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    data = batch()
    with runtime.autocast():
        values = losses(data, live(data, START), START)
    runtime.step(values, [torch.optim.SGD(trainer.objective.parameters(), lr=0.1)])
    assert all(value.isfinite() for value in values.values()) and "ce" in values
    assert [name for name, p in trainer.objective.named_parameters() if p.grad is None] == []
    assert [name for name, p in trainer.terms.named_parameters() if not p.grad.any()] == []
    assert trainer.student.backbone.stem.proj.weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(p.grad is not None for p in teacher.parameters())


def test_adapters_are_trained_and_saved_but_not_deployed(load):
    trainer, _ = trainer_of(load, KINDS[-1])
    adapters = 2 * (WIDTH * 10 + 10) + WIDTH * 64 + 64 + WIDTH * STAGE + STAGE
    assert trainer.trained_parameters() - trainer.deployed_parameters() == adapters
    saved = trainer.state_dict()["terms"]
    assert sum(value.numel() for value in saved.values()) == adapters
    other, _ = trainer_of(load, KINDS[-1])
    for parameter in other.terms.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(trainer.state_dict())
    assert all(torch.equal(value, saved[name]) for name, value in other.terms.state_dict().items())


def test_teachers_are_handed_over_where_there_are_some(load, monkeypatch):
    """Not to a run that is only described."""
    handed = []
    monkeypatch.setattr(Term, "attach", lambda self, teachers: handed.append(len(teachers)))
    make(load, "kd", teachers=2)
    assert handed == [2, 2]
    build_described_trainer(make(load, "kd", teachers=2).cfg, 10)
    assert handed == [2, 2] * 2


def test_weight_decay_spares_what_a_term_says(load):
    class Spared(ExitHeads):
        def no_weight_decay(self):
            return {"exits.0.weight"}

    trainer, _ = trainer_of(load, (Spared,))
    optimizer = create_optimizer(trainer.objective, name="adamw", lr=0.1, weight_decay=0.05)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    exits = trainer.terms["Spared"].exits
    assert [decays[head.weight] for head in exits] == [0.0, 0.05]
    assert decays[exits[1].bias] == 0.0  # of one dimension


def test_a_last_stage_called_with_the_teachers_own_features_gives_its_own(load):
    """With the teacher's map in the place of the student's, the distance is 0; with another one it is not."""
    trainer, live = trainer_of(load, (LastStage,))
    (teacher,), term, data = live.teachers, trainer.terms["LastStage"], batch()
    term.projector = nn.Identity()
    with torch.no_grad():
        _, maps = teacher.backbone.forward_intermediates(data.images)
        values = [
            float(term(Output({}, {TAPS[1]: features}), live(data, START), data, START)["stage"])
            for features in (maps[1], maps[1].flip(0))
        ]
    assert values[0] == pytest.approx(0, abs=1e-9) and values[1] > 1e-3
