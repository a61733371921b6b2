"""Optimizers, from timm."""

import difflib
import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers, param_groups_weight_decay
from torch import nn

KERNELS = ("fused", "foreach", "capturable")  # in a parameter group: how, not what, a step computes


def create_optimizer(
    module: nn.Module,
    *,
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    decay_all: bool = False,
    decayed: Collection[nn.Parameter] = (),
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """Return an optimizer over the parameters of a module, such as a student and its terms.

    name: any of timm.optim; `sgd` has Nesterov momentum, `momentum` does not. Weight decay is not applied to parameters
    of one dimension, biases, and those that the module's `no_weight_decay()` names, except for those in decayed; with
    decay_all it is applied to all. Frozen parameters are in no group. torch's own Adam and SGD are fused.
    Raises ValueError for an unknown name, and for an optimizer that is not available here.
    """
    known = [str(each) for each in list_optimizers()]
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "sgd, adamw, ..."
        raise ValueError(f"OPTIM.NAME is {name!r}, no optimizer of timm.optim; near it: {near}")
    try:
        kind = get_optimizer_class(name, bind_defaults=False)
        fused = {"fused": True} if "fused" in inspect.signature(kind).parameters else {}
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, **fused}
        frozen = not all(p.requires_grad for p in module.parameters())
        # Given a module, timm exempts some parameters from decay and drops frozen ones, but only if there is any decay.
        plain = decay_all or frozen and not weight_decay
        trained = [p for p in module.parameters() if p.requires_grad] if plain else module
        groups = partial(_groups, weight_decay=weight_decay, decayed=set(decayed)) if decayed else None
        optimizer = create_optimizer_v2(trained, opt=name, param_group_fn=groups, **options)
    except Exception as error:  # optimizers of other packages may raise anything if their package is missing
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"OPTIM.NAME {name} cannot be built: {reason}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"OPTIM.NAME {name} needs second derivatives, which no training step here takes")
    return optimizer


def _groups(module: nn.Module, *, weight_decay: float, decayed: set[nn.Parameter]) -> list[dict[str, Any]]:
    """Return the parameter groups that timm makes of a module, with those in decayed that train in another one."""
    spared: set[str] = getattr(module, "no_weight_decay", set)()
    groups = param_groups_weight_decay(module, weight_decay, no_weight_decay_list=spared)
    rest = [group | {"params": [p for p in group["params"] if p not in decayed]} for group in groups]
    own = [p for p in module.parameters() if p in decayed and p.requires_grad]
    return [*rest, {"params": own, "weight_decay": weight_decay}]


@contextmanager
def kernels_kept(optimizers: list[torch.optim.Optimizer]) -> Iterator[None]:
    """Keep the KERNELS of optimizers while states, possibly from another device, are loaded into them."""
    before = [[{key: group[key] for key in KERNELS if key in group} for group in o.param_groups] for o in optimizers]
    yield
    for optimizer, groups in zip(optimizers, before, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return a new optimizer of torch with the same groups and a fused step.

    With fp16, a fused step checks on the device whether gradients are finite; others synchronize with the host.
    """
    groups = [{key: value for key, value in group.items() if key != "fused"} for group in optimizer.param_groups]
    return type(optimizer)(groups, **optimizer.defaults | {"fused": True})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times the group's own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
