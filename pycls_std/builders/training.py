"""Build a session from the options: optimizer, learning rate schedule, moving average, settings of the loop."""

import logging
from collections.abc import Callable
from functools import partial

from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from pycls_std import config
from pycls_std.builders.data import Data, build_data, build_task
from pycls_std.builders.method import build_backbone, build_student, build_trainer, describe_run, teacher_requests
from pycls_std.builders.models import (
    PretrainedWeights,
    find_pretrained,
    find_teacher_weights,
    refuse_other_arguments,
    start_from,
    tell_of_other_use,
)
from pycls_std.builders.teachers import Lesson, build_teachers, optimize_teachers
from pycls_std.builders.token_mixing import choose_token_mixing, refuse_unfit_student
from pycls_std.builders.trained_data import check_teachers_data, warn_of_held_out
from pycls_std.builders.weights import Weights
from pycls_std.core.seeding import seed_all
from pycls_std.core.structures import World
from pycls_std.engine.checkpoint import fingerprint
from pycls_std.engine.loop import Session
from pycls_std.engine.optim import create_optimizer
from pycls_std.engine.runtime import Runtime
from pycls_std.engine.schedule import PERIODS, SCHEDULES, learning_rate
from pycls_std.models.create import parameters_within
from pycls_std.teachers.outputs import LiveTeachers
from pycls_std.teachers.teacher import Request, Teacher
from pycls_std.terms.base import RunDescription
from pycls_std.trainers.base import Trainer

LOG = logging.getLogger("pycls_std")


def peak_learning_rate(cfg) -> float:
    """Return BASE_LR, scaled by the batch size if LR_BATCH is set."""
    scale = cfg.TRAIN.BATCH_SIZE / cfg.OPTIM.LR_BATCH if cfg.OPTIM.LR_BATCH else 1.0
    return cfg.OPTIM.BASE_LR * scale


def build_schedule(cfg) -> Callable[[float], float]:
    """Return the function from progress in [0, 1] to the learning rate."""
    optim = cfg.OPTIM
    shape = SCHEDULES[optim.SCHEDULE]
    if optim.SCHEDULE == "step":
        shape = partial(shape, steps=tuple(epoch / optim.MAX_EPOCH for epoch in optim.STEPS), gamma=optim.GAMMA)
    rate = partial(
        learning_rate,
        shape=shape,
        peak=peak_learning_rate(cfg),
        lowest=optim.MIN_LR if optim.SCHEDULE == "cosine" else 0.0,
        warmup=optim.WARMUP_EPOCHS / optim.MAX_EPOCH,
        warmup_lr=optim.WARMUP_LR,
    )
    moment, epochs = PERIODS[optim.LR_PERIOD], optim.MAX_EPOCH
    return lambda progress: rate(moment(progress, epochs))


def build_optimizer(cfg, trainer: Trainer) -> Optimizer:
    """Return the optimizer of the main objective: of the student and the terms' own parameters.

    Raises ValueError for names in OPTIM.DECAY_ALL_OF that the backbone does not have.
    """
    return create_optimizer(
        trainer.objective,
        name=cfg.OPTIM.NAME,
        lr=peak_learning_rate(cfg),
        weight_decay=cfg.OPTIM.WEIGHT_DECAY,
        decay_all=cfg.OPTIM.DECAY_ALL,
        decayed=parameters_within(trainer.student.backbone, cfg.OPTIM.DECAY_ALL_OF, "OPTIM.DECAY_ALL_OF"),
        momentum=cfg.OPTIM.MOMENTUM,
    )


def parts_of_batch(cfg, world: World) -> int:
    """Return TRAIN.ACCUMULATE. Raises ValueError if it does not divide the batch size of each process."""
    share, parts = cfg.TRAIN.BATCH_SIZE // world.size, cfg.TRAIN.ACCUMULATE
    if share % parts:
        images = f"{cfg.TRAIN.BATCH_SIZE}, {share} for each of {world.size} processes"
        raise ValueError(f"TRAIN.BATCH_SIZE is {images}, TRAIN.ACCUMULATE {parts} does not divide that")
    return parts


def build_runtime(cfg) -> Runtime:
    """Return the runtime (device, precision); CUDA's arithmetic switches are set for the whole process.

    Raises ValueError if the processes of the run were started with different options; those that do not change results,
    such as the folder of the data, may differ.
    """
    runtime = Runtime(device=cfg.DEVICE, precision=cfg.PRECISION, seed=cfg.SEED)
    runtime.set_arithmetic(tf32=cfg.CUDA.TF32, deterministic=cfg.CUDA.DETERMINISTIC)
    catalogue, flat = config.Catalogue(), config.flatten(cfg)
    own = {key: value for key, value in flat.items() if (option := catalogue.of(key)) and option.on_resume != "free"}
    own["DATA.NAME"] = config.dataset_name(flat)
    first, *others = runtime.world.gather(own)
    for rank, other in enumerate(others, start=1):
        keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if keys:
            text = ", ".join(f"{key} {other.get(key)}, process 0 has {first.get(key)}" for key in keys[:5])
            raise ValueError(f"the processes of this run have other options: process {rank} has {text}")
    return runtime


def build_described_trainer(cfg, classes: int) -> tuple[Trainer, RunDescription]:
    """Return the method, built without data, weights and teachers, to count its parameters and check the options.

    Raises ValueError for arguments that a teacher cannot take, and if TRAIN.COMPILE is graphs, and the task's losses or
    a term's cannot be recorded as CUDA graphs.
    """
    refuse_other_arguments(cfg, classes)
    run = describe_run(cfg, build_task(cfg, classes))
    if cfg.TRAIN.COMPILE == "graphs" and not run.task.GRAPHS:
        task = cfg.TASK.NAME
        raise ValueError(f"TRAIN.COMPILE is graphs, which cannot hold the losses of TASK.NAME {task}; on compiles them")
    student = build_student(cfg, build_backbone(cfg, classes), run)
    refuse_unfit_student(cfg, student)
    trainer = build_trainer(cfg, student, run, teachers=[])
    own = (part for module in trainer.modules().values() for part in module.modules())
    no_graph = next(filter(None, (getattr(part, "no_graph", "") for part in own)), "")
    if cfg.TRAIN.COMPILE == "graphs" and no_graph:
        raise ValueError(f"TRAIN.COMPILE is graphs, which cannot hold {no_graph}; TRAIN.COMPILE on can")
    return trainer, run


def build_session(cfg, *, data: Data, runtime: Runtime, trainer: Trainer) -> Session:
    """Place the trainer's modules on the device and return the session that trains them."""
    for module in trainer.modules().values():
        runtime.place(module)
    for term in trainer.auxiliary_terms():
        term.optimizers = runtime.place_optimizers(term.optimizers)
    decay = cfg.TRAIN.EMA_DECAY
    ema = ModelEmaV3(trainer.student, decay=decay, use_warmup=cfg.TRAIN.EMA_WARMUP) if decay else None
    teachers = LiveTeachers(trainer.teachers, teacher_requests(dict(trainer.terms.items()), len(trainer.teachers)))
    session = Session(
        trainer=trainer,
        teacher_outputs=teachers,
        runtime=runtime,
        task=data.task,
        train_loader=data.training,
        test_loader=data.test,
        val_loader=data.val,
        optimizer=build_optimizer(cfg, trainer),
        schedule=build_schedule(cfg),
        ema=ema,
        epochs=cfg.OPTIM.MAX_EPOCH,
        clip_norm=cfg.OPTIM.CLIP_NORM,
        accumulate=parts_of_batch(cfg, runtime.world),
        test_period=cfg.TEST.PERIOD,
        log_period=cfg.LOG_PERIOD,
    )
    runtime.distribute(trainer)
    runtime.compile(session, cfg.TRAIN.COMPILE, iterations=cfg.OPTIM.MAX_EPOCH * len(data.training))
    choose_token_mixing(cfg, session)
    return session


def build_scored_teachers(
    cfg, *, data: Data, runtime: Runtime, requests: list[Request], taught_by: list[str] | None
) -> list[Teacher]:
    """Return the teachers as training scores them: loaded, placed and optimized; the log has a line on each.

    requests: the outputs that the terms use of each, on which an optimized teacher must agree with the original. Batch
    norms have the statistics of their training, also with DISTILLATION.TEACHER_BN `batch`, which applies to training
    the student alone. taught_by: fingerprints of the weights that taught the student, None if unknown.
    Raises ValueError that names a teacher with other weights: its agreement with the student says nothing about a run.
    """
    found = runtime.world.rank_zero_first(lambda: find_teacher_weights(cfg))
    check_teachers_data(cfg, found, data)
    teachers = build_teachers(cfg, data.task.classes, data.normalization, _with_normalization(found, data))
    for teacher in teachers:
        runtime.place(teacher)
    known = [None] * len(teachers) if taught_by is None else taught_by
    if len(known) != len(teachers):
        raise ValueError(f"DISTILLATION.TEACHERS has {len(teachers)}, {cfg.TEST.WEIGHTS} was taught by {len(known)}")
    for index, (teacher, digest) in enumerate(zip(teachers, known, strict=True)):
        if digest not in (None, fingerprint(teacher, teacher.args)):
            where = f"DISTILLATION.TEACHER_WEIGHTS {cfg.DISTILLATION.TEACHER_WEIGHTS[index]}"
            other = f"other weights of teacher {index} {teacher.name}, or another normalisation or other arguments"
            raise ValueError(f"{where} has {other}, than taught {cfg.TEST.WEIGHTS}")
    lesson = Lesson(LiveTeachers(nn.ModuleList(teachers), requests), data.task, data.test, runtime)
    for line in optimize_teachers(cfg, lesson):
        LOG.info(line)
    return teachers


def _with_normalization(weights: list[Weights], data: Data) -> list[Weights]:
    """Return the weights, those without a known normalisation with that of the dataset."""
    return [w if w.normalization else w._replace(normalization=data.info.normalization) for w in weights]


def build_all(
    cfg, runtime: Runtime, *, fetch: bool = True, start: bool = True
) -> tuple[Session, Data, PretrainedWeights]:
    """Return session, data and given weights. The weights are found first, so that missing ones are reported at once.

    fetch, start: which weights are looked for, see `find_pretrained`.
    """
    world = runtime.world
    weights = world.rank_zero_first(lambda: find_pretrained(cfg, fetch=fetch, start=start))
    crops = cfg.DISTILLATION.OFFLINE
    data = world.rank_zero_first(lambda: build_data(cfg, device=runtime.device, world=world, crops=crops))
    return assemble(cfg, data=data, runtime=runtime, weights=weights), data, weights


def assemble(
    cfg, *, data: Data, runtime: Runtime, weights: PretrainedWeights, trial_images: int | None = None
) -> Session:
    """Return the session; weights of the student that are not given are initialized from the seed.

    trial_images: distinct images in a batch of --mode check, with which every term must manage; None = a normal run.
    """
    classes, of_teachers = data.task.classes, _with_normalization(weights.teachers, data)
    run = describe_run(cfg, data.task, images=data.images, iterations=len(data.training), weights=of_teachers)
    if trial_images:
        run.epoch_images = run.batch_images = None
    seed_all(cfg.SEED)
    backbone = build_backbone(cfg, classes)
    start_from(backbone, weights.student)
    tell_of_other_use(cfg, weights.student, data.normalization, data.info.classes)
    warn_of_held_out(cfg, f"MODEL.WEIGHTS {weights.student.source}", weights.student, data)
    check_teachers_data(cfg, of_teachers, data)
    teachers = build_teachers(cfg, classes, data.normalization, of_teachers)
    student = build_student(cfg, backbone, run)
    trainer = build_trainer(cfg, student, run, teachers)
    if trial_images:
        for term in trainer.auxiliary_terms():
            term.shrink(trial_images)
    return build_session(cfg, data=data, runtime=runtime, trainer=trainer)
