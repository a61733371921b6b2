"""Methods on tiny backbones, with untrained teachers: what several tests build, step and look into."""

from inspect import signature

import numpy as np
import torch

from pycls_std.builders.cache import build_cache
from pycls_std.builders.data import build_task
from pycls_std.builders.method import build_backbone, build_student, build_trainer, describe_run, teacher_requests
from pycls_std.builders.teachers import build_teachers
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.builders.weights import Weights
from pycls_std.core.registry import LOGIT_LOSSES
from pycls_std.core.structures import Loaded, Normalization, Progress
from pycls_std.engine.optim import create_optimizer
from pycls_std.engine.runtime import Runtime
from pycls_std.tasks.mixing import Mixing
from pycls_std.teachers.outputs import LiveTeachers

HALF = Normalization((0.5,) * 3, (0.5,) * 3)
START = Progress(0, 0, 1, 1)
# The compiler that captures a step as all do, and leaves it at that; tests/test_compile.py goes on from there.
CAPTURES = "eager"
DEIT = "deit_tiny_distilled_patch16_224"
FAMILIES = {
    "mixer_nano4": {"num_blocks": 4, "embed_dim": 16, "patch_size": 8},
    "resmlp_s12": {"num_blocks": 4, "embed_dim": 16, "patch_size": 8},
    "gmlp_ti16_224": {},
    "deit_tiny_patch16_224": {"depth": 4, "embed_dim": 24, "patch_size": 8},
    "pvt_v2_b0": {"depths": [1, 1, 1, 1]},
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]},
    "resnet8": {},
}
STUDENTS = FAMILIES | {
    DEIT: {"depth": 2, "embed_dim": 24, "patch_size": 8},
    "pit_ti_224": {},
    "pit_ti_distilled_224": {},
    "convit_tiny": {"depth": 4, "local_up_to_layer": 3},
    "deit_ti_conv": {"depth": 4, "embed_dim": 24, "patch_size": 8},
}


def options_of(trainer, name="mixer_nano4", teachers=1, size=32, **overrides):
    """Overrides of debug/base_debug that make it a run of a method on a tiny backbone."""
    args = {f"MODEL__ARGS__{key}": value for key, value in STUDENTS.get(name, {}).items()}
    options = {"TRAINER": trainer, "MODEL__NAME": name, "MODEL__ARGS": "null", **args, "DATA__IMAGE_SIZE": size}
    options |= {"AUG__REPEATS": 1}
    if teachers:
        options |= {"DISTILLATION__TEACHERS": f"{['resnet8'] * teachers}"}
        options |= {"DISTILLATION__TEACHER_WEIGHTS": f"{['none'] * teachers}"}
    return options | overrides


def logit_loss(form, student, teacher, labels, **options):
    """A form of logit distillation, by its own function, at the start of a run; labels: for one that asks for them."""
    function = LOGIT_LOSSES.get(form)
    known = {"labels": labels, "progress": START}
    known |= {name: torch.tensor(value) for name, value in getattr(function, "learned", {}).items()}
    asked = {name: known[name] for name in signature(function).parameters if name in known}
    return function(student, teacher, **asked, **options)


class Method:
    """A trainer and its teachers, which are asked as in a run."""

    def __init__(self, cfg, classes=10, backbone=None):
        torch.manual_seed(0)
        none = [Weights(None, "none") for _ in cfg.DISTILLATION.TEACHERS]
        self.cfg = cfg
        self.run = describe_run(cfg, build_task(cfg, classes), weights=none)
        backbone = build_backbone(cfg, classes) if backbone is None else backbone
        teachers = build_teachers(cfg, classes, HALF, none)
        self.student = build_student(cfg, backbone, self.run)
        self.trainer = build_trainer(cfg, self.student, self.run, teachers)
        self.teachers = self.trainer.teachers
        self.task = self.run.task
        requests = teacher_requests(dict(self.trainer.terms.items()), len(teachers))
        self.live = LiveTeachers(self.teachers, requests)

    def losses(self, batch, progress=START):
        """The terms of a step."""
        return self.trainer.losses(batch, self.live(batch, progress), progress)


def make(load, trainer, name="mixer_nano4", teachers=2, backbone=None, **overrides):
    """A method on a family of tiny backbones at 32 px, or on the given one, with untrained teachers."""
    teachers = 0 if trainer == "baseline" else teachers
    return Method(load("debug/base_debug", **options_of(trainer, name, teachers, **overrides)), backbone=backbone)


def two_steps(method, way, lr=0.01):
    """The losses of the second of two epochs of one step each. way: `fp32`, `bf16`, or `compiled`, in fp32."""
    trainer, runtime = method.trainer, Runtime(device="cpu", precision="bf16" if way == "bf16" else "fp32")
    losses = trainer.losses
    if way == "compiled":
        torch._dynamo.reset()
        losses = torch.compile(losses, backend=CAPTURES)
    optimizer = create_optimizer(trainer.objective, name="momentum", lr=lr)
    data = batch()
    for epoch in range(2):
        progress = Progress(epoch, 0, 1, 2)
        with runtime.autocast():
            values = losses(data, method.live(data, progress), progress)
        runtime.step(values, [optimizer])
    assert all(value.isfinite() and value.ndim == 0 for value in values.values())
    assert all(p.grad is not None for p in trainer.objective.parameters())
    return values


def cached(cfg, epochs=1, **options):
    """A session of a run that keeps what its teachers say of so many epochs, its data, and what keeps it."""
    session, data, weights = build_all(cfg, build_runtime(cfg), **options)
    return session, data, build_cache(cfg, session=session, data=data, weights=weights.teachers, epochs=range(epochs))


def batch(size=4, side=32, classes=10):
    """Mixed images with their targets, always the same."""
    np.random.seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, side, side, generator=generator)
    labels = torch.randint(0, classes, (size,), generator=generator)
    return Mixing(classes, mixup=0.8, smoothing=0.1)(Loaded(images, labels, torch.arange(size)), START)
