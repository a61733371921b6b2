"""Low precision and prepared teachers leave the losses of a run where they are."""

import pytest
import torch

from pycls_std.builders.teachers import optimize_teachers
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.core.structures import Progress
from pycls_std.engine import loop
from pycls_std.engine.optim import set_learning_rate


def losses(cfg, steps, *, optimize):
    """The sum of the losses in each of the first steps of a run at its peak rate, and its teachers' report."""
    runtime = build_runtime(cfg)
    session, *_ = build_all(cfg, runtime)
    lines = optimize_teachers(cfg, session) if optimize else []
    session.trainer.student.train()
    set_learning_rate(session.optimizer, cfg.OPTIM.BASE_LR)
    found = []
    for step in range(steps):
        epoch, iteration = divmod(step, len(session.train_loader))
        session.train_loader.sampler.epoch = epoch
        if iteration == 0:
            batches = iter(session.train_loader)
        progress = Progress(epoch, iteration, len(session.train_loader), 3)
        batch = session.task.batch(runtime.to_device(next(batches)), progress)
        terms, _ = loop.train_step(session, batch, progress)
        found.append(sum(terms.values()).detach())
    return torch.stack(found), lines


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_20_steps_in_bf16_with_prepared_teachers(std, form):
    """STD with a trained teacher, all augmentation: within 1e-2 of the eager step in fp32, while the loss falls."""
    words = {"MINE__SAMPLES": 0, "DISTILLATION__TYPE": form, "OPTIM__BASE_LR": 0.0005}
    plain, _ = losses(std(**words), 20, optimize=False)
    fast, lines = losses(std(PRECISION="bf16", **words), 20, optimize=True)
    assert "9 batch norms folded, bf16" in lines[0]
    assert (plain - fast).abs().max() < 1e-2
    assert plain[-5:].mean() < plain[:5].mean() - 0.01
