"""The story of a run, top to bottom: train, test; and what each mode calls."""

import logging
from pathlib import Path

import yaml
from yacs.config import CfgNode

from pycls_std import check as checks
from pycls_std import config
from pycls_std.builders.cache import build_cache
from pycls_std.builders.data import build_data, named_normalization
from pycls_std.builders.models import build_untaught_trainer, teacher_floor
from pycls_std.builders.teachers import let_teach, settle_teachers
from pycls_std.builders.training import build_all, build_optimizer, build_runtime
from pycls_std.builders.weights import student_weights
from pycls_std.engine import checkpoint, distributed, files, loop
from pycls_std.engine.journal import Journal
from pycls_std.engine.record import Record
from pycls_std.measure.description import info
from pycls_std.measure.speed import time

LOG = logging.getLogger("pycls_std")

# Options and sections that decide what a student is and what it is given.
SHAPING = ("TRAINER", "MODEL.", "STD.", "DATA.NAME", "DATA.IMAGE_SIZE", "DATA.NORMALIZATION", "DATA.CROP_RATIO")
# Options and sections that may differ between two starts of the same run, for they do not change its numbers. So may
# DATA.ROOT, but for the name of a folder of images, which is the dataset's.
FREE = (
    *("NAME", "OUT_DIR", "DEVICE", "LOG_PERIOD", "DATA.NUM_WORKERS", "DISTILLATION.TEACHER_MIN_ACC", "TRAIN.KEEP"),
    *("TEST.BATCH_SIZE", "TEST.EMA", "TEST.WEIGHTS", "TIME.", "PUBLISHED."),
)


def train(cfg) -> None:
    """Train a student, from the last checkpoint of its folder if there is one, and record the run.

    The first process alone reads and writes the folder.
    Raises ValueError if the folder holds a run of other options or data, and if a teacher scores below its floor.
    """
    folder = config.out_dir(cfg)
    runtime = build_runtime(cfg)
    world = runtime.world
    series = checkpoint.Series(folder / "checkpoints", keep=cfg.TRAIN.KEEP)
    saved, path = world.from_first(lambda: _continued(cfg, folder, series, world.size))
    start_epoch = saved["epoch"] if saved else 0
    if start_epoch == cfg.OPTIM.MAX_EPOCH:
        LOG.info("%s: already finished, %d epochs", folder, start_epoch)
        return

    session, data = build_all(cfg, runtime, start=not saved)
    origin = _origin(cfg, session, data)  # the teachers' fingerprints are of the weights as they were found
    if saved:
        _refuse_other_origin(saved, origin, path)
    scores = _score_teachers(cfg, session, len(data.info.classes))
    let_teach(cfg, session.trainer.teachers)
    session.cache = build_cache(cfg, session=session, data=data)  # of the teachers as they teach now
    if session.cache:
        LOG.info(
            "DISTILLATION.CACHE %s: %s",
            cfg.DISTILLATION.CACHE,
            session.cache.check_room(range(start_epoch, session.epochs)),
        )
    if saved:
        session.load_state_dict(saved)
    record = _recorder(cfg, folder, series, session, origin, saved, scores) if world.rank == 0 else lambda *_: None
    start = f"continues from {path}" if saved else "started"
    LOG.info("%s: %s, at epoch %d of %d", folder, start, start_epoch + 1, session.epochs)
    del saved  # the session has it now, and it may be large
    try:
        loop.fit(session, start_epoch=start_epoch, record=record)
    finally:
        if session.cache:
            session.cache.close()
    LOG.info("%s: finished, best top-1 %.2f at epoch %d", folder, session.best["top1"], session.best["epoch"])


def _continued(cfg, folder, series, processes) -> tuple[dict | None, Path | None]:
    """Return the state to continue from, and its path; None, None if there is none."""
    for place in (folder, series.folder):
        files.clean(place)
    saved, path = series.newest() or (None, None)
    if saved:
        _refuse_changes(cfg, processes, saved, path)
    return saved, path


def _recorder(cfg, folder, series, session, origin, saved, scores):
    """Return what writes an epoch down: values, options, best.pt, run.json; last.pt at last, so it is never ahead."""
    options = origin["config"].encode()
    start_epoch, lines = (saved["epoch"], saved["journal"]) if saved else (0, [])
    if not saved:
        files.write(folder / "config.yaml", options)
    record = Record(folder, session, seed=cfg.SEED, scores=scores, start_epoch=start_epoch)
    journal = Journal(folder, lines)

    def write(done: int, values: dict[str, float], best: bool) -> None:
        """Write down an epoch; done: epochs done, this one included."""
        journal.epoch(done, values)
        state = session.state_dict() | {"journal": journal.lines}
        if best:  # enough to test, to deploy and to teach
            deployed = {"student": state["student"], "ema": state["ema"]}
            checkpoint.save(origin | {"epoch": done} | deployed, series.folder / "best.pt")
        if done == start_epoch + 1:  # not before, for the options of a finished run belong to its result
            files.write(folder / "config.yaml", options)
        record.update(done)
        series.save(origin | {"epoch": done} | state)

    return write


def test(cfg) -> None:
    """Score every prediction of the checkpoint TEST.WEIGHTS on the test split.

    Raises ValueError if there is no such checkpoint, or if it does not fit the student.
    """
    if not cfg.TEST.WEIGHTS:
        raise config.ConfigError("TEST.WEIGHTS is empty, --mode test needs a checkpoint")
    weights, saved = student_weights(Path(cfg.TEST.WEIGHTS), ema=cfg.TEST.EMA)
    changed = _changes(saved["config"], cfg, lambda key: key.startswith(SHAPING)) if saved else []
    if changed:
        LOG.warning("%s was trained with other options: %s", cfg.TEST.WEIGHTS, "; ".join(changed))
    runtime = build_runtime(cfg)
    data = runtime.world.in_turn(lambda: build_data(cfg, device=runtime.device, train=False, world=runtime.world))
    if saved and saved["data"]["classes"] != list(data.info.classes):
        LOG.warning("%s was trained on other classes: %s", cfg.TEST.WEIGHTS, _first_of(saved["data"]["classes"]))
    trainer = build_untaught_trainer(cfg, len(data.info.classes))
    checkpoint.load_weights(trainer.student, weights, cfg.TEST.WEIGHTS)
    scores = loop.evaluate(runtime.place(trainer.student), trainer.predictions, data.test, runtime)
    LOG.info("%s, %d test images, %s", data.info.name, len(data.test.dataset), cfg.TEST.WEIGHTS)
    for name, score in scores.items():
        mark = "*" if name == trainer.prediction else " "
        LOG.info("%s %-4s top-1 %6.2f  top-5 %6.2f  loss %.4f", mark, name, score["top1"], score["top5"], score["loss"])


def check(cfg) -> None:
    """Try the run of the options in small, a line for each check. Raises ValueError if one fails."""
    checks.check(cfg, config.out_dir(cfg))


MODES = {"train": train, "test": test, "check": check, "info": info, "time": time}


def run(mode: str, cfg) -> None:
    """Carry out a mode of MODES.

    Raises ConfigError for options that contradict each other, before data and weights are fetched: a student is built
    from them with stand-in teachers.
    """
    try:
        named_normalization("DATA.NORMALIZATION", cfg.DATA.NORMALIZATION)
        for name in cfg.DISTILLATION.TEACHER_NORMS:
            named_normalization("DISTILLATION.TEACHER_NORMS", name)
        build_optimizer(cfg, build_untaught_trainer(cfg, cfg.MODEL.NUM_CLASSES or 2))
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    MODES[mode](cfg)
    distributed.close()


def _score_teachers(cfg, session, classes) -> dict[str, float]:
    for line in settle_teachers(cfg, session.trainer.teachers, session.test_loader, session.runtime):
        LOG.info(line)
    floor = teacher_floor(cfg, classes)
    scores = {}
    for index, teacher in enumerate(session.trainer.teachers):
        LOG.info("%s: scored on the test split", teacher.description)
        values = loop.evaluate(teacher, lambda output: {"cls": output.logits}, session.test_loader, session.runtime)
        top1 = values["cls"]["top1"]
        scores[f"{index}_{teacher.name}"] = top1
        LOG.info("teacher %d %s: top-1 %.2f", index, teacher.name, top1)
        if top1 < floor:
            raise ValueError(
                f"teacher {index} {teacher.name} has top-1 {top1:.2f} on the test split, below "
                f"DISTILLATION.TEACHER_MIN_ACC {floor:.2f}: it is not trained enough, or its head, normalisation or "
                "size does not fit the data"
            )
    return scores


def _origin(cfg, session, data) -> dict:
    """Return what a checkpoint says of where it comes from."""
    return {
        "config": config.dump(cfg),
        "processes": session.runtime.world.size,
        "teachers": [checkpoint.fingerprint(teacher) for teacher in session.trainer.teachers],
        "data": {
            "name": data.info.name,
            "classes": list(data.info.classes),
            "images": [len(data.train.dataset), len(data.test.dataset)],
            "mean": list(data.normalization.mean),
            "std": list(data.normalization.std),
            "memory": data.in_memory,
        },
    }


def _refuse_other_origin(saved, origin, path) -> None:
    before, now = (each["data"] for each in (saved, origin))
    if before["classes"] != now["classes"]:
        other = f"{_first_of(before['classes'])}; the data has {_first_of(now['classes'])}"
        raise ValueError(f"{path} is a run on other classes: {other}")
    if before["memory"] != now["memory"]:
        where = {True: "in memory", False: "from workers"}
        raise ValueError(
            f"{path} is a run on images {where[before['memory']]}, now {where[now['memory']]}: DATA.LOADER"
        )
    if before["images"] != now["images"]:
        raise ValueError(f"{path} is a run on {before['images']} images for training and test, now {now['images']}")
    for index, (old, new) in enumerate(zip(saved["teachers"], origin["teachers"], strict=True)):
        if old != new:
            raise ValueError(f"{path} is a run with other weights of teacher {index}: DISTILLATION.TEACHER_WEIGHTS")


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse_changes(cfg, processes, saved, path) -> None:
    kept = cfg.DISTILLATION
    exact = kept.CACHE_PRECISION == "fp32" and not kept.CACHE_TOP  # then it changes nothing whether, and where

    def counts(key):
        return not key.startswith(FREE) and not (exact and key == "DISTILLATION.CACHE")

    changed = _changes(saved["config"], cfg, counts)
    planned = yaml.safe_load(saved["config"])["OPTIM"]["MAX_EPOCH"]
    if planned <= cfg.OPTIM.MAX_EPOCH:  # a run may be continued for longer, and its record says so
        changed = [change for change in changed if not change.startswith("OPTIM.MAX_EPOCH")]
    if saved["processes"] != processes:  # each process has its own batch norm and dropout
        changed.append(f"the number of processes was {saved['processes']}, is {processes}")
    if changed:
        raise ValueError(f"{path} is a run of other options: {'; '.join(changed)}. Choose another OUT_DIR")


def _changes(before: str, cfg, counts) -> list[str]:
    """Return "KEY was .., is .." of the options that count and differ from a dump; what it lacks is at its default."""
    old, new = _comparable(before), _comparable(config.dump(cfg))
    keys = [key for key in sorted(old.keys() | new.keys()) if counts(key)]
    return [f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def _comparable(dump: str) -> dict[str, object]:
    options, _ = config.defaults()
    flat = config.flatten(options) | config.flatten(CfgNode(yaml.safe_load(dump)))
    flat["DATA.ROOT"] = Path(flat["DATA.ROOT"]).name if flat["DATA.NAME"] == "image_folder" else ""
    return flat
