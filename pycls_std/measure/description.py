"""Print what a run would train: parameters, operations, taps."""

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode

from pycls_std.builders.data import build_info
from pycls_std.builders.models import build_teachers, build_untaught_trainer, find_teacher_weights, taps
from pycls_std.core.structures import Normalization

LOG = logging.getLogger("pycls_std")

# Of an input whose values do not matter.
UNKNOWN = Normalization((0.0,) * 3, (1.0,) * 3)


def info(cfg) -> None:
    """Print the parameters, the operations and the taps of the student and its teachers; nothing is downloaded.

    The data is read only if MODEL.NUM_CLASSES leaves the number of classes to it.
    """
    classes = cfg.MODEL.NUM_CLASSES or len(build_info(cfg).classes)
    trainer = build_untaught_trainer(cfg, classes)
    size = cfg.DATA.IMAGE_SIZE
    deployed = trainer.deployed_parameters()
    trained = sum(_count(module) for name, module in trainer.modules().items() if name != "teachers")
    LOG.info("%s, %s: %d classes, %d px", cfg.TRAINER, cfg.MODEL.NAME, classes, size)
    LOG.info("parameters  %d in training = %d deployed + %d train-only", trained, deployed, trained - deployed)
    LOG.info("operations  %.3f GFLOPs for an image forward (2 for a multiply-add)", _gflops(trainer.student, size))
    for teacher in build_teachers(cfg, classes, UNKNOWN, find_teacher_weights(cfg, fetch=False)):
        gflops = _gflops(teacher, teacher.image_size)
        LOG.info("teacher     %s: %d parameters, %.3f GFLOPs", teacher.name, _count(teacher), gflops)
        LOG.info("            %s", teacher.description)
    for index, shape in enumerate(taps(cfg, trainer.student.backbone)):
        LOG.info("tap %-7d %d channels, %d patches", index, shape.channels, shape.patches)


def _count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def _gflops(module, image_size) -> float:
    was_training = module.training
    module.eval()
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, image_size, image_size))
    module.train(was_training)
    return counter.get_total_flops() / 1e9
