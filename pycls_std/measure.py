"""Describe and time what a run would train, without training it."""

import logging
import time as clock
from itertools import count

import torch
from torch.utils.flop_counter import FlopCounterMode

from pycls_std.builders.data import build_info
from pycls_std.builders.models import build_teachers, build_untaught_trainer, find_teacher_weights, taps
from pycls_std.builders.training import build_all, build_runtime
from pycls_std.engine import loop
from pycls_std.engine.optim import set_learning_rate
from pycls_std.structures import Normalization, Progress

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


def time(cfg) -> None:
    """Print images/s of the data alone, of forward passes and of whole training steps, and the peak memory.

    Nothing is downloaded but the data: teachers whose weights are not at hand are timed with random ones.
    """
    session, _ = build_all(cfg, build_runtime(cfg), fetch=False)
    trainer, runtime = session.trainer, session.runtime
    batches = _endless(session)
    set_learning_rate(session.optimizer, 0.0)  # the peak rate without its warm-up would diverge
    held = session.mixing(*runtime.to_device(next(batches)))
    steps = count()

    def step(batch):
        epoch, iteration = divmod(next(steps), len(session.train_loader))
        loop.train_step(session, batch, Progress(epoch, iteration, len(session.train_loader), session.epochs))

    def forward():
        with torch.no_grad(), runtime.autocast():
            trainer.student(held.images)

    def teach():
        with runtime.autocast():
            for teacher in trainer.teachers:
                teacher(held.images)

    jobs = {
        "data": lambda: next(batches),
        "student forward": forward,
        **({"teachers forward": teach} if len(trainer.teachers) else {}),
        "training step": lambda: step(held),
        "data and step": lambda: step(session.mixing(*runtime.to_device(next(batches)))),
    }
    trainer.student.train()
    for teacher in trainer.teachers:
        LOG.info("%s", teacher.description)
    LOG.info("%s, %s, batch %d", runtime.device_name(), cfg.PRECISION, cfg.TRAIN.BATCH_SIZE)
    for name, job in jobs.items():
        for repetition in range(cfg.TIME.WARMUP + cfg.TIME.STEPS):
            if repetition == cfg.TIME.WARMUP:
                runtime.synchronize()
                start = clock.perf_counter()
            job()
        runtime.synchronize()
        seconds = (clock.perf_counter() - start) / cfg.TIME.STEPS
        LOG.info("%-17s %10.1f images/s  %9.2f ms a batch", name, cfg.TRAIN.BATCH_SIZE / seconds, 1e3 * seconds)
    LOG.info("%-17s %10.3f GiB", "peak memory", runtime.peak_memory())


def _endless(session):
    epoch = 0
    while True:
        session.train_loader.sampler.epoch = epoch
        yield from session.train_loader
        epoch += 1


def _count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def _gflops(module, image_size) -> float:
    was_training = module.training
    module.eval()
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, image_size, image_size))
    module.train(was_training)
    return counter.get_total_flops() / 1e9
