"""The story of a run, top to bottom: train, test; and what each mode calls."""

import logging
import os
from pathlib import Path

import yaml
from yacs.config import CfgNode

from pycls_std import config, measure
from pycls_std.builders.data import build_data, named_normalization
from pycls_std.builders.models import build_untaught_trainer
from pycls_std.builders.training import build_all, build_optimizer, build_runtime
from pycls_std.builders.weights import student_weights
from pycls_std.engine import checkpoint, loop
from pycls_std.engine.journal import Journal
from pycls_std.engine.record import Record

LOG = logging.getLogger("pycls_std")

# Options and sections that decide what a student is and what it is given.
SHAPING = ("TRAINER", "MODEL.", "STD.", "DATA.NAME", "DATA.IMAGE_SIZE", "DATA.NORMALIZATION", "DATA.CROP_RATIO")
# Options and sections that may differ between two starts of the same run, for they do not change its numbers. So may
# DATA.ROOT, but for the name of a folder of images, which is the dataset's.
FREE = (
    *("NAME", "OUT_DIR", "DEVICE", "LOG_PERIOD", "DATA.NUM_WORKERS", "DISTILLATION.TEACHER_MIN_ACC"),
    *("TEST.BATCH_SIZE", "TEST.EMA", "TEST.WEIGHTS", "TIME.", "PUBLISHED."),
)


def train(cfg) -> None:
    """Train a student, from the last checkpoint of its folder if there is one, and record the run.

    Raises ValueError if the folder holds a run of other options or data, and if a teacher scores below its floor.
    """
    folder = config.out_dir(cfg)
    _refuse_unwritable(folder)
    last = folder / "checkpoints" / "last.pt"
    saved = checkpoint.read(last) if last.exists() else None
    if saved:
        if "optimizer" not in saved:
            raise ValueError(f"{last} holds weights but no training state, it cannot be continued from")
        _refuse_changes(cfg, saved, last)
        if saved["epoch"] == cfg.OPTIM.MAX_EPOCH:
            LOG.info("%s: already finished, %d epochs", folder, saved["epoch"])
            return

    session, data = build_all(cfg)
    if saved:
        _refuse_other_classes(saved, data, last)
    scores = _score_teachers(cfg, session, len(data.info.classes))
    start_epoch = saved["epoch"] if saved else 0
    if saved:
        session.load_state_dict(saved)
    folder.mkdir(parents=True, exist_ok=True)
    if not saved:
        (folder / "config.yaml").write_text(config.dump(cfg))
    LOG.info("%s: %s at epoch %d of %d", folder, "resumed" if saved else "started", start_epoch + 1, session.epochs)
    record = Record(folder, session, seed=cfg.SEED, scores=scores, start_epoch=start_epoch)
    journal = Journal(folder, start_epoch=start_epoch)

    def save(done: int, best: bool) -> None:
        """Write checkpoints and record after an epoch; last.pt comes last, so that nothing is ever behind it."""
        state = session.state_dict()
        origin = {"config": config.dump(cfg), "data": _origin(data), "epoch": done}
        if best:  # enough to test, to deploy and to teach
            deployed = {"student": state["student"], "ema": state["ema"]}
            checkpoint.save(origin | deployed, folder / "checkpoints" / "best.pt")
        if saved and done == start_epoch + 1:  # not before, for the options of a finished run belong to its result
            (folder / "config.yaml").write_text(config.dump(cfg))
        record.update(done)
        checkpoint.save(origin | state, last)

    loop.fit(session, journal, start_epoch=start_epoch, save=save)
    journal.close()
    LOG.info("%s: finished, best top-1 %.2f at epoch %d", folder, session.best["top1"], session.best["epoch"])


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
    data = build_data(cfg, train=False)
    if saved and saved["data"]["classes"] != list(data.info.classes):
        LOG.warning("%s was trained on other classes: %s", cfg.TEST.WEIGHTS, _first_of(saved["data"]["classes"]))
    trainer = build_untaught_trainer(cfg, len(data.info.classes))
    checkpoint.load_weights(trainer.student, weights, cfg.TEST.WEIGHTS)
    scores = loop.evaluate(runtime.place(trainer.student), trainer.predictions, data.test, runtime)
    LOG.info("%s, %d test images, %s", data.info.name, len(data.test.dataset), cfg.TEST.WEIGHTS)
    for name, score in scores.items():
        mark = "*" if name == trainer.prediction else " "
        LOG.info("%s %-4s top-1 %6.2f  top-5 %6.2f  loss %.4f", mark, name, score["top1"], score["top5"], score["loss"])


MODES = {"train": train, "test": test, "info": measure.info, "time": measure.time}


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


def _score_teachers(cfg, session, classes) -> dict[str, float]:
    floor = cfg.DISTILLATION.TEACHER_MIN_ACC
    chance = 100 / classes
    floor = chance + (100 - chance) / 4 if floor < 0 else floor
    scores = {}
    for index, teacher in enumerate(session.trainer.teachers):
        LOG.info("teacher %d %s: scored on the test split", index, teacher.name)
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


def _origin(data) -> dict:
    return {
        "name": data.info.name,
        "classes": list(data.info.classes),
        "mean": list(data.normalization.mean),
        "std": list(data.normalization.std),
    }


def _refuse_other_classes(saved, data, path) -> None:
    before, now = saved["data"]["classes"], list(data.info.classes)
    if before != now:
        raise ValueError(f"{path} is a run on other classes: {_first_of(before)}; the data has {_first_of(now)}")


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse_changes(cfg, saved, path) -> None:
    def counts(key):
        return not key.startswith(FREE)

    changed = _changes(saved["config"], cfg, counts)
    planned = yaml.safe_load(saved["config"])["OPTIM"]["MAX_EPOCH"]
    if planned <= cfg.OPTIM.MAX_EPOCH:  # a run may be continued for longer, and its record says so
        changed = [change for change in changed if not change.startswith("OPTIM.MAX_EPOCH")]
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


def _refuse_unwritable(folder: Path) -> None:
    parent = folder
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"OUT_DIR {folder}: {parent} is no folder that can be written to")
