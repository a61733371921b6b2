"""The modes of the command line: training and testing from top to bottom, and the functions of the others."""

import logging
from collections.abc import Iterator
from pathlib import Path

from pycls_std import check as checks
from pycls_std import config
from pycls_std.builders.cache import build_cache, check_cache
from pycls_std.builders.data import build_data, build_task, named_normalization, training_images
from pycls_std.builders.method import build_backbone, build_student, choose_prediction, describe_run
from pycls_std.builders.models import absent_files, refuse_unknown_models
from pycls_std.builders.teachers import optimize_teachers, set_batch_norm_mode
from pycls_std.builders.training import build_all, build_described_trainer, build_optimizer, build_runtime
from pycls_std.builders.weights import WeightsError, student_weights
from pycls_std.core.text import first_of
from pycls_std.engine import checkpoint, distributed, loop
from pycls_std.engine.structure import refuse_other_kind
from pycls_std.measure.description import info, operations
from pycls_std.measure.predictions import check_predictions, keep_predictions
from pycls_std.measure.scores import keep_scores, refuse_other_file
from pycls_std.measure.speed import time
from pycls_std.run.folder import RunFolder
from pycls_std.run.identity import (
    Identity,
    changed_shape,
    refuse_other_model,
    refuse_other_parts,
    refuse_other_test_files,
    refuse_other_training_files,
    refuse_squashed,
)
from pycls_std.run.record import commit

LOG = logging.getLogger("pycls_std")
TESTED = {"teachers": [str]}  # optional entries that testing reads from a checkpoint, with their types
SPLITS = {"test": "the test split", "val": "the held-out images"}
OTHERWISE = "sums round otherwise, so the run will not end as one that was not interrupted, bit for bit"


def train(cfg) -> None:
    """Train a student and record the run; resume from the last checkpoint of its folder if there is one.

    Only rank 0 reads and writes the folder.
    Raises ValueError if the folder holds a run with other options or data, and if a teacher scores below its floor.
    """
    runtime = build_runtime(cfg)
    world, options = runtime.world, config.dump(cfg)
    beside = runtime.device.type == "cuda"  # on a CPU the training steps need all cores
    folder = RunFolder(config.out_dir(cfg), keep=cfg.TRAIN.KEEP, period=cfg.TRAIN.SAVE_PERIOD, beside=beside)
    saved, path = world.broadcast_from_rank_zero(lambda: folder.continued(options, world.size, cfg.OPTIM.MAX_EPOCH))
    start_epoch = saved["epoch"] if saved else 0
    if saved and start_epoch == cfg.OPTIM.MAX_EPOCH:
        for line in folder.repair(saved) if world.rank == 0 else ():
            LOG.warning("%s: %s", folder, line)
        LOG.info("%s: already finished, %d epochs", folder, start_epoch)
        return

    if saved and saved["best"].get("epoch") == start_epoch and world.rank == 0:  # it may have ended before best.pt
        folder.repair_best(saved)
    if saved:
        runtime.token_mixing = saved.get("token_mixing", "")  # kept by `auto` where the kernels are available
    session, data, weights = build_all(as_begun(cfg, saved, runtime), runtime, start=not saved)
    identity = _identity(options, session, data)  # fingerprints of teachers are taken before they are optimized
    if saved:
        assert path is not None  # of the saved state
        identity.refuse_other_data(saved, path)
        if "DATA.FIT" in session.task.READS and cfg.DATA.FIT == "crop":
            refuse_squashed(saved, path, _sizes(cfg))
        if saved["threads"] != identity.threads and runtime.device.type == "cpu":
            told = f"was computed by {saved['threads']} threads, it goes on with {identity.threads}"
            LOG.warning("%s %s: %s (OMP_NUM_THREADS)", path, told, OTHERWISE)
        if saved.get("token_mixing", identity.token_mixing) != identity.token_mixing:
            told = f"was computed by {saved['token_mixing']} token mixing, it goes on by {identity.token_mixing}"
            LOG.warning("%s %s: %s (CUDA.TOKEN_MIXING)", path, told, OTHERWISE)
    live, in_memory = session.teacher_outputs, data.in_memory
    check_cache(cfg, live, data=data, in_memory=in_memory, weights=weights.teachers)  # before scoring, which is slow
    results = _score_teachers(cfg, session)
    set_batch_norm_mode(cfg, session.trainer.teachers)
    epochs = range(start_epoch, session.epochs)
    kept = build_cache(cfg, session=session, data=data, weights=weights.teachers, epochs=epochs)
    session.teacher_outputs = kept or session.teacher_outputs  # built from the teachers as optimized above
    if saved:
        session.load_state_dict(saved, str(path))
    record = lambda *_: None  # noqa: E731
    if world.rank == 0:
        flops = operations(session.trainer.deployed(), cfg.DATA.IMAGE_SIZE)
        record = folder.start(session, identity, saved, seed=cfg.SEED, teachers=results, flops=flops)
    before = saved["journal"][-1]["run/epochs"] if saved else session.epochs
    if before != session.epochs and not config.same_when_extended(config.flatten(cfg), before):
        LOG.warning(
            "%s: extended from %d to %d epochs (OPTIM.MAX_EPOCH); no run of this length has these learning rates or "
            "evaluations, and tables leave it out",
            *(folder, before, session.epochs),
        )
    LOG.info("objective: %s", session.trainer.describe())
    start = f"continues from {path}" if saved else "started"
    LOG.info("%s: %s, at epoch %d of %d", folder, start, start_epoch + 1, session.epochs)
    del saved  # the session has loaded it; it may be large
    try:
        loop.fit(session, start_epoch=start_epoch, record=record)
    finally:
        session.teacher_outputs.close()
        folder.writes.wait()
    result, label = session.task.RESULT, session.task.scores[session.task.RESULT]["label"]
    LOG.info(
        "%s: finished, best %s %.2f at epoch %d, on %s",
        *(folder, label, session.best[result], session.best["epoch"], SPLITS[session.judge]),
    )


def as_begun(cfg, saved: dict | None, runtime):
    """Return the options with TRAIN.COMPILE `auto` resolved to what it was when the run began.

    An extended run has more iterations, so `auto` might otherwise compile from there on. On a CPU it is always off.
    """
    cfg = cfg.clone()
    cfg.defrost()
    chosen = saved.get("compiled") if saved and runtime.device.type == "cuda" else None
    if cfg.TRAIN.COMPILE == "auto" and chosen in ("off", "on"):
        LOG.info("TRAIN.COMPILE auto: %s, as when the run was begun", chosen)
        cfg.TRAIN.COMPILE = chosen
    cfg.freeze()
    return cfg


def _sizes(cfg) -> Iterator[tuple[int, int]]:
    """Yield width and height of the first 100 training images, which are looked up when the first is requested."""
    images = training_images(cfg)
    yield from (images[index][0].size for index in range(min(len(images), 100)))


def _identity(options: str, session, data) -> Identity:
    return Identity(
        config=options,
        processes=session.runtime.world.size,
        threads=session.runtime.threads,
        compiled=session.runtime.compiled,
        token_mixing=session.runtime.token_mixing,
        teachers=[checkpoint.fingerprint(teacher, teacher.args) for teacher in session.trainer.teachers],
        data={
            "name": data.info.name,
            "classes": list(map(str, data.info.classes)),
            "ids": list(map(int, data.info.ids)),
            "images": [len(part.dataset) for part in (data.train, data.test, data.val) if part is not None],
            "contents": data.contents,
            "mean": list(map(float, data.normalization.mean)),
            "std": list(map(float, data.normalization.std)),
            "memory": data.in_memory,
        },
    )


def _score_teachers(cfg, session) -> dict[str, dict[str, float]]:
    """Optimize the teachers (fold, convert), score them, and return the result of each, by split.

    Raises ValueError for one below its floor on the held-out images, or on the test split if none are held out.
    """
    task, live = session.task, session.teacher_outputs
    for line in optimize_teachers(cfg, session):
        LOG.info(line)
    floor, label = task.floor(cfg.DISTILLATION.TEACHER_MIN_ACC), task.scores[task.RESULT]["label"]
    loaders = {"test": session.test_loader, "val": session.val_loader}
    results: dict[str, dict[str, float]] = {split: {} for split, loader in loaders.items() if loader}
    for index, teacher in enumerate(live.teachers):
        for split, found in results.items():
            LOG.info("%s: scored on %s", teacher.description, SPLITS[split])
            scores = loop.evaluate(teacher, task, loaders[split], session.runtime)
            result = found[f"{index}_{teacher.name}"] = next(iter(scores.values()))[task.RESULT]
            LOG.info("teacher %d %s: %s %.2f", index, teacher.name, label, result)
            if split == session.judge and not result >= floor:  # also if it is NaN
                raise ValueError(
                    f"teacher {index} {teacher.name} has {label} {result:.2f} on {SPLITS[split]}, below "
                    f"DISTILLATION.TEACHER_MIN_ACC {floor:.2f}: it is not trained enough, or its head, normalisation "
                    "or size does not fit the data"
                )
    return results


def test(cfg) -> None:
    """Score every prediction of the checkpoint TEST.WEIGHTS on the images of TEST.SPLIT.

    TEST.PREDICTIONS writes the predictions to a file, TEST.JSON the scores.
    Raises ValueError if the checkpoint does not exist, or does not fit the student.
    """
    if not cfg.TEST.WEIGHTS:
        raise config.ConfigError("TEST.WEIGHTS is empty, --mode test needs a checkpoint")
    weights, saved = student_weights(Path(cfg.TEST.WEIGHTS), ema=cfg.TEST.EMA)
    refuse_other_kind(saved, {key: kind for key, kind in TESTED.items() if key in saved}, cfg.TEST.WEIGHTS)
    if saved:
        trained, now = saved["config"], config.dump(cfg)
        if cfg.TEST.SPLIT != "test":
            refuse_other_parts(trained, now, cfg.TEST.WEIGHTS)
        refuse_other_model(trained, now, cfg.TEST.WEIGHTS)
        if changed := changed_shape(trained, now):
            LOG.warning("%s was trained with other options: %s", cfg.TEST.WEIGHTS, "; ".join(changed))
    runtime = build_runtime(cfg)
    world = runtime.world
    data = world.rank_zero_first(lambda: build_data(cfg, device=runtime.device, train=False, world=world))
    if saved and saved["data"]["classes"] != list(map(str, data.info.classes)):
        LOG.warning("%s was trained on other classes: %s", cfg.TEST.WEIGHTS, first_of(saved["data"]["classes"]))
    if saved and cfg.TEST.SPLIT != "test":
        images = len(data.test.dataset)
        refuse_other_training_files(saved, cfg.TEST.SPLIT, data.contents, images, cfg.TEST.WEIGHTS)
    if saved and cfg.TEST.PREDICTIONS:
        refuse_other_test_files(saved, data.info.name, data.contents, cfg.TEST.WEIGHTS)
    task = data.task
    student = build_student(cfg, build_backbone(cfg, task.classes), describe_run(cfg, task))
    checkpoint.load_weights(student, weights, cfg.TEST.WEIGHTS)
    scores = loop.evaluate(runtime.place(student), task, data.test, runtime)
    LOG.info("%s, %d %s images, %s", data.info.name, len(data.test.dataset), cfg.TEST.SPLIT, cfg.TEST.WEIGHTS)
    chosen = choose_prediction(cfg, task, student)
    for name, values in scores.items():
        known = {score: facts for score, facts in task.scores.items() if score in values}
        texts = [f"{facts['label']} {values[score]:{_width(facts)}}" for score, facts in known.items()]
        LOG.info("%s %-4s %s", "*" if name == chosen else " ", name, "  ".join(texts))
    origin = {"epoch": saved.get("epoch"), "commit": commit()}
    if cfg.TEST.JSON and world.rank == 0:
        keep_scores(cfg, scores, prediction=chosen, data=data, origin=origin)
    if cfg.TEST.PREDICTIONS:
        taught_by = saved.get("teachers")
        keep_predictions(cfg, student=student, data=data, runtime=runtime, taught_by=taught_by, origin=origin)


def _check_split(cfg) -> None:
    if cfg.TEST.SPLIT == "held-out" and not cfg.DATA.VAL_FRACTION:
        raise ValueError("TEST.SPLIT is held-out, DATA.VAL_FRACTION is 0: no images are held out")
    if cfg.TEST.SPLIT != "test" and cfg.TEST.PREDICTIONS:  # tools compare them with those of other runs
        raise ValueError(f"TEST.PREDICTIONS are of the test split, TEST.SPLIT is {cfg.TEST.SPLIT}")


def _width(facts: dict) -> str:
    return "6.2f" if facts["unit"] == "%" else ".4f"


def check(cfg) -> None:
    """Check a small version of the run, one line for each check. Raises ValueError if one fails."""
    checks.check(cfg, config.out_dir(cfg))


MODES = {"train": train, "test": test, "check": check, "info": info, "time": time}


def run(mode: str, cfg) -> None:
    """Run a mode of MODES.

    Raises ConfigError for contradictory options, before data and weights are fetched: student and method are built
    from the options, with descriptions in place of the teachers.
    """
    refuse_unknown_models(cfg, teach=mode != "test" or bool(cfg.TEST.PREDICTIONS))
    try:
        named_normalization("DATA.NORMALIZATION", cfg.DATA.NORMALIZATION)
        for name in cfg.DISTILLATION.TEACHER_NORMS:
            named_normalization("DISTILLATION.TEACHER_NORMS", name)
        if mode == "test":  # needs no loss terms, so their demands on teachers are not checked
            task = build_task(cfg, cfg.MODEL.NUM_CLASSES or 2)
            student = build_student(cfg, build_backbone(cfg, task.classes), describe_run(cfg, task))
            choose_prediction(cfg, task, student)
            check_predictions(cfg, task)
            refuse_other_file(cfg)
            _check_split(cfg)
        else:
            classes = cfg.MODEL.NUM_CLASSES or 3  # any number: the data is not read yet
            build_optimizer(cfg, build_described_trainer(cfg, classes)[0])
    except WeightsError:  # the fault is in a file, not in the options
        raise
    except ValueError as error:
        absent = absent_files(cfg)  # may be the cause: without its file, a teacher is built with default arguments
        raise config.ConfigError(f"{error}; {absent}" if absent else str(error)) from error
    MODES[mode](cfg)
    distributed.close()
