"""Print what a run would train: parameters, operations, terms, taps."""

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode

from pycls_std.builders.data import build_info
from pycls_std.builders.models import find_pretrained
from pycls_std.builders.teachers import build_teachers
from pycls_std.builders.training import build_described_trainer
from pycls_std.core.structures import Normalization
from pycls_std.models.describe import Description

LOG = logging.getLogger("pycls_std")

# Of an input whose values do not matter.
UNKNOWN = Normalization((0.0,) * 3, (1.0,) * 3)


def info(cfg) -> None:
    """Print the parameters, the operations and the taps of the student and its teachers; nothing is downloaded.

    The data is read only if MODEL.NUM_CLASSES leaves the number of classes to it.
    """
    classes = cfg.MODEL.NUM_CLASSES or len(build_info(cfg).classes)
    weights = find_pretrained(cfg, fetch=False)
    trainer, run = build_described_trainer(cfg, classes)
    size = cfg.DATA.IMAGE_SIZE
    deployed, trained = trainer.deployed_parameters(), trainer.trained_parameters()
    LOG.info("%s, %s: %d classes, %d px", cfg.TRAINER, cfg.MODEL.NAME, classes, size)
    LOG.info("starts from %s", _without_consequence(weights.student.source))
    LOG.info("terms       %s", ", ".join([*trainer.terms, *trainer.auxiliary]))
    LOG.info("parameters  %d in training = %d deployed + %d train-only", trained, deployed, trained - deployed)
    gflops = operations(trainer.deployed(), size) / 1e9
    LOG.info("operations  %.3f GFLOPs for an image forward (2 for a multiply-add)", gflops)
    _show_taps("", run.student)
    pairs = zip(
        build_teachers(cfg, classes, UNKNOWN, weights.teachers),
        run.teachers,
        strict=True,
    )
    for teacher, described in pairs:
        gflops = operations(teacher, teacher.image_size) / 1e9
        LOG.info("teacher     %s: %d parameters, %.3f GFLOPs", teacher.name, _count(teacher), gflops)
        LOG.info("            %s", _without_consequence(teacher.description))
        _show_taps("  ", described)


def _show_taps(indent: str, description: Description) -> None:
    """Print the taps by position and name, if there are any."""
    try:
        taps = description.taps
    except ValueError as error:
        LOG.info("%sno taps: %s", indent, error)
        return
    for index, (name, shape) in enumerate(taps.items()):
        LOG.info("%stap %-7d %s: %d channels, %d x %d", indent, index, name, *shape)


def _without_consequence(source: str) -> str:
    """Return the source of weights without the note that they are random for now, as nothing is run with them."""
    return source.replace(", so random weights", "")


def _count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def operations(module, image_size: int) -> int:
    """Return the operations of a forward pass of one image, 2 for a multiply-add. image_size: side, pixels."""
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, image_size, image_size, device=device))
    module.train(was_training)
    return counter.get_total_flops()
