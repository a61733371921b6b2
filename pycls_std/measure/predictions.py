"""Write the predictions of a student and its teachers for every test image to a file, for analysis."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from pycls_std.builders.data import Data, test_files
from pycls_std.builders.method import teacher_requests
from pycls_std.builders.training import build_described_trainer, build_scored_teachers
from pycls_std.core.structures import Loaded
from pycls_std.engine import files
from pycls_std.engine.runtime import Runtime
from pycls_std.measure.description import operations
from pycls_std.models.student import Student
from pycls_std.process import signals
from pycls_std.process.launch import launch

LOG = logging.getLogger("pycls_std")


def check_predictions(cfg, task) -> None:
    """Raise ValueError if TEST.PREDICTIONS cannot be written, or if the task keeps no predictions.

    Only rank 0 writes the file, and checks its folder.
    """
    path = Path(cfg.TEST.PREDICTIONS)
    if not cfg.TEST.PREDICTIONS:
        return
    if not task.KEEPS:
        raise ValueError(f"TEST.PREDICTIONS is {path}, TASK.NAME {cfg.TASK.NAME} keeps no predictions")
    if path.suffix != task.KEEPS:  # so that no checkpoint is replaced by mistake
        raise ValueError(f"TEST.PREDICTIONS is {path}, expected a name that ends in {task.KEEPS}")
    if launch().rank == 0 and not path.parent.is_dir():
        raise ValueError(f"TEST.PREDICTIONS is {path}, there is no folder {path.parent}")


def keep_predictions(
    cfg, *, student: Student, data: Data, runtime: Runtime, taught_by: list[str] | None, origin: dict
) -> None:
    """Write TEST.PREDICTIONS atomically; all processes predict, rank 0 writes.

    student: with the weights of TEST.WEIGHTS, on the device. taught_by: fingerprints of its teachers' weights, None if
    unknown. origin: `epoch` of the weights, `commit` of the program.
    Teachers are prepared as for training, if the options name some and the task stores their outputs; see
    `build_scored_teachers`.
    Raises ValueError if a teacher cannot be loaded or is not the one of the run, OSError that names the file if it
    cannot be written.
    """
    keeper, teachers = data.task.keeper(data.info), []
    trainer, run = build_described_trainer(cfg, data.task.classes)
    requests = teacher_requests(dict(trainer.terms.items()), len(run.teachers))
    if requests and keeper.asks_teachers:
        teachers = build_scored_teachers(cfg, data=data, runtime=runtime, requests=requests, taught_by=taught_by)
    predict(student, teachers, keeper, data.test, runtime)
    kept = keeper.packed(runtime.world, lambda: (test_files(cfg), _meta(cfg, data, trainer, origin)))
    if kept is None:  # in all processes but the first
        return
    files.write(Path(cfg.TEST.PREDICTIONS), kept.content)
    LOG.info("%s: written, of %d test images: %s", cfg.TEST.PREDICTIONS, kept.images, kept.text)


@torch.no_grad()
def predict(
    student: Student, teachers: Sequence[nn.Module], keeper, loader: Iterable[Loaded], runtime: Runtime
) -> None:
    """Give a keeper the outputs of student and teachers for this process's images, in the precision of the run."""
    student.eval()
    for loaded in loader:
        if signals.pending():
            raise signals.Stopped(signals.pending(), "in a test")
        loaded = runtime.to_device(loaded)
        with runtime.autocast():
            said = {f"{index}_{teacher.name}": teacher(loaded.images) for index, teacher in enumerate(teachers)}
            keeper.update(student(loaded.images), said, loaded)


def _meta(cfg, data: Data, trainer, origin: dict) -> dict:
    deployed = trainer.deployed_parameters()
    return {
        "name": cfg.NAME,
        "seed": cfg.SEED,
        "checkpoint": Path(cfg.TEST.WEIGHTS).name,
        "ema": cfg.TEST.EMA,
        "trainer": cfg.TRAINER,
        "dataset": data.info.name,
        "classes": list(map(str, data.info.classes)),
        "prediction": trainer.prediction,
        "parameters": {"deployed": deployed, "train_only": trainer.trained_parameters() - deployed},
        "flops": operations(trainer.deployed(), cfg.DATA.IMAGE_SIZE),
        "image_size": cfg.DATA.IMAGE_SIZE,
        **origin,
    }
