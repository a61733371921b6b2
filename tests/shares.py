"""The first steps of a run by one process, and by two that share each batch: what becomes of all that trains."""

import sys
from types import SimpleNamespace

import torch
from processes import finish, two_ranks
from records import SMALL

from pycls_std.builders.training import build_all, build_runtime
from pycls_std.check.processes import train
from pycls_std.core.structures import take
from pycls_std.engine.distributed import Processes, close

STEPS, IMAGES = 2, 32  # images of a step, of all processes
# Plain SGD, for AdamW divides gradients near 0 by their size and makes much of the last digit.
FEW = SMALL | {"TRAIN__BATCH_SIZE": IMAGES, "AUG__REPEATS": 1}
FEW |= {"OPTIM__NAME": "momentum", "OPTIM__BASE_LR": 0.1, "OPTIM__WARMUP_EPOCHS": 0, "OPTIM__CLIP_NORM": 1}


def steps_of(cfg, *, parts=1):
    """Return the parameters of student and terms after two steps, and what memories hold, by name.

    parts: into which a batch falls as between so many processes; what is stepped on is then the mean of their losses.
    """
    session, *_ = build_all(cfg, build_runtime(cfg), fetch=False)
    trainer, loader = session.trainer, iter(session.train_loader)
    session.train_loader = [next(loader) for _ in range(STEPS)]
    if parts > 1:
        trainer.losses = mean_over_shares(trainer.losses, parts)
    before = {name: p.detach().clone() for name, p in trainer.objective.named_parameters()}
    train(session, epoch=0)
    after = {name: p.detach() for name, p in trainer.objective.named_parameters()}
    assert apart(before, after) > 1e-3, "nothing was learned"
    return after | {name: value for name, value in trainer.terms.named_buffers() if "memory" in name}


def mean_over_shares(losses, parts):
    """Return losses(batch, teachers, progress) that compute each process's share of the images by itself."""
    worlds = [SimpleNamespace(rank=rank, size=parts) for rank in range(parts)]
    shares = [Processes.positions(world, IMAGES) for world in worlds]

    def mean(batch, teachers, progress):
        each = [losses(take(batch, own), [take(one, own) for one in teachers], progress) for own in shares]
        return {name: sum(found[name] for found in each) / parts for name in each[0]}

    return mean


def apart(first, second):
    """Return the greatest difference of tensors of the same names."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def steps_of_two(folder, methods):
    """Return what `steps_of` returns of several methods, {name: options}, in two processes; fail if they differ."""
    both = two_ranks(folder, [], hook="shares:take_steps", arguments=(str(folder), methods))
    finish(*both, patience=240)
    first, second = (torch.load(folder / f"steps{rank}.pt", weights_only=True) for rank in range(2))
    assert {name: apart(first[name], second[name]) for name in methods} == dict.fromkeys(methods, 0.0)
    return first


def take_steps(folder, methods):
    """Hook: be one of two processes, and note what becomes of each method."""
    found = {name: steps_of(cfg) for name, cfg in methods.items()}
    rank = build_runtime(next(iter(methods.values()))).world.rank
    torch.save(found, f"{folder}/steps{rank}.pt")
    close()
    sys.exit(0)
