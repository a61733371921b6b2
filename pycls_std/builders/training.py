"""Build a session from the options: the optimizer, the learning rate, the average, the loop's settings."""

from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer

from pycls_std.builders.data import Data, build_data, build_mixing
from pycls_std.builders.models import Given, build_backbone, build_teachers, build_trainer, find_given, start_from
from pycls_std.core.registry import SCHEDULES
from pycls_std.core.seeding import seed_all
from pycls_std.core.structures import Trainer
from pycls_std.engine.ema import create_ema
from pycls_std.engine.loop import Session
from pycls_std.engine.optim import create_optimizer
from pycls_std.engine.runtime import Runtime
from pycls_std.engine.schedule import learning_rate


def peak_learning_rate(cfg) -> float:
    """Return BASE_LR, scaled by the batch size if LR_BATCH is set."""
    scale = cfg.TRAIN.BATCH_SIZE / cfg.OPTIM.LR_BATCH if cfg.OPTIM.LR_BATCH else 1.0
    return cfg.OPTIM.BASE_LR * scale


def build_schedule(cfg) -> Callable[[float], float]:
    """Return the function from progress in [0, 1] to the learning rate."""
    optim = cfg.OPTIM
    shape = SCHEDULES.get(optim.SCHEDULE)
    if optim.SCHEDULE == "step":
        shape = partial(shape, steps=tuple(epoch / optim.MAX_EPOCH for epoch in optim.STEPS), gamma=optim.GAMMA)
    return partial(
        learning_rate,
        shape=shape,
        peak=peak_learning_rate(cfg),
        lowest=optim.MIN_LR if optim.SCHEDULE == "cosine" else 0.0,
        warmup=optim.WARMUP_EPOCHS / optim.MAX_EPOCH,
        warmup_lr=optim.WARMUP_LR,
    )


def build_optimizer(cfg, trainer: Trainer) -> Optimizer:
    """Return the optimizer of the main objective."""
    return create_optimizer(
        trainer.student,
        name=cfg.OPTIM.NAME,
        lr=peak_learning_rate(cfg),
        weight_decay=cfg.OPTIM.WEIGHT_DECAY,
        momentum=cfg.OPTIM.MOMENTUM,
    )


def build_runtime(cfg) -> Runtime:
    """Return the device and the precision."""
    return Runtime(device=cfg.DEVICE, precision=cfg.PRECISION, seed=cfg.SEED)


def build_session(cfg, *, data: Data, runtime: Runtime, trainer: Trainer) -> Session:
    """Place the trainer's modules on the device and return all that training needs.

    Raises ValueError if an epoch has fewer images than MINE.SAMPLES.
    """
    images = len(data.train) * cfg.TRAIN.BATCH_SIZE // cfg.AUG.REPEATS  # of all processes
    if images < cfg.MINE.SAMPLES:
        raise ValueError(f"MINE.SAMPLES is {cfg.MINE.SAMPLES}, an epoch has {images} images")
    for module in trainer.modules().values():
        runtime.place(module)
    ema = create_ema(trainer.student, decay=cfg.TRAIN.EMA_DECAY, warmup=cfg.TRAIN.EMA_WARMUP)
    runtime.distribute(trainer)
    runtime.compile(trainer, cfg.TRAIN.COMPILE, iterations=cfg.OPTIM.MAX_EPOCH * len(data.train))
    return Session(
        trainer=trainer,
        runtime=runtime,
        train_loader=data.train,
        test_loader=data.test,
        mixing=build_mixing(cfg, len(data.info.classes)),
        optimizer=build_optimizer(cfg, trainer),
        schedule=build_schedule(cfg),
        ema=ema,
        epochs=cfg.OPTIM.MAX_EPOCH,
        clip_norm=cfg.OPTIM.CLIP_NORM,
        test_period=cfg.TEST.PERIOD,
        log_period=cfg.LOG_PERIOD,
    )


def build_all(cfg, runtime: Runtime, *, fetch: bool = True, start: bool = True) -> tuple[Session, Data]:
    """Return all that training needs. Given weights are found first, so that what is absent is told at once.

    fetch, start: which weights are looked for, see `find_given`.
    """
    world = runtime.world
    given = world.in_turn(lambda: find_given(cfg, fetch=fetch, start=start))
    data = world.in_turn(lambda: build_data(cfg, device=runtime.device, world=world))
    return assemble(cfg, data=data, runtime=runtime, given=given), data


def assemble(cfg, *, data: Data, runtime: Runtime, given: Given) -> Session:
    """Return all that training needs; what the student is not given of its weights follows from the seed."""
    classes = len(data.info.classes)
    own = data.info.normalization
    weights = [w if w.normalization else w._replace(normalization=own) for w in given.teachers]
    seed_all(cfg.SEED)
    backbone = build_backbone(cfg, classes)
    start_from(backbone, given.student)
    teachers = build_teachers(cfg, classes, data.normalization, weights)
    trainer = build_trainer(cfg, backbone=backbone, teachers=teachers)
    return build_session(cfg, data=data, runtime=runtime, trainer=trainer)
